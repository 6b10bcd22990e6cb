"""Names of a table found in a text: places with their other names, capitals, occupations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from activation_logging.judges.values.found import Found
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")

# A word with its accents, also those that are characters of their own, and inner apostrophes.
_LETTER = r"(?:[^\W_]|[\u0300-\u036f])"
_WORD = re.compile(rf"{_LETTER}+(?:['\u2019`]{_LETTER}+)*")
_MAX_WORDS = 9


def find_names(text: str, names: Mapping[str, _T], *, capitalised: bool = False) -> list[Found[_T]]:
    """The longest name at each place, none inside another: "Guinea" not in "Papua New Guinea".

    Args:
        text: in any case, with or without accents.
        names: name as :func:`~activation_logging.text.fold` makes it -> what it stands for.
        capitalised: only what begins with a capital letter, so that "nice" is no city.
    """
    words = [(fold(match.group()), match.start(), match.end()) for match in _WORD.finditer(text)]
    found: list[Found[_T]] = []
    place = 0
    while place < len(words):
        start = words[place][1]
        for length in range(min(_MAX_WORDS, len(words) - place), 0, -1):
            name = " ".join(word for word, _, _ in words[place : place + length])
            if name in names and not (capitalised and text[start].islower()):
                found.append(Found(names[name], start, words[place + length - 1][2]))
                place += length - 1
                break
        place += 1
    return found
