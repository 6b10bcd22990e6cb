"""What is known of a claim without the model's states: its words, its type, its probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder

from activation_logging.detectors.calibration import logistic_curve
from activation_logging.detectors.signals import FLOOR, LENGTH, MEAN_LOGPROB, MIN_LOGPROB
from activation_logging.detectors.text import (
    PROMPT_ONLY,
    TEXT_ONLY,
    from_texts,
    letters,
    text_only,
    words,
)
from activation_logging.detectors.tokens.results import TokenScores
from activation_logging.detectors.tokens.scored import Scored, highest_of
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.arrays import Floats, Ints
    from activation_logging.dataset import Tokens
    from activation_logging.detectors.registry import Detector
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.tokens.evaluation import Level

Texts = npt.NDArray[np.object_]

BEFORE = 80
"""Characters before a claim that the text control reads."""
MOST = 50_000
"""Claims that a control is fitted on; more would say little more of their words."""
QUESTION, PRECEDING, CLAIM = 0, 1, 2


@dataclass
class Read:
    """What the controls read of the answers.

    ``claims`` are question, the text before, and the claim's own, ``[m, 3]``; ``firsts`` the same
    up to the claim's first token; ``answers`` are prompt and answer, ``[k, 2]``; ``lengths`` the
    answers' tokens, ``[k]``. ``logprobs`` are those of the tokens ``[n]``, and ``of_answers`` the
    lowest and the mean of all tokens of each answer, ``[k, 2]``; ``missing`` says where they are
    not there.
    """

    claims: Texts
    firsts: Texts
    answers: Texts
    lengths: Floats
    logprobs: Floats
    of_answers: Floats
    missing: list[str] = field(default_factory=list)


def read(tokens: Tokens, progress: Progress = silent) -> Read:
    """Read texts and log-probabilities, one answer at a time."""
    spans, rows, count = tokens.spans, tokens.rows, len(tokens.keys)
    found = Read(
        np.empty((len(spans.y), 3), object),
        np.empty((len(spans.y), 3), object),
        np.empty((count, 2), object),
        np.empty(count),
        np.full(len(tokens), np.nan),
        np.full((count, 2), np.nan),
    )
    of_answer = np.searchsorted(spans.answer, np.arange(count + 1))
    bounds = np.searchsorted(rows.answer, np.arange(count + 1))
    for number, entry in enumerate(track(tokens.entries(), "reading texts", count, progress)):
        response, texts, question = entry.response, entry.response_tokens or [], entry.question
        found.answers[number] = entry.prompt, response
        found.lengths[number] = len(entry.response_token_ids)
        for span in range(of_answer[number], of_answer[number + 1]):
            start, end = int(spans.start[span]), int(spans.end[span])
            before = response[max(start - BEFORE, 0) : start]
            found.claims[span] = question, before, response[start:end]
            found.firsts[span] = question, before, texts[spans.first[span]]
        part = slice(bounds[number], bounds[number + 1])
        logprobs = entry.logprobs
        if logprobs is None or any(value is None for value in logprobs):
            found.missing.append(entry.key)
            continue
        each = np.maximum(np.array(logprobs, np.float64), FLOOR)
        found.logprobs[part] = each[rows.token[part]]
        found.of_answers[number] = each.min(), each.mean()
    return found


def controls(
    tokens: Tokens, folds: Sequence[Fold], answers: Level | None, found: Read
) -> tuple[list[Scored], dict[str, str]]:
    """The controls and signals with their scores, and why others are left out.

    Args:
        tokens: the claims and their tokens.
        folds: the splits of claims.
        answers: classes and parts of the answers; None leaves these out.
        found: what :func:`read` gave.
    """
    spans = tokens.spans
    train = [(fold.train, fold.test) for fold in folds]
    claim_text = _predicted(_claim_text, found.claims, spans.y, train)
    place = np.stack([spans.first, spans.first / found.lengths[spans.answer]], axis=1)
    rows = [
        Scored(
            "claim_text",
            "Text only (the claim and what is before it)",
            "control; Spärck Jones 1972",
            "control",
            TokenScores(
                *_spread(tokens, claim_text),
                _predicted(_claim_text, found.firsts, spans.y, train),
                highest_of(claim_text, spans.answer),
            ),
        ),
        _of_claims(
            tokens,
            ("claim_type", "Type of the claim alone"),
            _predicted(_of_type, spans.type[:, None].astype(object), spans.y, train),
        ),
        _of_claims(
            tokens,
            ("claim_position", "Place of the claim in the answer"),
            _predicted(logistic_curve, place, spans.y, train),
        ),
        _of_claims(
            tokens,
            (PROMPT_ONLY.name, PROMPT_ONLY.title),
            _predicted(
                partial(text_only, answer=False), found.answers[spans.answer], spans.y, train
            ),
        ),
    ]
    if answers is not None:
        rows += _of_answers(answers, found)
    left_out: dict[str, str] = {}
    if found.missing:
        left_out["Log-probability of the claim's tokens"] = (
            f"{len(found.missing)} of {len(tokens.keys)} answers have no log-probabilities (the "
            f"first: {found.missing[0]}); ask for them (logprobs in the request)"
        )
    else:
        rows += _logprobs(tokens, found)
    if answers is None:
        rows = [row.without_answers() for row in rows]
    return rows, left_out


def _logprobs(tokens: Tokens, found: Read) -> list[Scored]:
    """Log-probabilities with their sign turned: what is unlikely counts as contradicted."""
    spans, rows = tokens.spans, tokens.rows
    unlikely = -found.logprobs
    judged = rows.span >= 0
    of_span = rows.span[judged]
    count = np.bincount(of_span)
    mean = np.bincount(of_span, unlikely[judged]) / count
    lowest = highest_of(unlikely[judged], of_span)
    first = np.empty(len(count))
    # The rows of a claim are in the order of its tokens, so the first one is written last.
    first[of_span[::-1]] = unlikely[judged][::-1]
    answers = -found.of_answers
    return [
        _as_of_answers(MIN_LOGPROB, TokenScores(unlikely, lowest, None, answers[:, 0])),
        _as_of_answers(MEAN_LOGPROB, TokenScores(None, mean, None, answers[:, 1])),
        Scored(
            "first_logprob",
            "First token's log-probability",
            MEAN_LOGPROB.source,
            "signal",
            TokenScores(None, first, first, highest_of(first, spans.answer)),
        ),
    ]


def _as_of_answers(detector: Detector, scores: TokenScores) -> Scored:
    """A row under the name of the detector of answers that reads the same."""
    return Scored(detector.name, detector.title, detector.source, detector.role, scores)


def _of_answers(answers: Level, found: Read) -> list[Scored]:
    """The controls of answers: their words, and their length."""
    every = np.arange(len(answers.y))
    whole = [(np.setdiff1d(every, part), part) for part in answers.parts]
    text = _predicted(text_only, found.answers, answers.y, whole)
    length = _predicted(logistic_curve, found.lengths[:, None], answers.y, whole)
    return [
        _as_of_answers(TEXT_ONLY, TokenScores(answer=text)),
        _as_of_answers(LENGTH, TokenScores(answer=length)),
    ]


def _of_claims(tokens: Tokens, name: tuple[str, str], score: Floats) -> Scored:
    """A control that says the same of a claim, its first token, and all of its tokens."""
    token, span = _spread(tokens, score)
    of_answers = highest_of(score, tokens.spans.answer)
    return Scored(*name, "control", "control", TokenScores(token, span, span, of_answers))


def _spread(tokens: Tokens, score: Floats) -> tuple[Floats, Floats]:
    """Scores of claims for their tokens, NaN for tokens of none; and for the claims."""
    return np.append(score, np.nan)[tokens.rows.span], score


def _predicted(
    make: Callable[[], Any], X: npt.NDArray[Any], y: Ints, folds: Sequence[tuple[Ints, Ints]]
) -> Floats:
    """Probabilities of the test sides, by a classifier fitted on the training sides.

    Of more than :data:`MOST` some are drawn to fit on.
    """
    found = np.full(len(y), np.nan)
    rng = np.random.default_rng(0)
    for everything, test in folds:
        few = len(everything) <= MOST
        train = everything if few else rng.choice(everything, MOST, replace=False)
        found[test] = make().fit(X[train], y[train]).predict_proba(X[test])[:, 1]
    return found


def _claim_text() -> Pipeline:
    """TF-IDF of the question's words, the words before the claim, and its own words and letters."""
    return from_texts(
        [
            ("question", words(20_000), QUESTION),
            ("before", words(20_000), PRECEDING),
            ("claim", letters(1, 3), CLAIM),
        ]
    )


def _of_type() -> Pipeline:
    """How often claims of a type are contradicted; for a new type, how often any claim is."""
    return make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(C=10.0, max_iter=2000)
    )
