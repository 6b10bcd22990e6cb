"""Texts made comparable, short, or read as what they mean."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from activation_logging.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Letters that do not decompose, and the apostrophes of GeoNames.
_SPECIAL = str.maketrans(
    dict(zip("øđðłħı", "oddlhi", strict=True))
    | {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th"}
    | dict.fromkeys("\u2019\u02bb\u02bc", "'")
)
_APOSTROPHE = re.compile(r"(?<=\w)['`](?=\w)")
_NOT_WORD = re.compile(r"[\W_]+")
_TO_BLANKS = {code: " " for code in range(128) if not chr(code).isalnum()}


def fold(text: str) -> str:
    """Lower case, accents and apostrophes gone, words separated by single blanks.

    >>> fold("São Tomé, N'Djamena / Ulan-Bator")
    'sao tome ndjamena ulan bator'
    """
    if text.isascii():  # the same as below; without apostrophes six times as fast
        plain = text.lower()
        if "'" in plain or "`" in plain:
            plain = _APOSTROPHE.sub("", plain)
        return " ".join(plain.translate(_TO_BLANKS).split())
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


def last_part(path: str) -> str:
    """The last part of a model's name or path.

    >>> last_part("org/tiny/")
    'tiny'
    """
    return path.rstrip("/").rpartition("/")[2]


_MAX_SHOWN = 80


def shown(value: Any) -> str:
    """A value as an error shows it: short, and made of nothing that can be deep or endless."""
    if isinstance(value, str):
        text = repr(value[:_MAX_SHOWN])
        whole = len(value) <= _MAX_SHOWN and len(text) <= _MAX_SHOWN
        return text if whole else f"{text[:_MAX_SHOWN]}..."
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**_MAX_SHOWN:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def ranges(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers, with those that follow each other as one range: ``["0-3", "7"]``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ["-".join(map(str, part)) for part in parts]


_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGTP]?)(i?)B", re.IGNORECASE)
_PREFIXES = " KMGTP"


def parse_size(text: str) -> int:
    """A number of bytes: ``200GB`` is 200 * 1000 ** 3, ``1.5 GiB`` is 1.5 * 1024 ** 3.

    Raises:
        SettingsError: it has no unit, or is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise SettingsError(f"{shown(text)} is not a size with its unit, such as 200GB or 512MiB")
    power = _PREFIXES.index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
