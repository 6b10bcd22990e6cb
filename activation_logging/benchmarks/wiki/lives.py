"""Years of birth and death, and countries of birth, of persons.

Years on which Wikipedia and WordNet differ are left out; so are years before 1000. Names that may
be several persons' are left out: with a parenthesis in their article's title, or without an article
and of one word, or with a title or a king's number. So are years before 1700 that WordNet alone
gives, many of which are estimates.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.benchmarks.sources.people import Person, life_of, people
from activation_logging.benchmarks.sources.places import HOME_NATIONS, countries, country_names
from activation_logging.benchmarks.wiki.fact import (
    FIRST_YEAR,
    LAST_YEAR,
    Fact,
    Fame,
    gives_away,
    slug,
)
from activation_logging.judges.values import find_names

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNCLEAR = re.compile(
    r"\b[IVX]+$|^[a-z]|^(?:King|Queen|Shah|Emperor|Empress|Czar|Tsar|Pope|Saint|St\.?|Prince|Princess|"
    r"Baron|Baroness|Count|Countess|Duke|Duchess|Earl|Viscount|Viscountess|Lord|Lady|Marquis|First|"
    r"Mother|Mrs|Chief|Captain|General|President)\b"
)
_FIRST_OF_WORDNET = 1700
_BORN_IN = re.compile(r"\bborn in (?:the )?(?P<country>[A-Z][a-z]+(?: [A-Z][a-z]+)*)")
# Empires whose land is several countries' today: the one that the person was born in is disputed.
_CHANGED = frozenset({
    "AT", "BY", "CZ", "DE", "EE", "EG", "HR", "HU", "IL", "IN", "LT", "LV", "PK", "PL", "RO", "RS",
    "RU", "KR", "TR", "UA",
})  # fmt: skip
_FIRST_BORN_IN = 1500  # before that the countries were others
_WRONG_IN_WORDNET = frozenset({"Rebecca West"})
_QUESTIONS = {
    "birth": "In what year was {name} born? Answer with only the year.",
    "death": "In what year did {name} die? Answer with only the year.",
}


def lives() -> Iterator[Fact]:
    """Birth years and death years."""
    for person in _named():
        for field, question in _QUESTIONS.items():
            year = getattr(person.life, field)
            sources = _sources(person, field)
            first = _FIRST_OF_WORDNET if sources == ("WordNet",) else FIRST_YEAR
            if year is not None and first <= year <= LAST_YEAR:
                yield _fact(
                    person,
                    sort=f"{field} year",
                    prompt=question.format(name=person.name),
                    gold=(str(year),),
                    sources=sources,
                )


def birth_countries() -> Iterator[Fact]:
    """Countries of birth where WordNet states one, as of those who moved to another."""
    by_code = {country.code: country for country in countries()}
    for person in _named():
        match = _BORN_IN.search(person.synset.gloss) if person.synset else None
        found = find_names(match["country"], country_names()) if match else []
        country = by_code.get(found[0].value) if found else None
        if country is None or country.code in _CHANGED or person.name in _WRONG_IN_WORDNET:
            continue
        if (person.life.birth or 0) < _FIRST_BORN_IN:
            continue
        gold = (*country.names, *(HOME_NATIONS.values() if country.code == "GB" else ()))
        if not gives_away(person.name, gold):
            yield _fact(
                person,
                sort="birth country",
                prompt=f"In which country was {person.name} born? "
                "Give only the name of the country.",
                gold=gold,
                sources=("WordNet",),
            )


def _named() -> Iterator[Person]:
    """Persons whose name says who is meant; of two with one name, none."""
    seen: dict[str, int] = {}
    for person in people():
        seen[slug(person.name)] = seen.get(slug(person.name), 0) + 1
    for person in people():
        if person.article is None:
            is_clear = " " in person.name and not _UNCLEAR.search(person.name)
        else:
            is_clear = person.article.name == person.article.title
        if is_clear and seen[slug(person.name)] == 1 and not re.search(r"\d", person.name):
            yield person


def _fame(person: Person) -> Fame:
    if person.article is None:
        return "other"
    return "top" if person.article.is_most_vital else "vital"


def _sources(person: Person, field: str) -> tuple[str, ...]:
    if field in person.agreed:
        return "Wikipedia", "WordNet"
    in_article = person.article and getattr(life_of(person.article.description), field)
    return ("Wikipedia",) if in_article is not None else ("WordNet",)


def _fact(
    person: Person, *, sort: str, prompt: str, gold: tuple[str, ...], sources: tuple[str, ...]
) -> Fact:
    return Fact(
        id=f"{slug(sort)}-{slug(person.name)}",
        sort=sort,
        name=person.name,
        prompt=prompt,
        gold=gold,
        fame=_fame(person),
        group=f"person:{slug(person.name)}",
        sources=sources,
    )
