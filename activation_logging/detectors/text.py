"""The controls that see no activations: what the words alone tell.

A probe that does no better has learned which words go with which label.
"""

from __future__ import annotations

from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from activation_logging.detectors.registry import Detector

PROMPT, ANSWER = 0, 1


def text_only(answer: bool = True) -> Pipeline:
    """TF-IDF of words and word pairs, and of the answer's letters, into a logistic regression.

    Takes ``[n, 2]`` of prompt and answer; without ``answer`` only the prompt is looked at.
    Weighting: Spärck Jones 1972, with sublinear counts.
    """
    parts: list[tuple[str, Any, int]] = [("prompt words", _words(), PROMPT)]
    if answer:
        parts.append(("answer words", _words(), ANSWER))
        letters = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=20_000
        )
        parts.append(("answer letters", letters, ANSWER))
    return make_pipeline(ColumnTransformer(parts), LogisticRegression(C=10.0, max_iter=2000))


def _words() -> TfidfVectorizer:
    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        # One-letter words count: the symbol of an element may be one.
        token_pattern=r"(?u)\b\w+\b",  # noqa: S106 - not that kind of token
        max_features=50_000,
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
