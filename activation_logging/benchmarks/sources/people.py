"""Persons with the years of their lives, as Wikipedia and WordNet give them.

Both say them in a parenthesis at the end of a short text: "Soviet psychologist (1896-1934)". Where
both know a person the two are compared, and a year on which they differ is not used. What is
approximate in one of them ("c. 1500", "1525/30", "340?") is not used either.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.benchmarks.sources.wikipedia import Article, articles
from activation_logging.benchmarks.sources.wordnet import Synset, instances_of, kinds_of, meanings
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterable

_DASH = r"\s*(?:[-\u2013]|to)\s*"
_ERA = r"(?: ?(?P<{0}>BCE?|AD|CE))?"
_LIFE = re.compile(
    rf"\((?:AD )?(?P<birth>\d{{1,4}}){_ERA.format('birth_era')}{_DASH}"
    rf"(?:AD )?(?P<death>\d{{1,4}}){_ERA.format('death_era')}\)$"
)
_BORN = re.compile(r"\((?:[Bb]orn:?(?: in [A-Z][A-Za-z ]+)?(?: in)? (?P<birth>\d{4})|(\d{4})-)\)$")
_DIED = re.compile(rf"\(died(?: in)? (?P<death>\d{{2,4}}){_ERA.format('death_era')}\)$")
_HEAD_ENDS = re.compile(r"[,;(]| (?:of|and|from|who|in|to)\b")
_PRONOUN = re.compile(r"\b(?:he|she|his|her)\b", re.IGNORECASE)
_YEARS = re.compile(r"\([^()]*\d[^()]*\)$")
_YOUNGEST, _OLDEST = 12, 115  # years that a life lasts; others are reigns or mistakes

# A reign stands where a life does: "President of France (1981-1995)".
_OFFICE = re.compile(
    r"\b(?:king|queen|emperor|empress|president|prime minister|chancellor|sultan|shah|caliph|pope|"
    r"pharaoh|tsar|khan|leader|ruler|ruled|reigned|dictator|premier|duke|prince|regent|governor)\b"
)


class Life(NamedTuple):
    """Years of birth and death, negative before Christ; None where a source does not say."""

    birth: int | None = None
    death: int | None = None


class Person(NamedTuple):
    """One person.

    Attributes:
        name: what a question calls the person by.
        names: that, and all others that the sources have.
        life: the years that are known: where both sources give one, they agree on it.
        article: of Wikipedia, if the person has one there.
        synset: of WordNet, if the person has one there.
        agreed: which of ``birth`` and ``death`` both sources give, and alike.
        differ: which of them the sources differ on.
    """

    name: str
    names: tuple[str, ...]
    life: Life
    article: Article | None = None
    synset: Synset | None = None
    agreed: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()


def life_of(text: str) -> Life:
    """The years of a life in the parenthesis that ends a text; without them, none.

    >>> life_of("Soviet psychologist (1896-1934)")
    Life(birth=1896, death=1934)
    >>> life_of("Roman emperor (63 BC - AD 14)")
    Life(birth=-63, death=14)
    >>> life_of("Roman statesman (106-43 BC)")
    Life(birth=-106, death=-43)
    """
    if match := _LIFE.search(text):
        death = _year(match["death"], match["death_era"])
        birth = _year(
            match["birth"], match["birth_era"] or (match["death_era"] if death < 0 else "")
        )
        return Life(birth, death) if _YOUNGEST <= death - birth <= _OLDEST else Life()
    if match := _BORN.search(text):
        return Life(birth=int(match["birth"] or match[2]))
    if match := _DIED.search(text):
        return Life(death=_year(match["death"], match["death_era"]))
    return Life()


@cache
def people() -> tuple[Person, ...]:
    """Everybody whose name is one person's in either source: first those of Wikipedia.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
    """
    synsets = instances_of("person")
    by_name = _unambiguous((fold(name), synset) for synset in synsets for name in synset.names)
    by_ends = _unambiguous((_ends(name), synset) for synset in synsets for name in synset.names)
    by_life = _unambiguous((_surname_and_life(s.names[0], life_of(s.gloss)), s) for s in synsets)
    found: list[Person] = []
    taken: set[str] = set()
    for article in articles().values():
        if not _is_person(article):
            continue
        life = _article_life(article)
        synset = by_name.get(fold(article.name)) or by_life.get(
            _surname_and_life(article.name, life)
        )
        if synset is None:
            # Sergei Prokofiev is WordNet's Sergei Sergeyevich Prokofiev if no year says otherwise.
            near = by_ends.get(_ends(article.name))
            synset = near if near and _may_be(life, near) else None
        if synset is None or synset.id in taken:
            found.append(Person(article.name, (article.name,), _article_life(article), article))
        else:
            taken.add(synset.id)
            found.append(_compared(article, synset))
    for synset in synsets:
        name = _full_name(synset)
        if synset.id not in taken and by_name.get(fold(name)) is synset:
            found.append(Person(name, _names(name, synset), life_of(synset.gloss), None, synset))
    return tuple(found)


def _is_person(article: Article) -> bool:
    """By its topic; the most vital articles have none, so by their words."""
    if article.topic == "People" or not article.is_most_vital:
        return article.topic == "People"
    head = _HEAD_ENDS.split(article.description.lower())[0].split()
    senses = meanings().get(head[-1], ()) if head else ()
    is_one = bool(senses) and senses[0] in kinds_of("person")
    has_life = _article_life(article) != Life()
    return is_one and (has_life or _PRONOUN.search(article.extract) is not None)


def _unambiguous(pairs: Iterable[tuple[str, Synset]]) -> dict[str, Synset]:
    """The names that stand for one synset only."""
    found: dict[str, set[Synset]] = {}
    for name, synset in pairs:
        found.setdefault(name, set()).add(synset)
    return {name: synsets.pop() for name, synsets in found.items() if len(synsets) == 1}


def _ends(name: str) -> str:
    """The first and the last word of a name, folded."""
    words = fold(name).split()
    return f"{words[0]} {words[-1]}" if words else ""


def _surname_and_life(name: str, life: Life) -> str:
    """Carl von Clausewitz and WordNet's Karl von Clausewitz have these in common."""
    return f"{fold(name).split()[-1:]} {life}" if None not in life else name


def _may_be(life: Life, synset: Synset) -> bool:
    """Whether the two have a year in common, or one of them has none."""
    pairs = list(zip(life, life_of(synset.gloss), strict=True))
    shared = any(one is not None and one == other for one, other in pairs)
    return shared or all(None in pair for pair in pairs)


def _compared(article: Article, synset: Synset) -> Person:
    ours, theirs = _article_life(article), life_of(synset.gloss)
    names = _names(article.name, synset)
    if ours == Life() and _YEARS.search(article.description):
        return Person(article.name, names, Life(), article, synset)  # approximate, or a reign
    pairs = dict(zip(Life._fields, zip(ours, theirs, strict=True), strict=True))
    known = {field: [year for year in pair if year is not None] for field, pair in pairs.items()}
    life = Life(*(years[0] if len(set(years)) == 1 else None for years in known.values()))
    both = [field for field, years in known.items() if len(years) == 2]
    agreed = tuple(field for field in both if len(set(known[field])) == 1)
    differ = tuple(field for field in both if field not in agreed)
    return Person(article.name, names, life, article, synset, agreed, differ)


def _article_life(article: Article) -> Life:
    return Life() if _OFFICE.search(article.description.lower()) else life_of(article.description)


def _names(name: str, synset: Synset) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, *synset.names)))


def _full_name(synset: Synset) -> str:
    """The shortest name that has more than the surname, without initials if there is one.

    WordNet begins with the surname: Einstein, Albert Einstein.
    """
    full = [name for name in synset.names if name.endswith(f" {synset.names[0]}")]
    plain = [name for name in full if "." not in name]
    return min(plain or full or synset.names[:1], key=lambda name: len(name.split()))


def _year(digits: str, era: str | None) -> int:
    return -int(digits) if (era or "").startswith("B") else int(digits)
