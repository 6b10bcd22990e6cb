"""The tokens of an answer cut where spans begin and end, so that both can be shown at once."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WORST_FIRST = ("contradicted", "unverifiable", "supported")
"""Of spans that overlap, the first of these says how the text is underlined."""


PROBED = ("study", "probe", "fitted probe")
"""What colours tokens by a probability."""

LEVELS = 20
"""Shades of one colour; ``page.css`` has a rule for each."""
_UNLIKELY = -5.0
"""The log-probability from which on a token has the deepest shade."""


class Piece(NamedTuple):
    """A part of a token: its text, the label of the spans around it, and those that end with it."""

    text: str
    label: str | None
    ends: str


class Marked(NamedTuple):
    """A token with its pieces, and the indices of the spans that it touches.

    ``level`` is what else colours it, from 0 to 1; ``place`` is its index in the answer.
    """

    score: float | None
    logprob: float | None
    pieces: Sequence[Piece]
    spans: Sequence[int]
    level: float | None = None
    place: int = 0


def shade(of: Marked, by: str) -> str:
    """The classes that colour a token, to follow others; nothing for one without a number.

    Args:
        of: the token.
        by: ``logprob``, ``level``, or one of :data:`PROBED`.
    """
    if by in PROBED and of.score is not None:
        return _classes("positive" if of.score >= 0.5 else "negative", abs(2 * of.score - 1))
    if by == "logprob" and of.logprob is not None:
        return _classes("unlikely", min(of.logprob / _UNLIKELY, 1.0))
    if by == "level" and of.level is not None:
        return _classes("unlikely", min(max(of.level, 0.0), 1.0))
    return ""


def _classes(kind: str, share: float) -> str:
    level = round(LEVELS * share)
    return f" {kind} level-{level}" if level > 0 else ""


def marked(example: Mapping[str, Any]) -> list[Marked]:
    """The tokens that have a text, with their places in the answer.

    Where the tokens' texts do not add up to the answer, as in stores of version 0.1, a span marks
    the whole of each of its tokens.

    Args:
        example: what :func:`activation_logging.report.examples.example` returns.
    """
    tokens, spans = example["tokens"], example["spans"]
    ends = list(accumulate(len(token["text"]) for token in tokens))
    begins = [0, *ends]
    within = [_within(span, begins, ends, example["exact"]) for span in spans]
    found = []
    for index, (token, begin, end) in enumerate(zip(tokens, begins, ends, strict=False)):
        if begin == end:
            continue
        touching = [n for n, (first, last) in enumerate(within) if first < end and last > begin]
        cuts = {begin, end, *(at for n in touching for at in within[n] if begin < at < end)}
        places = sorted(cuts)
        pieces = [
            _piece(token["text"][a - begin : b - begin], a, b, spans, within)
            for a, b in pairwise(places)
        ]
        level = token.get("level")
        found.append(Marked(token["score"], token["logprob"], pieces, touching, level, index))
    return found


def _within(
    span: Mapping[str, Any], begins: Sequence[int], ends: Sequence[int], exact: bool
) -> tuple[int, int]:
    """Where a span is in the joined texts of the tokens."""
    if exact:
        return span["start"], span["end"]
    shown = [index for index in span["tokens"] or () if index < len(ends)]
    return (begins[shown[0]], ends[shown[-1]]) if shown else (0, 0)


def _piece(
    text: str,
    begin: int,
    end: int,
    spans: Sequence[Mapping[str, Any]],
    within: Sequence[tuple[int, int]],
) -> Piece:
    around = [n for n, (first, last) in enumerate(within) if first < end and last > begin]
    labels = {spans[n]["label"] for n in around}
    return Piece(
        text,
        next((label for label in WORST_FIRST if label in labels), None),
        _numbers(n for n in around if within[n][1] == end),
    )


def _numbers(spans: Iterable[int]) -> str:
    """Their numbers in the list, from 1."""
    return " ".join(str(number + 1) for number in spans)
