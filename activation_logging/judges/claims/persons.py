"""Claims of biographies.

======================  ============================================================================
claim                   read from
======================  ============================================================================
``birth year``          "(14 March 1879 - 18 April 1955)" after the name; "born ... 1879"; "Born:"
``death year``          the same parenthesis; "died", "was killed" and the like ... "1955"
``birth day``           the day or month before a year of birth or death; no source has it
``death day``
``birthplace``          places after "born ... in"
``death place``         places after "died ... in"; no source has it
``age at death``        "died at the age of 76"
``nationality``         in the sentence that says what the person was
``occupation``          in the same sentence
``year of a work``      a work of the person, and its year after it: "Typee (1846)"
``year``                any other year; contradicted only where the person does something in it
                        that takes a living person, before birth or after death
======================  ============================================================================

Sentences about relatives are left alone: "his father died in 1880".
"""

# ruff: noqa: E501 - a pattern reads better on one line than cut into strings

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.judges.claims.patterns import DATE, YEAR
from activation_logging.judges.claims.words import BROADER, FIELDS, KIN
from activation_logging.judges.values import find_names
from activation_logging.text import fold

if TYPE_CHECKING:
    from activation_logging.judges.claims.record import Fact, Reading, Sentence
    from activation_logging.records import SpanLabel

_RELATIVES = re.compile(
    r"\b(?:father|mother|son|sons|daughters?|child|children|wife|husband|brothers?|sisters?|"
    r"parents?|siblings?|twins?|couple|who|whom|whose|friend|mentor|teacher|family)\b"
)
_BORN = re.compile(r"\b[Bb]orn\b")
_DIED = re.compile(
    r"\b(?:[Dd]ied|[Pp]assed away|(?:was|were) (?:killed|assassinated|executed|murdered|beheaded)|"
    r"committed suicide|(?:until|before|after|at|to) (?:his|her) (?:untimely |tragic |sudden )?death"
    r"|[Dd]eath(?= (?:date|year)|:)|[Dd]ate of death)\b"
)
_LIST_BORN = re.compile(r"^\W*(?:[Bb]orn|[Bb]irth(?:date| ?date| year)?|[Dd]ate of [Bb]irth)\b")
_LIST_PLACE = re.compile(r"^\W*(?:[Bb]irth ?place|[Pp]lace of [Bb]irth)\W{0,4}(?:: ?)?")
_DATE = re.compile(DATE)
_YEAR = re.compile(YEAR)
_LIFE = re.compile(
    r"\((?:[^()]{0,80}?[ ,;:])??(?:(?:[Bb]orn|b\.) )?(?:on |in |c\. ?)?" + DATE
    + r"[^()]{0,60}? ?- ?[^()]{0,60}?(?P<end>" + DATE.replace("?P<", "?P<end_") + r")[^()]{0,60}\)"
)  # fmt: skip
_LIVED = re.compile(
    r"\blived (?:from|between) " + DATE + r" (?:to|until|and) " + DATE.replace("?P<", "?P<end_")
)
_AGE = re.compile(
    r"\b(?:at (?:the )?(?:young |early |advanced )?age (?:of )?|aged )(?P<age>\d{1,3})\b"
)
_OTHER_VERB = re.compile(
    r"\b(?:published|founded|established|wrote|awarded|won|became|since|after|before|died|born|"
    r"moved|married|studied|until|graduated|served|attended)\b"
)
_PLACE = r"[A-Z][\w'\-.]*(?: (?:(?:of|de|la|le|am|an|der|upon|on|del|di|the|da|do|von) ){0,2}[A-Z][\w'\-]*)*"
_PLACES = re.compile(
    r"\b(?:in|at|near) (?:the (?:\w+ ){0,3}(?:city|town|village|state|kingdom|province|region|island|county|"
    r"capital|suburb|district|republic|duchy)(?: city)? (?:of|called) |(?:what is now |present-day |the ))?"
    rf"(?P<first>{_PLACE})(?P<more>(?:, (?:in )?(?:now |present-day |the )?{_PLACE})*)"
)
_MONTH_NAME = re.compile(
    r"^(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
)
_DEFINITION = re.compile(r"\b(?:was|is|were) (?:an?|the|one of)\b")
_DEFINITION_ENDS = re.compile(
    r"[.;:(]| (?:who|whose|which|that|known|best|born|widely|renowned|considered|regarded|famous|"
    r"remembered|whom|from|during|where|and (?:is|was|he|she)|active|noted|credited)\b"
)
_PARTS = re.compile(r"[,;]| and | but ")
_LIVING = re.compile(
    r"\b(?:moved|married|studied|graduated|attended|joined|became|began|started|served|returned|"
    r"travell?ed|entered|worked|enrolled|retired|(?:was )?(?:appointed|elected))\b"
)
_WORK_YEAR = re.compile(
    r"['\"*,]{0,2} ?(?:\((?:published |released |premiered |completed |in |first published |c\. )*(?P<a>"
    + YEAR + r")[^()]{0,30}\)|,? ?(?:was |is |which was |first |originally )*(?:published|released|premiered|completed|written|painted|composed)(?: \w+){0,2} in (?P<b>"
    + YEAR + r"))"
)  # fmt: skip
_NEW_CALENDAR = 1753
_LISTED = re.compile(r"^\W*(?:[Nn]ationality|[Oo]ccupations?|[Pp]rofessions?|[Cc]itizenship):")
_OCCUPATIONS = {word: field for field, words in FIELDS.items() for word in words}
_FIELDS_OF = {
    word: frozenset(field for field, words in FIELDS.items() if word in words)
    for word in _OCCUPATIONS
}
_OCCUPATION = re.compile(
    r"\b(?:"
    + "|".join(sorted(map(re.escape, _OCCUPATIONS), key=len, reverse=True))
    + r")(?=s?\b)(?!-| (?:theory|relativity|theories|public|[A-Z][a-z]+-))",
    re.IGNORECASE,
)


def occupations_in(text: str) -> tuple[str, ...]:
    """The occupations that a text names, in lower case.

    With a capital it is one before "of" only: "King of Spain", not "Martin Luther King".
    """
    return tuple(
        dict.fromkeys(
            found.group().lower()
            for found in _OCCUPATION.finditer(text)
            if found.group()[0].islower() or text.startswith(" of ", found.end())
        )
    )


def read_person(reading: Reading) -> None:
    """Find the claims of a biography, and compare them."""
    subject = _subject(reading.profile.names)
    for number, sentence in enumerate(reading.sentences):
        if number < 2:
            _life(reading, sentence, subject)
        _lived(reading, sentence)
        _works(reading, sentence)
        _born(reading, sentence, subject)
        _died(reading, sentence, subject)
    _definition(reading, subject)
    for sentence in reading.sentences:
        _years(reading, sentence, subject)


def _subject(names: tuple[str, ...]) -> re.Pattern[str]:
    words = {word for name in names for word in name.split() if len(word) > 2 and word[0].isupper()}
    known = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.compile(rf"\b(?:[Hh]e|[Ss]he|{known})\b" if known else r"\b(?:[Hh]e|[Ss]he)\b")


def _life(reading: Reading, sentence: Sentence, subject: re.Pattern[str]) -> None:
    found = _LIFE.search(sentence.text)
    if found is None or len(sentence.text[: found.start()].split()) > 8:
        return
    if not subject.search(sentence.text[: found.start()]):
        return
    _date(reading, found, sentence.start, "birth")
    _date(reading, found, sentence.start, "death", "end_")


def _date(reading: Reading, found: re.Match[str], base: int, claim: str, group: str = "") -> None:
    """The year of a date and, apart from it, its day.

    Args:
        reading: the answer.
        found: a match of a pattern that has :data:`~.patterns.DATE` in it.
        base: where the text that it was found in begins.
        claim: ``birth`` or ``death``.
        group: what the names of the date's groups begin with.
    """
    year, day = f"{group}year", f"{group}day"
    label = _year_label(found[year], reading.fact(f"{claim} year"))
    reading.claim(base + found.start(year), base + found.end(year), f"{claim} year", label)
    if found[day]:
        start, end = base + found.start(day), base + found.end(day)
        reading.claim(start, end, f"{claim} day", "unverifiable")


def _year_label(said: str, fact: Fact | None) -> SpanLabel:
    if fact is None:
        return "unverifiable"
    if said in fact.values:
        return "supported"
    # Before England's reform, years began on several days: Newton was born in 1642 or 1643.
    near = any(int(said) - right == 1 and right < _NEW_CALENDAR for right in fact.numbers)
    return "unverifiable" if near else "contradicted"


def _is_other(prefix: str, subject: re.Pattern[str]) -> bool:
    """Whether a verb after this part of a sentence is somebody else's."""
    clause = re.split(r", | and |; |: ", prefix)[-1]
    if subject.search(clause):
        return bool(_RELATIVES.search(clause))
    return bool(_RELATIVES.search(prefix)) or (
        bool(clause.strip()) and clause.strip()[0].isupper() and not _LIST_BORN.match(clause)
        and clause.split()[0] not in ("Born", "In", "On", "After", "Before", "Sadly", "Tragically")
    )  # fmt: skip


def _born(reading: Reading, sentence: Sentence, subject: re.Pattern[str]) -> None:
    text = sentence.text
    if place := _LIST_PLACE.match(text):
        _places(reading, sentence, "in " + text[place.end() :], place.end() - 3, "birthplace")
        return
    listed = _LIST_BORN.match(text)
    for verb in [listed] if listed else _BORN.finditer(text):
        if not listed and _is_other(text[: verb.start()], subject):
            continue
        clause = re.split(r";|\. |, (?:he|she|who|to|the)\b", text[verb.end() :])[0]
        date = _DATE.search(clause)
        if date is not None and not _OTHER_VERB.search(clause[: date.start()]):
            _date(reading, date, sentence.start + verb.end(), "birth")
        elif date is None and (head := _dated(text[: verb.start()])):
            _date(reading, head, sentence.start, "birth")
        _places(reading, sentence, clause, verb.end(), "birthplace")
        return


def _dated(prefix: str) -> re.Match[str] | None:
    """The date of "In 1955, he died"."""
    return re.match(rf"(?:In|On) {DATE}(?=,? )", prefix)


def _died(reading: Reading, sentence: Sentence, subject: re.Pattern[str]) -> None:
    text = sentence.text
    for verb in _DIED.finditer(text):
        prefix = text[: verb.start()]
        if _is_other(prefix, subject) and not re.search(
            r"\b(?:his|her) .{0,20}death$", verb.group()
        ):
            continue
        clause = re.split(r";|\. |, (?:and|but|he|she|who|leaving)\b", text[verb.end() :])[0]
        if re.match(r" of (?:his|her|the)\b", clause) and "death" in verb.group():
            continue
        date = _DATE.search(clause)
        if date is not None and not _OTHER_VERB.search(clause[: date.start()]):
            _date(reading, date, sentence.start + verb.end(), "death")
        elif date is None and (head := _dated(prefix)):
            _date(reading, head, sentence.start, "death")
        if age := _AGE.search(clause):
            start = sentence.start + verb.end()
            label = _age_label(int(age["age"]), reading)
            reading.claim(start + age.start("age"), start + age.end("age"), "age at death", label)
        _places(reading, sentence, clause, verb.end(), "death place")


def _age_label(said: int, reading: Reading) -> SpanLabel:
    fact = reading.fact("age at death")
    if fact is None:
        return "unverifiable"
    return "supported" if str(said) in fact.values else "contradicted"


def _places(reading: Reading, sentence: Sentence, clause: str, offset: int, claim: str) -> None:
    """Places one after the other: "in Ulm, Kingdom of Württemberg, Germany"."""
    for found in _PLACES.finditer(clause):
        if _MONTH_NAME.match(found["first"]) or found["first"].isdigit():
            continue
        base = sentence.start + offset
        parts = [(found.start("first"), found.end("first"))]
        more = re.compile(_PLACE)
        at = found.start("more")
        while at < found.end("more") and (part := more.search(clause, at, found.end("more"))):
            parts.append(part.span())
            at = part.end()
        for start, end in parts:
            if _MONTH_NAME.match(clause[start:end]):
                break
            stop = end - (clause[end - 1] == ".")
            label = _place_label(clause[start:stop], reading, claim)
            reading.claim(base + start, base + stop, claim, label)
        return


def _place_label(said: str, reading: Reading, claim: str) -> SpanLabel:
    fact = reading.fact(claim)
    if fact is None:
        return "unverifiable"
    right = [fold(value) for value in fact.values]
    folded = fold(said)
    if folded in right:
        return "supported"
    code = reading.world.countries.get(folded)
    codes = {reading.world.countries.get(value) for value in right} - {None, ""}
    if code and codes:
        # Borders moved: a country that shares a history with the right one is not wrong for sure.
        kin = any(code in group and codes & group for group in KIN)
        return "supported" if code in codes else "unverifiable" if kin else "contradicted"
    city = reading.world.cities.get(folded)
    if city and codes and city not in codes and not any(city in g and codes & g for g in KIN):
        return "contradicted"
    return "unverifiable"


def _definition(reading: Reading, subject: re.Pattern[str]) -> None:
    """The first sentence that says what the person was, and lines of a list before it."""
    for sentence in reading.sentences:
        if head := _LISTED.match(sentence.text):
            _nationality(reading, sentence.text[head.end() :], sentence.start + head.end())
            _occupation(reading, sentence.text[head.end() :], sentence.start + head.end())
            continue
        verb = _DEFINITION.search(sentence.text)
        if verb is None or not subject.search(sentence.text[: verb.start()]):
            continue
        if _RELATIVES.search(sentence.text[: verb.start()]):
            continue
        rest = sentence.text[verb.end() :]
        end = _DEFINITION_ENDS.search(rest)
        window = rest[: end.start()] if end else rest
        if kin := _RELATIVES.search(window):
            window = window[: kin.start()]  # "the eldest of five children of two musicians"
        if not (
            _OCCUPATION.search(window)
            or find_names(window, reading.world.demonyms, capitalised=True)
        ):
            continue
        base = sentence.start + verb.end()
        _nationality(reading, window, base)
        _occupation(reading, window, base)
        break


def _nationality(reading: Reading, window: str, base: int) -> None:
    fact = reading.fact("nationality")
    demonyms = reading.world.demonyms
    found = find_names(window, demonyms, capitalised=True)
    right = {demonyms[fold(value)] for value in fact.values} if fact else set()
    said = {name.value for name in found}
    for name in found:
        label: SpanLabel = "contradicted"
        if name.value in right:
            label = "supported"
        elif said & right or any(name.value in group and right & group for group in KIN):
            label = "unverifiable"
        reading.claim(base + name.start, base + name.end, "nationality", label)


def _occupation(reading: Reading, window: str, base: int) -> None:
    fact = reading.fact("occupation")
    right = set(fact.values) if fact else set()
    fields = {field for word in right for field in _FIELDS_OF.get(word, ())}
    found = list(_OCCUPATION.finditer(window))
    fits = [_is_right(match.group().lower(), right) for match in found]
    near = any(fields & _FIELDS_OF[match.group().lower()] for match in found)
    for match, is_right in zip(found, fits, strict=True):
        label: SpanLabel = "supported" if is_right else "unverifiable"
        if fields and not near:
            label = "contradicted"
        reading.claim(base + match.start(), base + match.end(), "occupation", label)


def _is_right(word: str, right: set[str]) -> bool:
    return word in right or not right.isdisjoint(BROADER.get(word, ()))


def _lived(reading: Reading, sentence: Sentence) -> None:
    if found := _LIVED.search(sentence.text):
        _date(reading, found, sentence.start, "birth")
        _date(reading, found, sentence.start, "death", "end_")


def _works(reading: Reading, sentence: Sentence) -> None:
    text = sentence.text.lower()
    for claim in reading.profile.facts:
        if not claim.startswith("work:"):
            continue
        at = text.find(claim.removeprefix("work:").lower())
        if at < 0:
            continue
        end = at + len(claim) - len("work:")
        found = _WORK_YEAR.match(sentence.text, end)
        if found:
            group = "a" if found["a"] else "b"
            said, fact = found[group], reading.fact(claim)
            label = _year_label(said, fact)
            if label == "contradicted" and fact and abs(int(said) - int(fact.values[0])) == 1:
                label = "unverifiable"  # begun, finished and published are often a year apart
            start = sentence.start + found.start(group)
            reading.claim(start, start + 4, "year of a work", label, about=claim)


def _years(reading: Reading, sentence: Sentence, subject: re.Pattern[str]) -> None:
    birth, death = reading.fact("birth year"), reading.fact("death year")
    for year in _YEAR.finditer(sentence.text):
        start, end = sentence.start + year.start(), sentence.start + year.end()
        about, label = "", "unverifiable"
        before = re.split(r"; | - ", sentence.text[: year.start()])[-1]
        after = sentence.text[year.end() : year.end() + 60]
        part = _PARTS.split(before)[-1]
        acts = _LIVING.search(part) or _LIVING.search(_PARTS.split(after.lstrip(", "))[0])
        if acts and subject.search(before + after) and not _RELATIVES.search(before + after):
            if birth and all(int(year.group()) < int(value) for value in birth.values):
                about, label = "birth year", "contradicted"
            elif death and death.numbers and int(year.group()) > max(death.numbers):
                about, label = "death year", "contradicted"
        reading.claim(start, end, "year", label, about)  # type: ignore[arg-type]
