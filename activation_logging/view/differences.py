"""Two answers word by word: what one has that the other has not."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
"""With the blanks before it: alone they are no difference to a reader."""
MOST_PAIRS = 30_000
"""Pairs of equal words in two answers. Of more, as in an answer of 1,200 words or in one that says
the same again and again, a comparison takes seconds, then minutes."""


class Part(NamedTuple):
    """A piece of an answer, and whether the other answer lacks it."""

    text: str
    differs: bool


def compared(answer: str, other: str) -> Sequence[Part] | None:
    """The parts of ``other``; what ``answer`` does not have at that place differs.

    None where the comparison would take too long, see :data:`MOST_PAIRS`.
    """
    if answer == other:
        return [Part(other, differs=False)] if other else []
    shown = _WORD.findall(other)
    here, there = [word.strip() for word in _WORD.findall(answer)], [word.strip() for word in shown]
    numbers, others = Counter(here), Counter(there)
    if sum(number * others[word] for word, number in numbers.items()) > MOST_PAIRS:
        return None
    matcher = SequenceMatcher(None, here, there, autojunk=False)
    parts = []
    for tag, _, _, start, stop in matcher.get_opcodes():
        text = "".join(shown[start:stop])
        # The blanks before a difference are none.
        same = len(text) if tag == "equal" else len(text) - len(text.lstrip())
        parts += [Part(text[:same], differs=False), Part(text[same:], differs=True)]
    return [part for part in parts if part.text]
