"""Dates as parts of longer patterns, and how close a number is to the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.records import SpanLabel

MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan\.?|Feb\.?|Mar\.?|Apr\.?|Jun\.?|Jul\.?|Aug\.?|Sept?\.?|Oct\.?|Nov\.?|Dec\.?)"
)
YEAR = r"(?<![\d,.])(?:1\d{3}|20[0-4]\d)(?![\d%]|,\d|\.\d|s\b)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
DATE = rf"(?:(?P<day>{MONTH} {_DAY}|{_DAY}(?: of)? {MONTH}|{MONTH}),? (?:of )?)?(?P<year>{YEAR})"
"""A year, and the day or month before it where there is one."""


def within(said: float, right: Sequence[float], near: float, far: float) -> SpanLabel:
    """How a number compares with what is right.

    Args:
        said: the number.
        right: what is right; anything between the least and the greatest is.
        near: up to this share off it is supported.
        far: beyond this share off it is contradicted; between the two nobody can say.
    """
    if not right:
        return "unverifiable"
    low, high = min(right), max(right)
    off = max((low - said) / max(abs(low), 1e-9), (said - high) / max(abs(high), 1e-9))
    return "supported" if off <= near else "contradicted" if off > far else "unverifiable"
