"""Years, periods and dates in an English text.

Years before Christ are negative: 44 BC is -44, and there is no year 0.
"""

from __future__ import annotations

import re
from calendar import monthrange
from typing import NamedTuple

from activation_logging.judges.values.found import Found, disjoint, is_vague, outside

_ERA = r"(?:B\.C\.E\.|BCE|B\.C\.|BC|A\.D\.|AD|C\.E\.|CE)(?![A-Za-z])"
_DASH = r"\s*(?:[-\u2010-\u2015\u2212]|to|until|and)\s*"
_UNIT_AFTER = (
    r"[\s\u00a0-]*(?:%|\u00b0|(?:k?m|cm|mm|ft|kg|K|mi|sq|km2|(?:kilo|centi|milli)?met(?:re|er)s?|feet|"
    r"foot|miles?|yards?|square|kilograms?|grams?|tons?|tonnes?|degrees?|kelvins?|percent|per cent|"
    r"people|inhabitants|residents|men|soldiers|species|islands|years?|days?|hours?|times|members|"
    r"students|million|billion|thousand|dollars|euros|pages|words|copies)\b)"
)
_YEAR = re.compile(
    rf"(?:(?<![\w.,/$\u20ac\u00a3#])|(?<=\d/)(?=\d{{4}}))(?:(?P<before>A\.?D\.?|C\.?E\.?)\s?)?"
    rf"(?P<number>\d{{1,4}})(?:/(?P<other>\d{{1,4}}))?(?:[\s\u00a0]?(?P<after>{_ERA}))?"
    rf"(?!\w|[.,]\d|'s\b|/\d)"
)
_YEAR_AHEAD = re.compile(r"\b(?:year|anno|A\.?D\.?)\s$|\b[Ii]n\s$")
_CLAUSE_END = re.compile(r"\s*(?:[.,;)]|$)")
_RANGE_END = re.compile(rf"{_DASH}(?:c\. ?)?(?:\d{{1,4}}/)?\d{{1,4}}[\s\u00a0]?(?P<era>{_ERA})")
_SHORT_END = re.compile(r"[-\u2010-\u2015](?P<digits>\d\d)(?!\d|[-\u2010-\u2015.,/]\d|\w)")
_RANGE_OF_UNITS = re.compile(rf"{_DASH}[\d.,]+{_UNIT_AFTER}")
_MEASURED = re.compile(_UNIT_AFTER)
_FIRST, _LAST = 1000, 2099

_DECADE = re.compile(r"(?<![\w.,])(\d{3}0)'?s\b")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", "twenty-first",
)  # fmt: skip
_CENTURY = re.compile(
    rf"\b(?:(?P<digits>\d{{1,2}})(?:st|nd|rd|th)|(?P<word>{'|'.join(_ORDINALS)}))"
    rf"[\s-]century(?:\s(?P<era>{_ERA}))?",
    re.IGNORECASE,
)

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_NUMBER_OF = {
    form: number
    for number, month in enumerate(_MONTHS, 1)
    for name in (month, month[:3], *(("Sept",) if number == 9 else ()))
    for form in (name, name.upper())
}
_MONTH = rf"(?P<month>{'|'.join(sorted(_NUMBER_OF, key=len, reverse=True))})\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_OF_YEAR = rf"(?P<year>\d{{1,4}})(?:\s(?P<era>{_ERA}))?(?![\w])(?![.,]\d)"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.,/-])(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?![\w-])",
        rf"(?<![\w.,/]){_DAY}\s(?:of\s)?{_MONTH}(?:,?\s{_OF_YEAR})?",
        rf"\b{_MONTH}\s{_DAY}\b(?!,?\d)(?:,?\s{_OF_YEAR})?",
        rf"\b{_MONTH}(?:,|\sof)?\s(?P<year>\d{{4}})(?!\w|[.,]\d)",
        r"(?<![\w.,/-])(?P<day>\d{1,2})\.\s?(?P<month>\d{1,2})\.\s?(?P<year>\d{4})(?!\w)",
        r"(?<![\w.,/-])(?P<one>\d{1,2})/(?P<two>\d{1,2})/(?P<year>\d{4})(?![\w/])",
    )
)


class Period(NamedTuple):
    """Years from ``first`` to ``last``, both in it."""

    first: int
    last: int

    def __contains__(self, year: object) -> bool:
        return isinstance(year, int) and self.first <= year <= self.last


class Date(NamedTuple):
    """A day, or a month of a year; ``year`` or ``day`` is None where the text does not say it."""

    year: int | None
    month: int
    day: int | None

    def agrees(self, other: Date) -> bool:
        """Whether the two can be the same day: what both say is the same."""
        pairs = zip(self, other, strict=True)
        return all(None in pair or pair[0] == pair[1] for pair in pairs)


def find_years(text: str, *, bare: bool = False) -> list[Found[int]]:
    """The years that a text names, those of its dates among them.

    Args:
        text: in English.
        bare: take numbers of one to three digits for years too, as in an answer to "in what year".
    """
    dates = find_dates(text)
    plain: list[Found[int]] = []
    for match in _YEAR.finditer(text):
        era = match["before"] or match["after"]
        if not era and (later := _RANGE_END.match(text, match.end())):
            era = later["era"]
        number = int(match["number"])
        if number and (bare or _is_year(text, match, era)):
            year = -number if _is_before_christ(era) else number
            unsure = match["other"] is not None or is_vague(text, match.start())
            plain.append(Found(year, match.start(), match.end(), unsure))
            plain += _short_end(text, match.end(), year)
    in_dates = [one for date in dates if (one := _year_of(text, date))]
    return disjoint([*in_dates, *outside(plain, dates)])


def find_periods(text: str) -> list[Found[Period]]:
    """The decades and centuries that a text names; years are not among them."""
    found: list[Found[Period]] = []
    for match in _DECADE.finditer(text):
        first = int(match[1])
        # "the 1900s" is the century or its first ten years.
        length = 100 if first % 100 == 0 else 10
        found.append(Found(Period(first, first + length - 1), match.start(), match.end()))
    for match in _CENTURY.finditer(text):
        word = (match["word"] or "").lower()
        century = int(match["digits"]) if match["digits"] else _ORDINALS.index(word) + 1
        last = 100 * century
        is_before = _is_before_christ(match["era"])
        period = Period(-last, 99 - last) if is_before else Period(last - 99, last)
        if century:
            found.append(Found(period, match.start(), match.end()))
    return disjoint(found)


def find_dates(text: str) -> list[Found[Date]]:
    """The dates that a text names: days with or without a year, and months of a year.

    Of "3/4/1879" the order is not known, so it is no date; "25/4/1879" is one.
    """
    found: list[Found[Date | None]] = [
        Found(_date(match.groupdict()), *match.span(), is_vague(text, match.start()))
        for pattern in _DATES
        for match in pattern.finditer(text)
    ]
    # What looks like a date and is none hides what is inside: the February of "30 February".
    return [
        Found(one.value, one.start, one.end, one.approximate)
        for one in disjoint(found)
        if one.value is not None
    ]


def _date(parts: dict[str, str | None]) -> Date | None:
    """The date of a match's groups, if there is such a day."""
    month, day, year = parts.get("month"), parts.get("day"), parts.get("year")
    if parts.get("one"):
        one, two = int(parts["one"] or 0), int(parts["two"] or 0)
        if (one > 12) == (two > 12) and one != two:
            return None
        month, day = (str(two), str(one)) if one > 12 else (str(one), str(two))
    number = _NUMBER_OF.get(month or "") or int(month or 0)
    if not 1 <= number <= 12:
        return None
    # 1904 is a leap year: 29 February is a day of some years.
    if day is not None and not 1 <= int(day) <= monthrange(1904, number)[1]:
        return None
    signed = None
    if year is not None:
        signed = -int(year) if _is_before_christ(parts.get("era")) else int(year)
    return Date(signed, number, None if day is None else int(day))


def _is_year(text: str, match: re.Match[str], era: str | None) -> bool:
    """Whether a number is a year by its era, its four digits, or the words around it."""
    end = match.end()
    if era:
        return True
    if _MEASURED.match(text, end) or _RANGE_OF_UNITS.match(text, end):
        return False
    if len(match["number"]) == 4:
        return _FIRST <= int(match["number"]) <= _LAST
    ahead = _YEAR_AHEAD.search(text, max(0, match.start() - 12), match.start())
    # "in 742" may go on with what there were 742 of.
    return bool(ahead and (ahead[0].lower() != "in " or _CLAUSE_END.match(text, end)))


def _year_of(text: str, date: Found[Date]) -> Found[int] | None:
    if date.value.year is None:
        return None
    pattern = re.compile(rf"(?<!\d){abs(date.value.year)}(?!\d)(?:\s{_ERA})?")
    match = list(pattern.finditer(text, date.start, date.end))[-1]
    return Found(date.value.year, match.start(), match.end(), date.approximate)


def _short_end(text: str, end: int, year: int) -> list[Found[int]]:
    """The second year of "1914-18"."""
    short = _SHORT_END.match(text, end) if year >= _FIRST else None
    second = year - year % 100 + int(short["digits"]) if short else 0
    return [Found(second, *short.span("digits"))] if short and second > year else []


def _is_before_christ(era: str | None) -> bool:
    return (era or "").upper().startswith("B")
