"""Places: the country of a river, lake, mountain, island or city, and the state of a city.

WordNet says what a place is a part of. It counts where all that it says leads to one country, and
its gloss names no other. A city's country or state must be GeoNames' too, and no other city may
have its name. Of the United States, where most of WordNet's places are, only the states of cities
are asked for: else one answer would be right too often.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from activation_logging.benchmarks.sources.places import (
    DISPUTED_CITIES,
    DISPUTED_DIVISIONS,
    HOME_NATIONS,
    countries,
    country_names,
    geonames,
    unambiguous_cities,
    us_states,
)
from activation_logging.benchmarks.sources.wordnet import Synset, instances_of, nouns
from activation_logging.benchmarks.wiki.fact import Fact, article_of, gives_away, slug
from activation_logging.judges.values import find_names
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterator

# A class of WordNet -> the word for it, which some of its names contain.
_FEATURES = {
    "river": "River", "lake": "Lake", "mountain peak": "Mount|Mountain|Peak", "mountain": "Mount",
    "island": "Island", "waterfall": "Falls", "desert": "Desert",
}  # fmt: skip
# In two countries, or in another one, whatever WordNet says.
_LEFT_OUT = frozenset({
    "Constance", "Kyzyl Kum", "Nubian Desert", "Orange", "Purus", "Sombrero", "Timor",
    "Turkestan Desert",
})  # fmt: skip
_GROUP = re.compile(r"\b(?:islands|islets|archipelago)\b", re.IGNORECASE)
_MAX_STEPS = 6  # from a place to its country


def places() -> Iterator[Fact]:
    """All facts whose answer is a country or a state."""
    yield from {fact.id: fact for fact in _features()}.values()  # some are mountain and island
    yield from _cities()
    yield from _cities_of_states()


def _features() -> Iterator[Fact]:
    by_code = {country.code: country for country in countries()}
    for feature, word in _FEATURES.items():
        synsets = instances_of(feature)
        singles = [synset for synset in synsets if not _GROUP.search(synset.names[0])]
        for synset in singles:
            if feature == "island" and _GROUP.search(synset.gloss.split(";")[0][:60]):
                continue
            country = by_code.get(_country_of(synset) or "")
            same = sum(not set(synset.names).isdisjoint(other.names) for other in synsets)
            if country is None or country.code == "US" or same > 1 or synset.names[0] in _LEFT_OUT:
                continue
            gold = (*country.names, *(HOME_NATIONS.values() if country.code == "GB" else ()))
            if any(
                gives_away(name, gold) or fold(name) in country_names() for name in synset.names
            ):
                continue
            full = [name for name in synset.names if re.search(rf"\b(?:{word})\b", name)]
            name = min(full or synset.names[:1], key=len)
            kind = feature.removesuffix(" peak")
            the = "the " if kind in {"river", "desert"} else ""
            called = f"{the}{name}" if full else f"the {kind} {name}"
            article = article_of(*synset.names, about=f"{kind}|volcano")
            yield Fact(
                id=f"feature-country-{synset.id}",
                sort="feature country",
                name=name,
                prompt=f"In which country is {called}? Give only the name of the country.",
                gold=gold,
                fame="vital" if article else "other",
                group=f"place:{slug(name)}",
                sources=("WordNet",),
            )


def _cities() -> Iterator[Fact]:
    by_code = {country.code: country for country in countries()}
    ours = {fold(city["name"]): city for city in unambiguous_cities()}
    for synset in _settlements():
        city = next((ours[fold(name)] for name in synset.names if fold(name) in ours), None)
        if city is None or city["geonameid"] in DISPUTED_CITIES:
            continue
        if (city["countrycode"], city["admin1code"]) in DISPUTED_DIVISIONS:
            continue
        country = by_code.get(city["countrycode"])
        if country is None or country.code == "US" or _country_of(synset) != country.code:
            continue
        nation = HOME_NATIONS.get(city["admin1code"]) if country.code == "GB" else None
        gold = (*country.names, nation) if nation else country.names
        if gives_away(city["name"], gold):
            continue
        article = article_of(city["name"], *synset.names, about="city|town|capital")
        yield Fact(
            id=f"city-country-{city['geonameid']}",
            sort="city country",
            name=city["name"],
            prompt=f"In which country is the city of {city['name']}? "
            "Give only the name of the country.",
            gold=gold,
            fame="vital" if article else "other",
            group=f"place:{slug(city['name'])}",
            sources=("WordNet", "GeoNames"),
        )


def _cities_of_states() -> Iterator[Fact]:
    states: dict[str, set[str]] = {}
    for city in geonames().get_cities().values():
        if city["countrycode"] == "US":
            states.setdefault(fold(city["name"]), set()).add(city["admin1code"])
    for synset in _settlements():
        name = synset.names[0]
        known = states.get(fold(name), set())
        state = us_states().get(next(iter(known))) if len(known) == 1 else None
        wholes = {nouns()[whole].names[0] for whole in synset.wholes}
        if state is None or wholes != {state} or gives_away(name, (state,)):
            continue
        article = article_of(name, about="city|town|capital")
        yield Fact(
            id=f"city-state-{slug(name)}-{slug(state)}",
            sort="city state",
            name=name,
            prompt=f"In which state of the United States is the city of {name}? "
            "Give only the name of the state.",
            gold=(state,),
            fame="vital" if article else "other",
            group=f"place:{slug(name)}",
            sources=("WordNet", "GeoNames"),
        )


@cache
def _settlements() -> tuple[Synset, ...]:
    """Cities and towns whose first name no other has."""
    found = {synset.id: synset for kind in ("city", "town") for synset in instances_of(kind)}
    counts: dict[str, int] = {}
    for synset in found.values():
        counts[fold(synset.names[0])] = counts.get(fold(synset.names[0]), 0) + 1
    return tuple(s for s in found.values() if counts[fold(s.names[0])] == 1)


def _country_of(synset: Synset) -> str | None:
    """The code of the one country that a place is in; None if there are several, or none."""
    found: set[str] = set()
    level = [nouns()[whole] for whole in synset.wholes]
    for _ in range(_MAX_STEPS):
        above: list[Synset] = []
        for whole in level:
            codes = {country_names().get(fold(name), "") for name in whole.names} - {""}
            # Georgia is a state too, and the Congo a river.
            if len(codes) == 1 and not _is_state(whole):
                found |= codes
            else:
                above += [nouns()[higher] for higher in whole.wholes]
        level = above
    mentioned = {name.value for name in find_names(synset.gloss, country_names())} - {""}
    return found.pop() if len(found) == 1 and mentioned <= found else None


def _is_state(synset: Synset) -> bool:
    return synset.names[0] in us_states().values() and "state" in synset.gloss
