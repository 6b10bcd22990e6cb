"""Claims of country profiles.

=======================  ===========================================================================
claim                    read from, and how it is compared
=======================  ===========================================================================
``capital``              "capital (city) is Paris", "Paris is the capital"; with its other names
``area``                 a quantity of area in a sentence about area; up to 3 % off is supported,
                         beyond 12 % contradicted
``population``           a number of people; sources of 2015 and later: supported from 10 %
                         below to 20 % above them, contradicted if 20 % beyond that
``neighbour``            countries after "borders", "bordered by" and the like; water is no border
``currency``             after "currency"; its noun, code, and no other country's adjective
``official language``    after "official language"
``independence year``    a year after "independence", or at the head of its sentence
``independence from``    a country after "independence from"
``region``               "a country in Western Africa"; the direction counts where one is given
``year``, ``number``     any other year, percentage or quantity: nothing is known of them
=======================  ===========================================================================
"""

# ruff: noqa: E501 - a pattern reads better on one line than cut into strings

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.judges.claims.patterns import DATE, within
from activation_logging.judges.values import (
    Found,
    Quantity,
    find_names,
    find_quantities,
    find_years,
)
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging.judges.claims.record import Reading, Sentence
    from activation_logging.records import SpanLabel

_NAME = r"[A-Z\u00c0-\u024f][\w'\-.]*(?: (?:(?:of|de|la|el|es|the|du|da|al) ){0,2}[A-Z\u00c0-\u024f][\w'\-]*)*(?:, D\.?C\.?)?"
_CAPITAL = re.compile(
    r"\b[Cc]apital(?: and (?:the |its )?(?:largest|most populous|biggest|main)(?: city)?)?(?: city)?"
    r"(?: of (?:the )?[A-Z][\w'\-]*(?: (?:of |and |the )*[A-Z][\w'\-]*)*)?"
    r"(?:,? (?:is|was)(?: (?:located|situated) in| called| named)?|,|:| being|;)? "
    rf"(?:(?:the )?(?:city|town) (?:of|called) )?(?P<name>{_NAME})"
)
_WITH_CAPITAL = re.compile(rf"\b(?:a|its) capital(?: city)? (?:of|in|at) (?P<name>{_NAME})")
_IS_CAPITAL = re.compile(
    rf"(?P<name>{_NAME})(?: \([^()]*\))?(?:,| is| serves as| as)? (?:the |its |as its |as the )"
    r"(?:\w+ and )?(?:administrative |political |national |official )*capital\b"
)
_NOT_CAPITAL = frozenset({"it", "its", "the", "located", "this", "in"})
_FORMER = re.compile(
    r"\b(?:former|formerly|ancient|previous|old|provincial|state|cultural|economic)\b"
)
_AREA = re.compile(
    r"\b(?:[Aa]rea|cover(?:s|ing)|size|span(?:s|ning)|occup\w+|land ?mass|approximately|about|total)\b"
)
_NOT_AREA = re.compile(
    r"\b(?:lake|desert|forest|park|water|island of|reserve|city|capital|river|density)\b",
    re.IGNORECASE,
)
_PEOPLE = re.compile(r"\b(?:people|inhabitants|residents|citizens)\b")
_POPULATION = re.compile(r"\b[Pp]opulation\b|\b[Ii]nhabitants\b|\bpopulated\b|\bhome to\b")
_NOT_POPULATION = re.compile(
    r"\b(?:city|capital|metropolitan|urban|rural|density|per|native|speakers?|immigrants|refugees|diaspora|community|minority)\b",
    re.IGNORECASE,
)
_OTHER_SUBJECT = re.compile(r"[.;:]|\b(?:and|but) (?:it|has|its|the country)\b|\bcountry\b")
_BORDER = re.compile(
    r"\b(?:[Bb]order(?:s|ed|ing)?|[Nn]eighbou?r(?:s|ing)?|[Nn]eighbou?ring countries|surrounded)\b"
)
_WATER = re.compile(r"\b(?:maritime|sea border|across|[Ss]trait|[Cc]hannel|separated)\b|;|\. ")
_CURRENCY = re.compile(
    r"\b[Cc]urrency\b(?: (?:used |unit )?(?:of|in) (?:the )?[A-Z]\w*(?: [A-Z]\w*)*)?(?: used)?"
    r"(?:,? is| called|,|:)? (?:called |known as )?(?:the )?(?P<name>[A-Za-z\u00c0-\u024f][\w\u00c0-\u024f'\- ]{1,40}?)"
    r"(?= ?\(|[,.;\n]| and\b| which\b| as\b|$)(?: \((?P<code>[A-Z]{3})\b)?"
)
_AS_CURRENCY = re.compile(
    r"\b(?:uses?|adopted) (?:the )?(?P<name>[A-Za-z\u00c0-\u024f][\w\u00c0-\u024f'\- ]{1,40}?)(?: \((?P<code>[A-Z]{3})[^()]*\))? as (?:its|the) "
    r"(?:official |national )?currency"
)
_NOT_CURRENCY = re.compile(r"\b(?:is|are|used|exchange|denominated|one|subdivided)\b")
_OFFICIAL = re.compile(r"\b[Oo]fficial (?:and national |national )?languages?\b|\b[Ll]anguages?:")
_ARE_OFFICIAL = re.compile(
    r"^(?P<names>.{1,80}?) (?:is|are) (?:the|its|an) (?:sole |only )?official language"
)
_LANGUAGES_END = re.compile(
    r"[.;]|\b(?:but|although|though|while|with|however|as well as|widely|spoken|including|other)\b|, and the\b|\band (?:the|its|is)\b"
)
_INDEPENDENT = re.compile(r"\b[Ii]ndependen(?:ce|t)\b")
_DATED = re.compile(rf"^(?:In|On) {DATE}")
_AFTER = re.compile(
    rf"^(?:[^.;()]{{0,70}}?\b(?:in|on|since)|(?: (?:year|date|day))?:| \()(?: the year)? ?{DATE}"
)
_FROM = re.compile(
    r"^[^.;]{0,25}? from (?:the )?(?P<name>[A-Z][\w ]*?)(?= in\b| on\b|[,.;()]|$| and\b| after\b| under\b)"
)
_WAR = re.compile(r"\b(?:[Ww]ar|struggle|movement|[Dd]ay)\b")
_REGION = re.compile(
    r"\b(?:in|of|on) (?:the )?(?P<where>(?:(?:[Nn]orth|[Ss]outh|[Ee]ast|[Ww]est|[Cc]ent(?:ral|er|re))(?:ern|east\w*|west\w*)?[ -]?"
    r"(?:part |region |side |coast |tip |corner |portion |area |end )?(?:of )?(?:the )?(?:continent of )?)*)"
    r"(?P<continent>Africa|Europe|Asia|America|Oceania|Caribbean|Middle East)\b"
)
_DIRECTION = re.compile(r"[Nn]orth|[Ss]outh|[Ee]ast|[Ww]est|[Cc]ent")
_PERCENT = "share"


def read_country(reading: Reading) -> None:
    """Find the claims of a country's profile, and compare them."""
    for sentence in reading.sentences:
        quantities = find_quantities(sentence.text)
        _capital(reading, sentence)
        _region(reading, sentence)
        _area(reading, sentence, quantities)
        _population(reading, sentence, quantities)
        _neighbours(reading, sentence)
        _currency(reading, sentence)
        _languages(reading, sentence)
        _independence(reading, sentence)
        _others(reading, sentence, quantities)


def _capital(reading: Reading, sentence: Sentence) -> None:
    fact = reading.fact("capital")
    right = {fold(name) for name in fact.values} if fact else set()
    for pattern in (_WITH_CAPITAL, _CAPITAL, _IS_CAPITAL):
        for found in pattern.finditer(sentence.text):
            start, end = found.span("name")
            end -= sentence.text[end - 1] == "." and sentence.text[start:end].count(".") == 1
            name = fold(sentence.text[start:end])
            if name.split()[0] in _NOT_CAPITAL if name.split() else True:
                continue
            if _FORMER.search(sentence.text[max(0, found.start() - 25) : found.end()]):
                continue
            if name in {fold(known) for known in reading.profile.names} and name not in right:
                continue
            # "City of London", "Riyadh City"
            bare = name.removeprefix("city of ").removesuffix(" city")
            label: SpanLabel = "supported" if {name, bare} & right else "contradicted"
            reading.claim(sentence.start + start, sentence.start + end, "capital", label)


def _region(reading: Reading, sentence: Sentence) -> None:
    fact = reading.fact("region")
    found = _REGION.search(sentence.text)
    if found is None or _BORDER.search(sentence.text[: found.start()]):
        return
    if not re.search(
        r"\b(?:country|nation|state|republic|island\w*|located|situated|lies|kingdom)\b",
        sentence.text,
        re.IGNORECASE,
    ):
        return
    start = found.start("where") if found["where"] else found.start("continent")
    said = _direction(sentence.text[start : found.end()])
    right = [_direction(value) for value in fact.values] if fact else []
    if said in right or (not found["where"] and any(said in value.split() for value in right)):
        label: SpanLabel = "supported"
    elif any(fold(found["continent"]) in value for value in right):
        label = "unverifiable"  # where the south of a continent begins is a matter of taste
    else:
        label = "contradicted"
    reading.claim(sentence.start + start, sentence.start + found.end(), "region", label)


def _direction(region: str) -> str:
    """West and western Africa are one, south-east and southeastern Asia too."""
    words = fold(region).replace("of the continent of ", "").split()
    long = {"north": "northern", "south": "southern", "east": "eastern", "west": "western"}
    joined = " ".join(words).replace("south east", "southeast").replace("south west", "southwest")
    ends = {f"{a}{b}": f"{a}{long[b]}" for a in ("north", "south") for b in ("east", "west")}
    return " ".join({**long, **ends}.get(word, word) for word in joined.split())


def _area(reading: Reading, sentence: Sentence, quantities: list[Found[Quantity]]) -> None:
    fact = reading.fact("area")
    for one in quantities:
        unit = one.value.unit
        if unit is None or unit.sort != "area":
            continue
        before = sentence.text[max(0, one.start - 80) : one.start]
        after = sentence.text[one.end : one.end + 40]
        if not (_AREA.search(before) or "area" in after) or _NOT_AREA.search(_clause(before)):
            continue
        label = within(one.value.base / 1e6, fact.numbers if fact else (), 0.03, 0.12)
        if (
            re.search(r"(?:over|more than|under|less than|nearly) $", before)
            and label != "supported"
        ):
            label = within(one.value.base / 1e6, fact.numbers if fact else (), 0.1, 0.25)
        reading.claim(sentence.start + one.start, sentence.start + one.end, "area", label)


def _clause(text: str) -> str:
    """The last clause of a text that goes before something."""
    return re.split(
        r"[;.:]|,? (?:and|but) (?:an?|its|it|has|covers?)\b|, (?:and|but|with)\b", text
    )[-1]


def _population(reading: Reading, sentence: Sentence, quantities: list[Found[Quantity]]) -> None:
    fact = reading.fact("population")
    if not (_POPULATION.search(sentence.text) or _PEOPLE.search(sentence.text)):
        return
    for one in quantities:
        before = sentence.text[max(0, one.start - 90) : one.start]
        people = _PEOPLE.match(sentence.text, one.end + 1)
        about = _POPULATION.search(before) or people
        if one.value.unit or not about or one.value.number < 500:
            continue
        if _NOT_POPULATION.search(_OTHER_SUBJECT.split(before)[-1]) or re.match(
            r" (?:%|per|in the (?:city|capital)|languages|speakers)", sentence.text[one.end :]
        ):
            continue
        label: SpanLabel = "unverifiable"
        dated = [year.value for year in find_years(sentence.text)]
        if fact and fact.numbers and not (dated and max(dated) < 2005):
            low, high = min(fact.numbers), max(fact.numbers)
            label = within(one.value.number, (0.9 * low, 1.2 * high), 0.0, 0.2)
        reading.claim(sentence.start + one.start, sentence.start + one.end, "population", label)
        return


def _neighbours(reading: Reading, sentence: Sentence) -> None:
    fact, world = reading.fact("neighbour"), reading.world
    verb = _BORDER.search(sentence.text)
    if verb is None:
        return
    codes = {world.countries.get(fold(value)) for value in fact.values} if fact else set()
    own = {world.countries.get(fold(name)) for name in reading.profile.names}
    rest = sentence.text[verb.end() :]
    if _WATER.search(sentence.text[max(0, verb.start() - 20) : verb.start()]):
        return
    water = _WATER.search(rest)
    for name in find_names(rest, world.countries, capitalised=True):
        if not name.value or name.value in own:
            continue
        label: SpanLabel = "supported" if name.value in codes else "contradicted"
        # "Oman to the east, across the strait": the water comes after the name.
        if label == "contradicted" and (water or not codes):
            label = "unverifiable"
        start = sentence.start + verb.end()
        reading.claim(start + name.start, start + name.end, "neighbour", label)


def _currency(reading: Reading, sentence: Sentence) -> None:
    fact, world = reading.fact("currency"), reading.world
    for pattern in (_AS_CURRENCY, _CURRENCY):
        for found in pattern.finditer(sentence.text):
            said = fold(found["name"])
            if not said or _NOT_CURRENCY.search(said):
                continue
            label: SpanLabel = "unverifiable"
            if fact:
                label = _currency_label(said, fact.values, reading)
            noun = said.split()[-1]
            if (
                label == "unverifiable"
                and singular(noun) not in world.currencies
                and not found["code"]
            ):
                continue
            start, end = found.span("name")
            reading.claim(sentence.start + start, sentence.start + end, "currency", label)
            return


def _currency_label(said: str, values: tuple[str, ...], reading: Reading) -> SpanLabel:
    nouns = {singular(fold(value).split()[-1]) for value in values}
    noun = singular(said.rsplit(maxsplit=1)[-1])
    if noun not in nouns:
        return "contradicted" if noun in reading.world.currencies else "unverifiable"
    others = [
        name.value for name in find_names(said, reading.world.demonyms) if name.end < len(said)
    ]
    own = {reading.world.countries.get(fold(name)) for name in reading.profile.names}
    listed = fold(" ".join(values))
    if others and not own & set(others) and said.split(maxsplit=1)[0] not in listed:
        return "contradicted"
    return "supported"


def singular(noun: str) -> str:
    """Of the plurals that the Factbook gives, and of what models write.

    >>> singular("rupees"), singular("won")
    ('rupee', 'won')
    """
    special = {"lei": "leu", "leva": "lev", "zlotych": "zloty", "kroner": "krone", "koruny": "koruna",
               "kronur": "krona", "kronor": "krona", "maloti": "loti", "meticais": "metical",
               "colones": "colon", "quetzales": "quetzal", "leke": "lek", "reais": "real",
               "emalangeni": "lilangeni", "guaranies": "guarani"}  # fmt: skip
    return special.get(noun, noun.removesuffix("s"))


def _languages(reading: Reading, sentence: Sentence) -> None:
    fact, world = reading.fact("official language"), reading.world
    spoken = reading.fact("language")
    head = _ARE_OFFICIAL.match(sentence.text)
    keyword = _OFFICIAL.search(sentence.text)
    if keyword is None:
        return
    offset, part = (0, head["names"]) if head else (keyword.end(), sentence.text[keyword.end() :])
    if end := _LANGUAGES_END.search(part):
        part = part[: end.start()]
    for name in find_names(part, world.languages, capitalised=True):
        label: SpanLabel = "unverifiable"
        if fact and name.value in {world.languages.get(fold(value)) for value in fact.values}:
            label = "supported"
        elif spoken and name.value not in {world.languages.get(fold(v)) for v in spoken.values}:
            label = "contradicted"
        start = sentence.start + offset
        reading.claim(start + name.start, start + name.end, "official language", label)


def _independence(reading: Reading, sentence: Sentence) -> None:
    fact = reading.fact("independence year")
    keyword = _INDEPENDENT.search(sentence.text)
    if keyword is None:
        return
    rest = sentence.text[keyword.end() :]
    found, offset = _AFTER.match(rest), keyword.end()
    if found is None and not _WAR.search(sentence.text):
        found, offset = _DATED.match(sentence.text), 0
    if found is not None and not _WAR.search(rest[: found.end()] if offset else ""):
        start = sentence.start + offset
        label: SpanLabel = "contradicted"
        if fact and found["year"] in fact.values:
            label = "supported"
        elif fact and any(abs(int(found["year"]) - int(value)) <= 2 for value in fact.values):
            label = "unverifiable"  # declared, recognised and reached are often years apart
        reading.claim(
            start + found.start("year"), start + found.end("year"), "independence year", label
        )
    _ruler(reading, sentence, keyword.end())


def _ruler(reading: Reading, sentence: Sentence, offset: int) -> None:
    fact, world = reading.fact("independence from"), reading.world
    found = _FROM.match(sentence.text[offset:])
    if found is None:
        return
    said, right = fold(found["name"]), [fold(value) for value in fact.values] if fact else []
    code = world.countries.get(said)
    codes = {world.countries.get(value) for value in right} - {None}
    label: SpanLabel = "unverifiable"
    if said in right or (code and code in codes):
        label = "supported"
    elif code and codes:
        label = "contradicted"
    start = sentence.start + offset
    reading.claim(
        start + found.start("name"), start + found.end("name"), "independence from", label
    )


def _others(reading: Reading, sentence: Sentence, quantities: list[Found[Quantity]]) -> None:
    for year in find_years(sentence.text):
        reading.claim(
            sentence.start + year.start, sentence.start + year.end, "year", "unverifiable"
        )
    for one in _numbers(quantities):
        reading.claim(
            sentence.start + one.start, sentence.start + one.end, "number", "unverifiable"
        )


def _numbers(quantities: list[Found[Quantity]]) -> Iterator[Found[Quantity]]:
    """Those that say something: with a unit, or large."""
    for one in quantities:
        if one.value.unit is not None or abs(one.value.number) >= 100:
            yield one
