"""Two answers word by word: what one has that the other has not."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 4000
"""Longer answers are not compared: it takes the product of their lengths."""


class Part(NamedTuple):
    """A piece of an answer, and whether the other answer lacks it."""

    text: str
    differs: bool


def compared(answer: str, other: str) -> Sequence[Part]:
    """The parts of ``other``; what ``answer`` does not have at that place differs."""
    here, there = _WORD.findall(answer), _WORD.findall(other)
    if max(len(here), len(there)) > MOST_WORDS:
        return [Part(other, differs=False)]
    matcher = SequenceMatcher(None, here, there, autojunk=False)
    parts = [
        Part("".join(there[start:stop]), tag != "equal")
        for tag, _, _, start, stop in matcher.get_opcodes()
        if stop > start
    ]
    # Blanks alone are no difference to a reader.
    return [Part(part.text, part.differs and not part.text.isspace()) for part in parts]
