"""A few answers, token by token: what was judged in them, and how likely each token was.

A probe of answers says nothing about tokens: applied to each of them, one that reads the largest
values of an answer calls nearly every token hallucinated. So tokens are coloured by a probe of
tokens, or by the model's own log-probability, which is then named as such.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing
from activation_logging.tags import ANSWER, GOLD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from activation_logging.detectors.results import Study
    from activation_logging.records import Span
    from activation_logging.report.colours import Coloured
    from activation_logging.store import Entry

PER_KIND = 3
MAX_TOKENS = 400


def answer_examples(study: Study, colour: Callable[[Entry], Coloured]) -> list[dict[str, Any]]:
    """The most telling answers of each kind.

    The kinds are ``caught``, ``missed``, ``cleared`` and ``false alarm``: what the probe of answers
    makes of each, fitted without it.

    Args:
        study: the study of answers.
        colour: what is known of an answer's tokens.
    """
    examples, scores = study.examples, study.cell_scores[study.place]
    return [
        example(
            examples.store[examples.keys[row]],
            examples.label,
            colour,
            kind=kind,
            probability=round(float(scores.probability[row]), 4),
        )
        for kind, rows in _choose(examples.y, scores.probability, examples.groups).items()
        for row in rows
    ]


def example(
    entry: Entry, label: str, colour: Callable[[Entry], Coloured], **more: Any
) -> dict[str, Any]:
    """One answer as the page shows it.

    Args:
        entry: the answer.
        label: whose label and spans are shown.
        colour: what is known of its tokens.
        more: further fields.
    """
    coloured = colour(entry)
    verdict = entry.evaluations[label]
    return {
        "key": entry.key,
        "label": verdict.label,
        "question": _question(entry),
        "expected": next((entry.tags[n] for n in (ANSWER, GOLD) if n in entry.tags), None),
        "coloured_by": coloured.by,
        "tokens": _tokens(entry, coloured.scores),
        "spans": [shown_span(entry, span, coloured.scores) for span in verdict.spans],
        "texts_logged": entry.response_tokens is not None,
        "exact": "".join(entry.response_tokens or ()) == entry.response,
        "cut": len(entry.response_token_ids) > MAX_TOKENS,
        **more,
    }


def _choose(
    y: npt.NDArray[np.int64], p: npt.NDArray[np.float64], groups: npt.NDArray[np.str_]
) -> dict[str, list[int]]:
    chosen = {}
    for kind, positive, rising in (
        ("caught", 1, False),
        ("missed", 1, True),
        ("cleared", 0, True),
        ("false alarm", 0, False),
    ):
        rows = np.flatnonzero(y == positive)
        order = rows[np.argsort(p[rows] if rising else -p[rows], kind="stable")]
        chosen[kind] = order[first_of_groups(groups[order])].tolist()
    return chosen


def first_of_groups(groups: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """The first few places at which another group begins, in order.

    One answer per entity: six capitals of one country would show nothing more.
    """
    _, first = np.unique(groups, return_index=True)
    return np.sort(first)[:PER_KIND]


def _tokens(entry: Entry, scores: Sequence[float | None]) -> list[dict[str, Any]]:
    texts, logprobs = entry.response_tokens or [], entry.logprobs or []
    tokens = []
    for index, token in enumerate(entry.response_token_ids[:MAX_TOKENS]):
        logprob = logprobs[index] if index < len(logprobs) else None
        tokens.append(
            {
                "text": texts[index] if index < len(texts) else f"#{token} ",
                "score": _rounded(scores[index] if index < len(scores) else None),
                "logprob": None if logprob is None else round(max(logprob, -100.0), 4),
            }
        )
    return tokens


def shown_span(entry: Entry, span: Span, scores: Sequence[float | None]) -> dict[str, Any]:
    """A span with its text, its tokens, and the highest of their scores.

    ``tokens`` is None where the places of the tokens are not known.
    """
    try:
        tokens = entry.span_tokens(span).tolist()
    except InputMissing:
        tokens = None
    found = _known(scores[index] for index in tokens or () if index < len(scores))
    return {
        "claim": None,
        "gold": None,
        **span.as_json(),
        "text": entry.response[span.start : span.end],
        "tokens": tokens,
        "score": _rounded(max(found, default=None)),
    }


def _known(scores: Iterable[float | None]) -> list[float]:
    return [score for score in scores if score is not None]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(float(score), 4)


def _question(entry: Entry) -> str:
    asked = entry.question
    return asked[-600:] if asked == entry.prompt else asked[:600]
