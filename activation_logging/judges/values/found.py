"""A value at its place in a text, and what all sorts of values share."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

_ABOUT = re.compile(
    r"(?:\b(?:c|ca)\.|~|\u2248|\b(?:c|circa|about|around|approximately|approx\.?|roughly|nearly|"
    r"almost|some|perhaps|possibly|probably|maybe|over|under|more than|less than|at least|up to|"
    r"sometime in|before|after|by))\s*(?:the (?:year )?)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Found(Generic[_T_co]):
    """A value, and the characters ``[start, end)`` of the text that say it.

    ``approximate`` says that the text does not commit itself: "around 1500", "1525/26". The word
    before the value is not among its characters.
    """

    value: _T_co
    start: int
    end: int
    approximate: bool = False

    def text_in(self, text: str) -> str:
        """The words that say the value, of the text that it was found in."""
        return text[self.start : self.end]


def disjoint(found: Iterable[Found[_T]]) -> list[Found[_T]]:
    """In the text's order, without those that begin inside another; of two, the longer one."""
    kept: list[Found[_T]] = []
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def outside(found: Iterable[Found[_T]], others: Iterable[Found[object]]) -> list[Found[_T]]:
    """Those that share no character with any of the others."""
    covers = disjoint(others)
    starts = [cover.start for cover in covers]
    kept = []
    for one in found:
        place = bisect_left(starts, one.end) - 1  # the last that begins before this one's end
        if place < 0 or covers[place].end <= one.start:
            kept.append(one)
    return kept


def is_vague(text: str, start: int) -> bool:
    """Whether the words before a place say that what follows is approximate."""
    return _ABOUT.search(text, max(0, start - 30), start) is not None
