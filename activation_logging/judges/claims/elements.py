"""Claims of profiles of chemical elements.

=====================  =============================================================================
claim                  read from, and how it is compared
=====================  =============================================================================
``symbol``             "symbol Au"; as written
``atomic number``      a number after "atomic number"; exactly
``atomic mass``        a number after "atomic mass" or "atomic weight"; supported up to half a unit
                       or 0.3 % off (radioactive: 2 %), beyond 2 % contradicted (5 %)
``melting point``      a temperature after "melting point" or "melts"; supported up to 6 K or 1 %
``boiling point``      off, beyond 25 K or 5 % contradicted: sources differ by that much
``density``            supported up to 4 % off, beyond 15 % contradicted
``discovery year``     a year after "discovered" or "isolated"; one year off is supported, more
                       than 10 contradicted
``discoverer``         names after "discovered by"; contradicted if none of them is right
``group``, ``period``  a number after the word; exactly
``category``           "an alkali metal", "a noble gas"
``year``, ``number``   anything else: nothing is known of it
=====================  =============================================================================
"""

# ruff: noqa: E501 - a pattern reads better on one line than cut into strings

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.judges.claims.patterns import DATE, within
from activation_logging.judges.values import Found, Quantity, find_quantities, find_years
from activation_logging.text import fold

if TYPE_CHECKING:
    from activation_logging.judges.claims.record import Reading, Sentence
    from activation_logging.records import SpanLabel

_SYMBOL = re.compile(
    r"\b[Ss]ymbol(?: (?:for|of) [\w ]+?)?(?:,? (?:is|of|being))?:? ?\(?'?(?P<symbol>[A-Z][a-z]{0,2})\b"
)
_NUMBER = re.compile(r"\b[Aa]tomic number\b[^.;,\d]{0,30}?(?P<number>\d{1,3})\b")
_MASS = r"[Aa]tomic (?:mass|weight)(?: number)?"
_PROPERTIES = {
    "atomic mass": _MASS,
    "both points": r"[Mm]elting and boiling points?",
    "melting point": r"[Mm]elting(?: point)?|[Mm]elts",
    "boiling point": r"[Bb]oiling(?: point)?|[Bb]oils",
    "density": r"[Dd]ensity",
}
_KEYWORD = re.compile(
    "|".join(
        rf"(?P<{claim.replace(' ', '_')}>\b(?:{words})\b)" for claim, words in _PROPERTIES.items()
    )
    + r"|(?P<other>\b(?:[Aa]tomic number|[Rr]adius|[Hh]alf-life|[Ee]nergy|[Hh]eat|[Cc]onductivity|"
    r"[Ee]lectronegativity|[Ii]sotopes?|[Pp]ressure|[Gg]roup|[Pp]eriod|[Aa]bundance|[Cc]rust|valence)\b)"
)
_SORTS = {"melting point": "temperature", "boiling point": "temperature", "density": "density"}
_POINTS = ("melting point", "boiling point")
_KELVIN = {"melting point": (6.0, 25.0), "boiling point": (6.0, 25.0)}
_DISCOVERED = re.compile(
    r"\b(?:[Dd]iscover(?:ed|y)|(?:first )?isolated|identified|synthesi[sz]ed|[Dd]iscovery year)\b"
)
_PERSON = r"(?:(?:Sir|Baron|Dr\.?|Lord) )?[A-Z\u00c0-\u024f][\w'\-.]*(?: (?:(?:de|von|van|der|la|le|del) ){0,2}[A-Z\u00c0-\u024f][\w'\-]*)+"
_BY = re.compile(
    r"\b(?:by|[Dd]iscoverer\w*(?: is| was|:)) (?:the )?(?P<who>(?:[\w'\-]+ ){0,6}?"
    + _PERSON
    + r".{0,160})"
)
_PEOPLE = re.compile(_PERSON)
_BY_ENDS = re.compile(
    r"[;(]|\. | (?:in|at|from|who|while|when|on|during|as|using|through|was|is)\b"
)
_TITLES = re.compile(
    r"^(?:(?:Swedish|French|German|English|British|Scottish|American|Italian|Russian|Danish|Spanish|Austrian|Finnish|Swiss|Dutch|Irish|Polish|Sir|Lord|Baron|The|Nobel) )+"
)
_GROUP = re.compile(r"\b[Gg]roup:? (?P<group>\d{1,2})\b")
_PERIOD = re.compile(r"\b[Pp]eriod:? (?P<period>[1-8])\b")
_CATEGORY = re.compile(
    r"\b(?P<category>alkali(?: metal)|alkaline[- ]earth(?: metal)|transition(?: metal)|post-transition metal|poor metal|"
    r"halogen|noble gas|lanthanide|actinide|metalloid|non-?metal|rare[- ]earth(?: metal| element)?)(?:e?s)?\b",
    re.IGNORECASE,
)
_EXCLUSIVE = {"alkali", "alkaline", "halogen", "noble", "lanthanide", "actinide", "transition"}
_NOT_OWN = re.compile(
    r"\b(?:similar|like|with|other|between|than|unlike|heavier|lighter|react\w*)\b"
)


def read_element(reading: Reading) -> None:
    """Find the claims of an element's profile, and compare them."""
    for sentence in reading.sentences:
        quantities = find_quantities(sentence.text, years=True)
        _symbol(reading, sentence)
        _plain(reading, sentence, _NUMBER, "number", "atomic number")
        _plain(reading, sentence, _GROUP, "group", "group")
        _plain(reading, sentence, _PERIOD, "period", "period")
        _properties(reading, sentence, quantities)
        _discovery(reading, sentence)
        _category(reading, sentence)
        for year in find_years(sentence.text):
            reading.claim(
                sentence.start + year.start, sentence.start + year.end, "year", "unverifiable"
            )
        for one in quantities:
            if one.value.unit is not None or abs(one.value.number) >= 100:
                reading.claim(
                    sentence.start + one.start, sentence.start + one.end, "number", "unverifiable"
                )


def _symbol(reading: Reading, sentence: Sentence) -> None:
    fact = reading.fact("symbol")
    if head := re.match(r"^\w+ \((?P<symbol>[A-Z][a-z]?)\)", sentence.text):  # "Gold (Au) is"
        label: SpanLabel = "supported" if fact and head["symbol"] in fact.values else "contradicted"
        reading.claim(sentence.start + head.start(1), sentence.start + head.end(1), "symbol", label)
    for found in _SYMBOL.finditer(sentence.text):
        said = found["symbol"]
        if said not in reading.world.symbols and (said in {"The", "It", "In"} or len(said) == 3):
            continue
        label = "supported" if fact and said in fact.values else "contradicted"
        start = sentence.start + found.start("symbol")
        reading.claim(start, start + len(said), "symbol", label)


def _plain(
    reading: Reading, sentence: Sentence, pattern: re.Pattern[str], group: str, claim: str
) -> None:
    """A whole number that is right or wrong."""
    fact = reading.fact(claim)
    for found in pattern.finditer(sentence.text):
        if (
            _NOT_OWN.search(sentence.text[max(0, found.start() - 40) : found.start()])
            and group == "group"
        ):
            continue
        label: SpanLabel = "supported" if fact and found[group] in fact.values else "contradicted"
        reading.claim(
            sentence.start + found.start(group), sentence.start + found.end(group), claim, label
        )


def _properties(reading: Reading, sentence: Sentence, quantities: list[Found[Quantity]]) -> None:
    """Each quantity belongs to the nearest property named before it that has such a unit."""
    keywords = [(word.lastgroup or "", word.end()) for word in _KEYWORD.finditer(sentence.text)]
    if keywords and keywords[-1][0] == "both_points":
        # "melting and boiling points of 98 °C and 883 °C", without other scales between them
        warm = [q for q in quantities if q.value.sort == "temperature"]
        if len(warm) == len(_POINTS):
            for claim, one in zip(_POINTS, warm, strict=True):
                start, end = sentence.start + one.start, sentence.start + one.end
                reading.claim(start, end, claim, _property(reading, claim, one))
    for one in quantities:
        sort = one.value.sort
        before = [claim.replace("_", " ") for claim, end in keywords if end <= one.start]
        claim = before[-1] if before else ""
        if claim == "atomic mass":
            if (
                sort in {None, "atomic mass"}
                and one.value.number >= 1
                and reading.free(sentence.start + one.start, sentence.start + one.end)
            ):
                reading.claim(
                    sentence.start + one.start, sentence.start + one.end, claim, _mass(reading, one)
                )
                keywords = [
                    (name, end)
                    for name, end in keywords
                    if end > one.start or name != "atomic_mass"
                ]
        elif claim in _SORTS and sort == _SORTS[claim]:
            label = _property(reading, claim, one)
            reading.claim(sentence.start + one.start, sentence.start + one.end, claim, label)


def _mass(reading: Reading, one: Found[Quantity]) -> SpanLabel:
    fact = reading.fact("atomic mass")
    if fact is None or not fact.numbers:
        return "unverifiable"
    if abs(one.value.number - fact.numbers[0]) <= 0.5:
        return "supported"
    radioactive = reading.fact("radioactive") is not None
    near, far = (0.02, 0.05) if radioactive else (0.003, 0.02)
    return within(one.value.number, fact.numbers, near, far)


def _property(reading: Reading, claim: str, one: Found[Quantity]) -> SpanLabel:
    fact = reading.fact(claim)
    if fact is None or not fact.numbers:
        return "unverifiable"
    if claim == "density":
        return within(one.value.base, fact.numbers, 0.04, 0.15)
    near, far = _KELVIN[claim]
    off = min(abs(one.value.base - right) for right in fact.numbers)
    scale = max(fact.numbers)
    if off <= max(near, 0.01 * scale):
        return "supported"
    return "contradicted" if off > max(far, 0.05 * scale) else "unverifiable"


def _discovery(reading: Reading, sentence: Sentence) -> None:
    verb = _DISCOVERED.search(sentence.text)
    if verb is None:
        return
    head = re.match(rf"^(?:In|On) {DATE}", sentence.text)
    after = re.search(rf"\b(?:in|:)(?: the year)? {DATE}", sentence.text[verb.end() :])
    found, offset = (after, verb.end()) if after else (head, 0)
    fact = reading.fact("discovery year")
    if found is not None:
        said, label = int(found["year"]), "unverifiable"
        if fact and fact.numbers:
            off = min(abs(said - right) for right in fact.numbers)
            label = "supported" if off <= 1 else "contradicted" if off > 10 else "unverifiable"
        start = sentence.start + offset + found.start("year")
        reading.claim(start, start + 4, "discovery year", label)  # type: ignore[arg-type]
    _discoverers(reading, sentence, verb.start())


def _discoverers(reading: Reading, sentence: Sentence, begin: int) -> None:
    fact = reading.fact("discoverer")
    by = _BY.search(sentence.text, begin)
    if by is None:
        return
    who = by["who"]
    people = []
    for found in _PEOPLE.finditer(who):
        if _BY_ENDS.search(who[: found.start()]):
            break
        title = _TITLES.match(found.group())
        start = found.start() + (title.end() if title else 0)
        if " " in who[start : found.end()] or title:
            people.append((start, found.end()))
    right = {fold(value).split()[-1] for value in fact.values} if fact else set()
    fits = [fold(who[start:end]).split()[-1] in right for start, end in people]
    for (start, end), is_right in zip(people, fits, strict=True):
        label: SpanLabel = "supported" if is_right else "unverifiable"
        if not any(fits):
            label = "contradicted"
        base = sentence.start + by.start("who")
        stop = end - (who[end - 1] == ".")
        reading.claim(base + start, base + stop, "discoverer", label)


def _category(reading: Reading, sentence: Sentence) -> None:
    fact = reading.fact("category")
    right = {word for value in fact.values for word in fold(value).split()[:1]} if fact else set()
    for found in _CATEGORY.finditer(sentence.text):
        before = sentence.text[max(0, found.start() - 60) : found.start()]
        if _NOT_OWN.search(before) or not re.search(r"\b(?:is|an?|the|as|[Cc]ategory:)\b", before):
            continue
        said = fold(found["category"]).split()[0]
        label: SpanLabel = "unverifiable"
        if said in right:
            label = "supported"
        elif said in _EXCLUSIVE and right & _EXCLUSIVE:
            label = "contradicted"
        reading.claim(
            sentence.start + found.start(), sentence.start + found.end(), "category", label
        )
