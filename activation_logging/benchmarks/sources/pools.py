"""Real names that have two halves, by domain and fame: what ``known_names`` swaps halves of.

person
    famous: a vital article of Wikipedia; obscure: in WordNet, and no vital article
place
    famous: a vital article, or a city of GeoNames with a large population; obscure: its small
    towns
work
    famous: a vital article; no list here has obscure ones
species
    common names of the NCBI taxonomy; famous: a vital article; obscure: an article, but no vital
    one

Each name has a ``kind``, such as a person's nationality, a city's country or an animal's class.
Halves are swapped within a kind only, so that no half looks out of place beside the other.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from activation_logging.benchmarks.sources.ncbi import taxonomy
from activation_logging.benchmarks.sources.people import people
from activation_logging.benchmarks.sources.places import geonames
from activation_logging.benchmarks.sources.wikipedia import Article, articles
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Domain = Literal["person", "place", "work", "species"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
Rung = Literal["famous", "obscure"]
RUNGS: tuple[Rung, ...] = get_args(Rung)

LARGE_CITY, SMALL_TOWN = 500_000, 50_000
"""Inhabitants: from where a city counts as famous, and up to where as obscure."""

_TWO_WORDS = re.compile(r"([^\W\d_]['\u2019\w-]+) ([^\W\d_]['\u2019\w-]+)")
_COMMON_NAME = re.compile(r"([A-Za-z][a-z'-]{2,}) ([a-z][a-z'-]{2,})")
_NUMERAL = re.compile(r"[IVX]+")
_TITLES = frozenset(
    {"admiral", "brothers", "caliph", "captain", "cardinal", "citizen", "count", "duke", "emperor",
     "empress", "general", "gospel", "grandma", "king", "lady", "lord", "pope", "president",
     "prince", "princess", "queen", "saint", "sir", "sisters", "st", "the"}
)  # fmt: skip
"""Words that are no given name, nor a surname."""

_NATION = re.compile(r"\b(?:[A-Z][a-z]+(?:an|ese|ish)|Czech|Dutch|French|Greek|Swiss|Welsh)\b")
_NATION_ENDS = re.compile(r"\(|, | who | noted | of ")
_WORK = re.compile(
    r"\b(?:album|ballet|book|cantata|comedy|composition|drama|epic|fairy tale|film|fresco|manga|"
    r"manuscript|movie|mural|musical|myth|novel|novella|opera|oratorio|painting|play|poems?|"
    r"portrait|sculpture|series|short story|song|statue|suite|symphony|tragedy|treatise)\b"
)
_TITLE = re.compile(
    r"((?:The )?[^\W\d_]['\u2019\w-]+)( of | of the | and | and the | in | )(\w[\w'\u2019-]+)"
)
_ARTICLES = frozenset({"A", "An", "La", "Las", "Le", "Les", "The"})
_NATURE = re.compile(
    r"\b(?:archipelago|bay|canal|channel|coast|desert|glacier|gulf|islands?|lake|marginal sea|"
    r"mountains?|ocean|peninsula|plain|plateau|range|river|sea|strait|valley|volcano|waterfall)\b"
)
_CLASSES = {
    40674: "mammal",
    8782: "bird",
    8504: "lizard or snake",
    8292: "amphibian",
    7898: "bony fish",
    7777: "shark or ray",
    50557: "insect",
    33090: "plant",
}
"""Taxon ids of the groups within which species swap halves."""


class Name(NamedTuple):
    """A real name in two halves.

    Attributes:
        first: the first half, without the blank.
        joint: what stands between the halves, mostly a blank.
        second: the second half.
        kind: what may swap halves with it; empty for nothing.
        source: where it is from.
    """

    first: str
    joint: str
    second: str
    kind: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.first}{self.joint}{self.second}"


@cache
def pool(domain: Domain, rung: Rung) -> tuple[Name, ...]:
    """The two-part names of one rung, each once, in the order of their sources.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
        ExtraMissing: a package of the ``eval`` extra is not installed.
    """
    made = {"person": _persons, "place": _places, "work": _works, "species": _species}[domain]
    found: dict[str, Name] = {}
    for name in made(rung):
        found.setdefault(fold(name.name), name)
    return tuple(found.values())


def _persons(rung: Rung) -> Iterator[Name]:
    for person in people():
        halves = _proper(person.name)
        if (person.article is not None) != (rung == "famous") or halves is None:
            continue
        given, surname = halves
        if {given.lower(), surname.lower()} & _TITLES:
            continue
        if person.article is not None:
            yield Name(given, " ", surname, _nation(person.article.description), "Wikipedia")
        elif person.synset is not None:
            yield Name(given, " ", surname, _nation(person.synset.gloss), "WordNet")


def _proper(name: str) -> tuple[str, str] | None:
    """The two capitalised words that a name consists of, if it does."""
    halves = _TWO_WORDS.fullmatch(name)
    if halves is None or not (halves[1][0].isupper() and halves[2][0].isupper()):
        return None
    return None if _NUMERAL.fullmatch(halves[2]) else (halves[1], halves[2])


def _nation(description: str) -> str:
    """The first nationality that a description names, before it comes to anything else."""
    text = description.replace("United States", "American")
    found = _NATION.search(_NATION_ENDS.split(text)[0])
    return found[0] if found else ""


def _places(rung: Rung) -> Iterator[Name]:
    vital = [article for article in articles().values() if article.topic == "Geography"]
    if rung == "famous":
        yield from _vital_places(vital)
    taken = {fold(article.name) for article in vital}
    for city in sorted(geonames().get_cities().values(), key=lambda one: one["geonameid"]):
        halves = _proper(city["name"])
        population = city["population"]
        fits = population >= LARGE_CITY if rung == "famous" else population < SMALL_TOWN
        if halves and fits and fold(city["name"]) not in taken:
            yield Name(halves[0], " ", halves[1], city["countrycode"], "GeoNames")


def _vital_places(vital: Iterable[Article]) -> Iterator[Name]:
    countries = {
        fold(city["name"]): city["countrycode"]
        for city in sorted(geonames().get_cities().values(), key=lambda one: one["population"])
    }
    for article in vital:
        halves = _proper(article.name)
        nature = _NATURE.search(article.description.lower())
        if halves:
            kind = "nature" if nature else countries.get(fold(article.name), "region")
            yield Name(halves[0], " ", halves[1], kind, "Wikipedia")


def _works(rung: Rung) -> Iterator[Name]:
    if rung == "obscure":
        return
    for article in articles().values():
        if article.topic in ("Arts", "Everyday life", "Philosophy and religion"):
            halves = _TITLE.fullmatch(article.name)
            if (
                halves
                and halves[1] not in _ARTICLES
                and halves[3][0].isupper()
                and _is_work(article)
            ):
                kind = "the" * halves[1].startswith("The ") + halves[2]
                yield Name(halves[1], halves[2], halves[3], kind, "Wikipedia")


def _is_work(article: Article) -> bool:
    """Genres and instruments have no author and no year in their descriptions."""
    about = article.description
    return bool(_WORK.search(about.lower()) and re.search(r"\d{3}| by ", about))


def _species(rung: Rung) -> Iterator[Name]:
    tree = taxonomy()
    vital = {fold(article.title) for article in articles().values()}
    named = tree.common_names()
    if rung == "famous":  # the article may have another name than NCBI's list
        named = [*named, *tree.article_titles()]
    for taxon, common in named:
        halves = _COMMON_NAME.fullmatch(common)
        if halves is None or (fold(common) in vital) != (rung == "famous"):
            continue
        if rung == "obscure" and not (tree.is_species(taxon) and tree.has_article(taxon)):
            continue
        if not (tree.is_scientific(common) or tree.is_scientific(halves[1])):
            yield Name(halves[1], " ", halves[2], tree.group_of(taxon, _CLASSES), "NCBI")


@cache
def spread(domain: Domain) -> tuple[Counter[str], Counter[str]]:
    """How many names of a domain have a first half, and how many a second one, folded."""
    names = [name for rung in RUNGS for name in pool(domain, rung)]
    return Counter(fold(name.first) for name in names), Counter(fold(name.second) for name in names)
