"""Texts made comparable, or short."""

from __future__ import annotations

import re
import unicodedata

# Letters that do not decompose, and the apostrophes of GeoNames.
_SPECIAL = str.maketrans(
    dict(zip("øđðłħı", "oddlhi", strict=True))
    | {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th"}
    | dict.fromkeys("\u2019\u02bb\u02bc", "'")
)
_APOSTROPHE = re.compile(r"(?<=\w)['`](?=\w)")
_NOT_WORD = re.compile(r"[\W_]+")


def fold(text: str) -> str:
    """Lower case, accents and apostrophes gone, words separated by single blanks.

    >>> fold("São Tomé, N'Djamena / Ulan-Bator")
    'sao tome ndjamena ulan bator'
    """
    if text.isascii():
        return _NOT_WORD.sub(" ", _APOSTROPHE.sub("", text.lower())).strip()
    decomposed = unicodedata.normalize("NFKD", text.casefold().translate(_SPECIAL))
    plain = "".join(mark for mark in decomposed if not unicodedata.combining(mark))
    return _NOT_WORD.sub(" ", _APOSTROPHE.sub("", plain)).strip()


def brief(text: object, length: int = 200) -> str:
    """A text, or what an error says, on one line of at most ``length`` characters.

    >>> brief("one  two", 5)
    'one …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
