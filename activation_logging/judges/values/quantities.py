"""Numbers with their units in an English text, and how units are converted."""

from __future__ import annotations

import re
from typing import NamedTuple

from activation_logging.judges.values.found import Found, disjoint, is_vague, outside
from activation_logging.judges.values.times import find_dates, find_periods, find_years
from activation_logging.judges.values.units import SPELLINGS, UNITS, Unit


class Quantity(NamedTuple):
    """A number and its unit; without a unit it is a count, a rank or a plain number."""

    number: float
    unit: Unit | None = None

    @property
    def sort(self) -> str | None:
        return self.unit.sort if self.unit else None

    @property
    def base(self) -> float:
        """The number in the first unit of its sort: metres, square metres, kelvins, kilograms."""
        return self.number * self.unit.factor + self.unit.zero if self.unit else self.number

    def to(self, unit: Unit) -> Quantity:
        """The same in another unit; a plain number takes the unit.

        >>> round(Quantity(29_032, UNITS["ft"]).to(UNITS["m"]).number)
        8849

        Raises:
            ValueError: it measures something else.
        """
        if self.unit is None:
            return Quantity(self.number, unit)
        if self.unit.sort != unit.sort:
            raise ValueError(f"{self.unit.name} cannot be converted to {unit.name}")
        return Quantity((self.base - unit.zero) / unit.factor, unit)


_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "bn": 1e9,
}  # fmt: skip
_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_LARGE = r"(?:hundred|thousand|million|billion)"
_WORD = rf"(?:{'|'.join(_SMALL)}|{_LARGE})"
_GROUPS = " '\u2019\u00a0\u2009\u202f"
_THOUSANDS = rf"\d{{1,3}}(?:(?:,\d{{3}})+|(?:[{_GROUPS}]\d{{3}})+)(?:\.\d+)?"
# Points between thousands, or a decimal comma, where no number of English has them.
_CONTINENTAL = (
    r"(?:\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,}"
    rf"|(?:[{_GROUPS}]\d{{3}})+,\d+)|\d+,\d{{1,2}})"
)
_TWO_READINGS = re.compile(r"\D*\d{1,3}[.,]\d{3}(?![.,]?\d)")
_SWAPPED = str.maketrans(".,", ",.")
_NUMBER = re.compile(
    r"(?<![\w.,/])(?P<money>US\$|\$|\u20ac)?\s?(?P<sign>[-\u2212]|\bminus\s)?"
    rf"(?P<digits>{_THOUSANDS}|{_CONTINENTAL}|\d+(?:\.\d+)?|\.\d+)"
    r"(?!\d|[.,]\d)(?:\s?[\u00d7x*]\s?10\^?(?P<power>[-\u2212]?\d+))?"
    r"(?:[\s\u00a0-](?P<scale>hundred|thousand|million|billion|trillion|bn)\b)?"
    r"(?!st\b|nd\b|rd\b|th\b|s\b|'s\b)",
    re.IGNORECASE,
)
_WORDS = re.compile(
    rf"(?<![\w.,-])(?P<words>(?:a\s(?={_LARGE})|(?!{_LARGE})){_WORD}(?:(?:[\s-]|\sand\s){_WORD})*)\b",
    re.IGNORECASE,
)
_FEET = re.compile(
    r"(?<![\w.,])(?P<feet>\d{1,2})(?:\s?(?:ft|feet|foot)\s|['\u2032\u2019]\s?)"
    r"(?P<inches>\d{1,2}(?:\.\d+)?)(?:\s?(?:in(?:ches)?\b|\"|\u2033|\u201d))"
)
_AS_WRITTEN = "|".join(
    f"(?P<s{index}>(?:{symbols})(?![\\w\u00b2\u00b3/]))"
    for index, (_, symbols, _) in enumerate(SPELLINGS)
)
_AS_WORDS = "|".join(
    f"(?P<w{index}>(?i:{words})\\b(?! per\\b))" for index, (*_, words) in enumerate(SPELLINGS)
)
_UNIT = re.compile(rf"[\s\u00a0]?-?(?:{_AS_WORDS}|{_AS_WRITTEN})")
_RANGE = re.compile(r"\s*(?:[-\u2010-\u2015]|to|and|or)\s*$")
_UNIT_OF_MONEY = {"$": UNITS["$"], "us$": UNITS["$"], "\u20ac": UNITS["\u20ac"]}


def find_quantities(text: str, *, years: bool = False) -> list[Found[Quantity]]:
    """The numbers that a text names, in digits or in words, each with its unit.

    The first of "300 to 400 m" takes the unit of the second. "5 ft 11 in" is one quantity.

    Args:
        text: in English.
        years: take plain numbers that look like years, or belong to a date, too.
    """
    found = _with_ranges(text, _with_units(text))
    if years:
        return found
    times = (*find_years(text), *find_dates(text), *find_periods(text))
    bare = outside((one for one in found if one.value.unit is None), times)
    return disjoint([*(one for one in found if one.value.unit), *bare])


def other_reading(text: str, one: Found[Quantity]) -> Quantity | None:
    """What "8.849 m" or "55,845 u" says in the languages that have points and commas the other way.

    Args:
        text: where the quantity was found.
        one: the quantity as English reads it.

    Returns:
        None for a number that has one reading only.
    """
    said = one.text_in(text)
    if not _TWO_READINGS.match(said):
        return None
    found = find_quantities(said.translate(_SWAPPED), years=True)
    return found[0].value if found else None


def _with_units(text: str) -> list[Found[Quantity]]:
    found = [_feet(text, match) for match in _FEET.finditer(text)]
    spaced = text.replace("\u00a0", " ").replace("\u202f", " ")
    for match in (*_NUMBER.finditer(text), *_WORDS.finditer(text)):
        parts = match.groupdict()
        number = _in_words(parts["words"]) if "words" in parts else _in_digits(parts)
        start = match.end() - len(match[0].lstrip())
        end = match.end()
        unit = _UNIT_OF_MONEY.get((parts.get("money") or "").lower())
        if unit is None and (after := _UNIT.match(spaced, end)):
            unit, end = SPELLINGS[int((after.lastgroup or "")[1:])][0], after.end()
        if text[start:end].lower() != "one":  # a pronoun
            found.append(Found(Quantity(number, unit), start, end, is_vague(text, start)))
    return disjoint(found)


def _feet(text: str, match: re.Match[str]) -> Found[Quantity]:
    feet = float(match["feet"]) + float(match["inches"]) / 12
    return Found(Quantity(feet, UNITS["ft"]), *match.span(), is_vague(text, match.start()))


def _with_ranges(text: str, found: list[Found[Quantity]]) -> list[Found[Quantity]]:
    """A number without a unit takes that of the number to which a range goes on."""
    made = list(found)
    for place in range(len(made) - 2, -1, -1):
        one, after = made[place], made[place + 1]
        between = text[one.end : after.start]
        if one.value.unit is None and after.value.unit and _RANGE.fullmatch(between):
            value = Quantity(one.value.number, after.value.unit)
            made[place] = Found(value, one.start, one.end, approximate=True)
    return made


def _in_digits(parts: dict[str, str | None]) -> float:
    digits = parts["digits"] or ""
    if re.fullmatch(_CONTINENTAL, digits):
        digits = digits.translate(_SWAPPED)
    digits = re.sub(rf"[,{_GROUPS}]", "", digits)
    # As one text: what is too large is infinite then, where a power of Python's is refused.
    power = (parts["power"] or "0").replace("\u2212", "-")
    number = float(f"{digits}e{power}") * _SCALES.get((parts["scale"] or "").lower(), 1.0)
    return -number if parts["sign"] else number


def _in_words(words: str) -> float:
    """The number that such words say: 206 of "two hundred and six"."""
    total = part = 0.0
    for word in re.split(r"[\s-]+", words.lower()):
        if word in _SMALL:
            part += _SMALL[word]
        elif word == "hundred":
            part = max(part, 1.0) * 100
        elif word in _SCALES:
            total += max(part, 1.0) * _SCALES[word]
            part = 0.0
    return total + part
