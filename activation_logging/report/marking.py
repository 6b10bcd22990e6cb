"""The tokens of an answer cut where spans begin and end, so that both can be shown at once."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WORST_FIRST = ("contradicted", "unverifiable", "supported")
"""Of spans that overlap, the first of these says how the text is underlined."""


class Piece(NamedTuple):
    """A part of a token: its text, the label of the spans around it, and those that end with it."""

    text: str
    label: str | None
    ends: str


class Marked(NamedTuple):
    """A token with its pieces, and the indices of the spans that it touches."""

    score: float | None
    logprob: float | None
    pieces: Sequence[Piece]
    spans: Sequence[int]


def marked(example: Mapping[str, Any]) -> list[Marked]:
    """The tokens that have a text.

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
    for token, begin, end in zip(tokens, begins, ends, strict=False):
        if begin == end:
            continue
        touching = [n for n, (first, last) in enumerate(within) if first < end and last > begin]
        cuts = {begin, end, *(at for n in touching for at in within[n] if begin < at < end)}
        places = sorted(cuts)
        pieces = [
            _piece(token["text"][a - begin : b - begin], a, b, spans, within)
            for a, b in pairwise(places)
        ]
        found.append(Marked(token["score"], token["logprob"], pieces, touching))
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
