"""The controls that see no activations: what the words alone tell.

A probe that does no better has learned which words go with which label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from activation_logging.detectors.registry import Detector

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT, ANSWER = 0, 1
WORD = r"(?u)\b\w+\b|^(?=\W*$)"
"""One-letter words count: the symbol of an element may be one. A text without a word has one, the
empty one: all answers may be signs, and all claims may begin their answers."""


def text_only(answer: bool = True) -> Pipeline:
    """TF-IDF of words and word pairs, and of the answer's letters, into a logistic regression.

    Takes ``[n, 2]`` of prompt and answer; without ``answer`` only the prompt is looked at.
    Weighting: Spärck Jones 1972, with sublinear counts.
    """
    parts: list[tuple[str, Any, int]] = [("prompt words", words(), PROMPT)]
    if answer:
        parts.append(("answer words", words(), ANSWER))
        parts.append(("answer letters", letters(2, 4), ANSWER))
    return from_texts(parts)


def from_texts(parts: Sequence[tuple[str, Any, int]]) -> Pipeline:
    """A logistic regression of columns of texts: of each the name, a vectoriser, and its index."""
    return make_pipeline(ColumnTransformer(parts), LogisticRegression(C=10.0, max_iter=2000))


def words(most: int = 50_000) -> TfidfVectorizer:
    """The weights of words and word pairs, at most so many of them."""
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD, max_features=most
    )


def letters(least: int, most: int) -> TfidfVectorizer:
    """The weights of pieces of words, of so many letters."""
    return TfidfVectorizer(
        analyzer="char_wb", ngram_range=(least, most), sublinear_tf=True, max_features=20_000
    )


TEXT_ONLY = Detector(
    "text_only",
    "Text only (TF-IDF of prompt and answer)",
    "control; Spärck Jones 1972",
    "text",
    lambda _seed: text_only(),
    role="control",
    in_curves=True,
    baseline=True,
)
PROMPT_ONLY = Detector(
    "prompt_only",
    "Prompt only (TF-IDF of its words)",
    "control; Spärck Jones 1972",
    "text",
    lambda _seed: text_only(answer=False),
    where="before",
    role="control",
)
