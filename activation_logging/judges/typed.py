"""The ``typed`` judge of short answers whose right one is a year, a number or a place.

The sort of the question says which: one that ends with "year" ("birth year") has a year, one whose
right answer is a number ("8849 m") a number, any other a name. The first value of that sort counts,
sentence by sentence, except

- one that is negated ("not 1879 but 1880"), taken back ("1880. No, 1879.") or corrected ("in 1856,
  but it actually began in 1853"), or that dates what the writer knows ("as of 2021");
- what may be the beginning of a year that was cut off at the end of the answer ("he died in 18");
- of a birth or a death the year of the other: "born in 1756 and died in 1791", "(1756-1791)";
- a number of the question itself, and a number in a unit that measures something else. Of a number
  that languages read in two ways ("8.849 m") the reading nearer to the right answer counts.

The verdict, in this order:

1. The value is right, and no other one is offered beside it by "or": ``correct``. A year must be
   the very year. A number may be off by :data:`TOLERANCES`; one without a unit has the unit that
   was asked for. A place may go by any of its names, as in :mod:`.gold`, and by an adjective with
   a noun ("the Indian state of") where the table of names has it.
2. It is wrong, or several are offered: ``hallucinated``.
3. There is none, and the answer says that it does not know: ``refused``.
4. There is none, and the answer denies that there is such a thing, or that the dead have died:
   ``hallucinated``.
5. There is a decade or a century instead of a year: ``hallucinated`` if it is the wrong one, else
   ``invalid``, for it evades the question. So does an answer without any value; for a place whose
   possible answers are not all known, that is a wrong place (``hallucinated``).

The details say which characters the value is (``answer_start``, ``answer_end``), for right and for
wrong ones, and what it is (``value``; numbers in the unit that was asked for); of a year how far it
is ``off`` and whether it is ``within_1``, ``within_5`` and ``within_10``; of a number the
``relative_error``. Of an answer that denies they say which sentence does.
"""

from __future__ import annotations

import math
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.judges.given import given_answer, given_denial
from activation_logging.judges.gold import DENIAL, judge_name
from activation_logging.judges.negation import settled
from activation_logging.judges.registry import Judge
from activation_logging.judges.rules import denies, says_ignorance
from activation_logging.judges.values import (
    Found,
    Quantity,
    find_periods,
    find_quantities,
    find_years,
    other_reading,
)
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from activation_logging.records import Label

VERSION = "typed/4"

YEAR_TOLERANCES = (1, 5, 10)
"""Within how many years an answer is, in the details; only the very year is correct."""

TOLERANCES: dict[str | None, float] = {
    None: 0.0,  # counts, such as atomic numbers
    "length": 0.01,  # surveys of one mountain differ by less, 100 feet from the next guess by more
    "area": 0.03,  # with and without inland waters
    "temperature": 0.01,
    "mass": 0.01,
    "atomic mass": 0.002,  # neighbours in the periodic table differ by 0.4 % or more
}
"""What part of the right number an answer may be off by, for each sort of unit."""
_TOLERANCE = 0.01  # of other sorts
_NEAR = 200  # characters around a value that may say what it is
_ROUNDING = 1e-9  # of floating point

_BORN, _DIED = (
    r"born|birth",
    r"died|death|dies|dead|passed away|killed|executed|murdered|assassinated",
)
_CUES = {
    "birth year": (re.compile(rf"\b(?:{_BORN})\b"), re.compile(rf"\b(?:{_DIED})\b")),
    "death year": (re.compile(rf"\b(?:{_DIED})\b"), re.compile(rf"\b(?:{_BORN})\b")),
}
_TO = re.compile(r"\s*[-\u2010-\u2015]\s*$")
_OR = re.compile(
    r"\s*(?:,?\s?or(?: in| the year| perhaps| maybe| possibly| probably| around| about)*|/)\s*$",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"\s*1[.)]\s+(?=\D{0,40}\d)")  # of a list whose first number answers
_ASIDE = re.compile(
    r"\b(?:as of|updated?(?: in| of)?|(?:cut-?off|knowledge|training|my data)\b.*)\s(?:\w+\s)?$",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"[^.;]{0,80}?\bbut\b[^.;]{0,40}?\b(?:actually|in fact|really|in reality)\b[^.;]*\d",
    re.IGNORECASE,
)
_CUT = re.compile(r"\d{1,3}\s*")  # up to the end of an answer
_ALIVE = re.compile(
    r"\bstill (?:alive|living)\b|\b(?:has|have|had|did)(?: not|n't) (?:yet )?(?:died?|passed)\b|"
    r"\b(?:is|was)(?: not|n't) (?:yet )?dead\b|\bis alive\b",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """What an answer amounts to, why, and what else was found."""

    label: Label
    words: str
    details: dict[str, Any]


def typed_judge(names: Callable[[str], Mapping[str, str]]) -> Judge:
    """A judge for questions whose answer is a year, a number or a name.

    Args:
        names: from the sort of a question to folded name -> what it means, for every name that an
            answer could have; empty where any word may be one.
    """

    def decide(answer: Answer) -> Verdict:
        found = judge_value(answer, names)
        return Verdict.on(answer, found.label, VERSION, found.words, details=found.details or None)

    return Judge(VERSION, decide, kinds=("fact",))


TYPED = typed_judge(lambda sort: {})  # noqa: ARG005 - knows the right names and no wrong one


def judge_value(answer: Answer, names: Callable[[str], Mapping[str, str]]) -> Finding:
    """Label one answer; see the module's description."""
    if not re.search(r"\w", answer.generation):
        return Finding("invalid", "the answer has no words", {})
    if not answer.gold:
        return Finding("invalid", "the question has no right answer to compare with", {})
    year = find_years(answer.gold[0], bare=True) if answer.type.endswith("year") else []
    if year:
        found = _judge_year(answer, year[0].value)
    elif (number := _number(answer.gold[0])) is not None:
        found = _judge_number(answer, number)
    else:
        return _judge_place(answer, names(answer.type))
    return found or _without_value(answer.generation, "gives no value of the kind asked for")


# --- years ---------------------------------------------------------------------------


def _judge_year(answer: Answer, right: int) -> Finding | None:
    text = answer.generation
    is_short = not re.search(r"[^\W\d_]", text)

    def find(sentence: str) -> list[Found[int]]:
        found = find_years(sentence, bare=is_short)
        return [year for year in found if _counts(answer, sentence, year)]

    for start, sentence, given in settled(text, find):
        years = [
            (year, _relevance(answer.type, sentence, year))
            for year in given
            if is_short or not _is_cut(text, start + year.start)
        ]
        # "He won a prize in 1921 and was born in 1879": what is said to be the birth's goes first.
        best = max((relevance for _, relevance in years), default=0)
        if best:
            chosen = [year for year, relevance in years if relevance == best]
            return _year_finding(right, sentence, start, chosen)
    if says_ignorance(text) or denies(text):
        return None
    if answer.type == "death year" and (match := _ALIVE.search(text)):
        details = {**_at(*match.span()), "value": "alive"}
        return Finding("hallucinated", "says that the person is alive", details)
    return _judge_period(text, right)


def _year_finding(right: int, sentence: str, start: int, years: list[Found[int]]) -> Finding:
    first = years[0]
    off = first.value - right
    details = {
        **_at(start + first.start, start + first.end),
        "value": first.value,
        "off": off,
        **{f"within_{years}": abs(off) <= years for years in YEAR_TOLERANCES},
    }
    is_split = "/" in first.text_in(sentence)  # "1879/1880"
    if is_split or (len(years) > 1 and _OR.fullmatch(sentence[first.end : years[1].start])):
        return Finding("hallucinated", f"does not settle on {first.value}", details)
    if off:
        return Finding("hallucinated", f"answers {first.value}, off by {abs(off)}", details)
    return Finding("correct", f"answers {first.value}", details)


def _is_cut(text: str, start: int) -> bool:
    return _CUT.fullmatch(text, start) is not None


def _relevance(sort: str, sentence: str, year: Found[int]) -> int:
    """2 for a year said to be that of the birth or death asked about, 0 of the other, else 1."""
    if sort not in _CUES:
        return 1
    before = sentence[max(0, year.start - _NEAR) : year.start].lower()
    after = sentence[year.end : year.end + _NEAR]
    wanted, other = (
        max((match.end() for match in cue.finditer(before)), default=0) for cue in _CUES[sort]
    )
    if wanted or other:
        return 2 if wanted > other else 0
    # "(1756-1791)": the first is the birth's, the second the death's.
    is_second = _TO.search(before) is not None and bool(find_years(before, bare=True))
    is_first = re.match(r"\s*[-\u2010-\u2015]\s*\d", after) is not None
    return 0 if (is_first if sort == "death year" else is_second) else 1


def _judge_period(text: str, right: int) -> Finding | None:
    for period in find_periods(text):
        said = period.text_in(text)
        details = {**_at(period.start, period.end), "value": said}
        if right in period.value:
            return Finding("invalid", f"gives a period and no year: {said!r}", details)
        return Finding("hallucinated", f"gives the wrong period: {said!r}", details)
    return None


# --- numbers -------------------------------------------------------------------------


def _number(gold: str) -> Quantity | None:
    """The right answer as a number, if it is nothing else."""
    found = find_quantities(gold, years=True)
    return found[0].value if found and (found[0].start, found[0].end) == (0, len(gold)) else None


def _judge_number(answer: Answer, right: Quantity) -> Finding | None:
    def find(sentence: str) -> list[Found[Quantity]]:
        return [
            one
            for one in find_quantities(sentence, years=True)
            if one.value.sort in {None, right.sort} and _counts(answer, sentence, one)
        ]

    mark = _LIST_MARK.match(answer.generation)
    begin = mark.end() if mark else 0
    text = " " * begin + answer.generation[begin:]
    for start, sentence, found in settled(text, find):
        # "In 1921 it was measured at 8,849 m": a number with the right unit goes before others,
        # and any before a year.
        years = {year.start for year in find_years(sentence)}
        chosen = (
            [one for one in found if one.value.unit]
            or [one for one in found if one.start not in years]
            or found
        )
        if chosen:
            return _number_finding(right, sentence, start, chosen)
    return None


def _number_finding(
    right: Quantity, sentence: str, start: int, found: list[Found[Quantity]]
) -> Finding:
    first = found[0]
    said = first.text_in(sentence)
    value, error = _as_meant(sentence, first, right)
    other_errors = [_as_meant(sentence, one, right)[1] for one in found[1:2]]
    allowed = TOLERANCES.get(right.sort, _TOLERANCE) + _ROUNDING
    details = {
        **_at(start + first.start, start + first.end),
        "value": _finite(_number_in(value, right)),
        "relative_error": _finite(error),
    }
    if error > allowed:
        return Finding("hallucinated", f"answers {said!r}, off by {error:.1%}", details)
    if (
        other_errors
        and other_errors[0] > allowed
        and _OR.fullmatch(sentence[first.end : found[1].start])
    ):
        return Finding("hallucinated", f"does not settle on {said!r}", details)
    return Finding("correct", f"answers {said!r}", details)


def _as_meant(sentence: str, one: Found[Quantity], right: Quantity) -> tuple[Quantity, float]:
    """A number and its error; of one that has two readings, that of the smaller error."""
    readings = [one.value, other_reading(sentence, one) or one.value]
    return min(((value, _relative_error(value, right)) for value in readings), key=itemgetter(1))


def _finite(number: float) -> float | None:
    """None for a number too large to be one, such as a row of 400 digits: no label holds it."""
    return number if math.isfinite(number) else None


def _number_in(value: Quantity, right: Quantity) -> float:
    """The number in the unit that was asked for."""
    return value.to(right.unit).number if right.unit else value.number


def _relative_error(value: Quantity, right: Quantity) -> float:
    error = abs(_number_in(value, right) - right.number)
    return error / abs(right.number) if right.number else error


# --- places --------------------------------------------------------------------------


def _judge_place(answer: Answer, table: Mapping[str, str]) -> Finding:
    text = answer.generation
    code = table.get(fold(answer.gold[0]), "")
    same = [name for name, of in table.items() if code and of == code]
    named = judge_name(text, [*answer.gold, *same], table)
    if named is not None:
        return Finding(named.label, named.words, named.details)
    if table or says_ignorance(text) or denies(text):
        return _without_value(text, "names no possible answer, right or wrong")
    start, end = given_answer(text, answer.prompt)
    details = {**_at(start, end), "value": fold(text[start:end])}
    return Finding("hallucinated", "names none of the right answers", details)


# --- all sorts -----------------------------------------------------------------------


def _counts(answer: Answer, sentence: str, value: Found[object]) -> bool:
    """Whether a value is said to be the answer: not corrected, no aside, no part of the name."""
    before = sentence[max(0, value.start - _NEAR) : value.start]
    said = re.escape(value.text_in(sentence))
    return not (
        _CORRECTED.match(sentence, value.end)
        or _ASIDE.search(before)
        or re.search(rf"(?<!\d){said}(?!\d)", answer.name)
    )


def _without_value(text: str, why: str) -> Finding:
    if says_ignorance(text):
        return Finding("refused", "gives no value and says that it does not know", {})
    if denies(text):
        details = {**_at(*given_denial(text)), "value": DENIAL}
        return Finding("hallucinated", "denies that there is such a thing", details)
    return Finding("invalid", why, {})


def _at(start: int, end: int) -> dict[str, Any]:
    return {"answer_start": start, "answer_end": end}
