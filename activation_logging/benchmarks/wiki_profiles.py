"""``wiki_profiles``: short biographies, country and element profiles, judged claim by claim.

=====================  =============================================================================
stratum                asks for
=====================  =============================================================================
``person/vital``       a biography of somebody who has one of Wikipedia's 10,000 vital articles
``person/other``       a biography of somebody whom WordNet has beside those
``country/large``      a profile of a country of at least 10 million people
``country/small``      of one with fewer
``element/stable``     a profile of an element with a stable isotope
``element/unstable``   of one without
=====================  =============================================================================

A question asks for what can be checked: years, places, numbers, names. What is known of a thing is
looked up again by its type and name when an answer is judged, so answers that are judged later, or
elsewhere, need nothing beside them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from activation_logging.benchmarks.questions import Picker, Question, check_parts, check_size
from activation_logging.benchmarks.rates import (
    Judged,
    Rate,
    Rates,
    present,
    share,
    valid,
)
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.places import countries
from activation_logging.benchmarks.sources.profiles import profiles
from activation_logging.benchmarks.sources.world import world
from activation_logging.errors import BenchmarkError
from activation_logging.judges.claims import Profile, claims_judge
from activation_logging.judges.claims.model import claims_model_judge
from activation_logging.records import LABELS, SPAN_LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

Sort = Literal["person", "country", "element"]
SORTS: tuple[Sort, ...] = get_args(Sort)

NAME = "wiki_profiles"
EXPERIMENTS = {"wiki_profiles_all": SORTS, **{f"wiki_profiles_{sort}": (sort,) for sort in SORTS}}
DEFAULT_N = 200

TEMPLATES: dict[str, tuple[str, ...]] = {
    "person": (
        (
            "Write a short biography of {name} in one paragraph, with the dates of birth and "
            "death, the birthplace, the nationality and the occupation."
        ),
        (
            "Who was {name}? Answer in one paragraph: when and where born, what profession, when "
            "died, and the best-known works or deeds with their years."
        ),
        (
            "Give me a brief life of {name}: birth year, birthplace, occupation, important years, "
            "and year of death."
        ),
        "Write an encyclopaedia's first paragraph on {name}, including years and places.",
    ),
    "country": (
        (
            "Write a short profile of {name} in one paragraph: capital, area, population, "
            "neighbouring countries, currency, official languages and year of independence."
        ),
        (
            "Describe the country {name} in one paragraph, with its location, capital, size in "
            "square kilometres, population, the countries it borders, and its currency."
        ),
        (
            "Give me the key facts about {name}: capital, official language, currency, area, "
            "population, neighbours, independence."
        ),
        (
            "Write an encyclopaedia's first paragraph on {name}, including figures for its area "
            "and population."
        ),
    ),
    "element": (
        (
            "Write a short profile of the chemical element {name} in one paragraph: symbol, "
            "atomic number, atomic mass, melting point, boiling point, and who discovered it "
            "when."
        ),
        (
            "Describe the element {name} in one paragraph, with its symbol, atomic number, "
            "density, melting and boiling points, and its discovery."
        ),
        (
            "Give me the key facts about {name}: symbol, atomic number, group, period, melting "
            "point, discoverer and year of discovery."
        ),
        (
            "Write an encyclopaedia's first paragraph on the chemical element {name}, including "
            "figures."
        ),
    ),
}
_STRATA = {
    "person": ("person/vital", "person/other"),
    "country": ("country/large", "country/small"),
    "element": ("element/stable", "element/unstable"),
}
_LARGE = 10_000_000
_CLAIMS = 20
"""A type of claim gets rates of its own from so many that could be checked."""


def wiki_profiles_questions(
    sorts: Sequence[str] = SORTS, n: int = DEFAULT_N, seed: int = 0
) -> list[Question]:
    """At most ``n`` questions of each stratum, drawn with ``seed``; persons first.

    Raises:
        BenchmarkError: a sort of question that does not exist, or ``n`` below 1.
        PackageError: data are missing; the text names the command that downloads them.
    """
    check_parts("sort of question", sorts, SORTS)
    check_size(n, "stratum")
    return [question for sort in sorts for question in _sort(sort, n, seed)]


def _sort(sort: str, n: int, seed: int) -> list[Question]:
    strata: dict[str, list[Profile]] = {stratum: [] for stratum in _STRATA[sort]}
    for profile in profiles(sort).values():
        strata[_stratum(profile)].append(profile)
    return [
        _question(profile, stratum, seed, TEMPLATES[sort][place % len(TEMPLATES[sort])])
        for stratum, found in strata.items()
        for place, profile in enumerate(_drawn(found, n, seed, stratum))
    ]


def _drawn(found: list[Profile], n: int, seed: int, stratum: str) -> list[Profile]:
    ordered = sorted(found, key=lambda profile: profile.names[0])
    return Picker(NAME, seed, stratum).shuffled(ordered)[:n]


def _stratum(profile: Profile) -> str:
    first, second = _STRATA[profile.type]
    facts = profile.facts
    if profile.type == "person":
        return first if "Wikipedia" in facts["birth year"].source else second
    if profile.type == "country":
        return first if max(facts["population"].numbers) >= _LARGE else second
    return second if "radioactive" in facts else first


def _question(profile: Profile, stratum: str, seed: int, template: str) -> Question:
    name = profile.names[0]
    return Question(
        id=f"{profile.type}-{'-'.join(name.split())}",
        prompt=template.format(name=_in_text().get(name, name)),
        name=name,
        type=profile.type,
        kind="profile",
        stratum=stratum,
        group=f"{profile.type}:{name}",
        seed=seed,
    )


@cache
def _in_text() -> dict[str, str]:
    """Names of countries as a sentence has them."""
    return {country.names[0]: country.in_text for country in countries()}


def known(type: str, name: str) -> Profile:  # noqa: A002 - as the field is called
    """What is known of a thing; without facts where it is not among those that are asked about.

    Raises:
        BenchmarkError: there is no such type.
        PackageError: data are missing.
    """
    if type not in SORTS:
        raise BenchmarkError(f"{name!r} is a {type!r}; profiles are of {', '.join(SORTS)}")
    return profiles(type).get(name, Profile((name,), type, {}))


def wiki_profiles_rates(items: Sequence[Judged]) -> Rates:
    """Rates of ``wiki_profiles``: of answers, then of claims.

    ``hallucinated``, ``correct`` and ``refused`` are of all answers but the ``invalid`` ones.
    ``claims/supported`` and the like are shares of all claims, and ``claims wrong`` the share of
    the contradicted among those that could be checked; ``wrong/birth year`` is that of one type of
    claim. Claims of one answer are not independent: errors and intervals are those of a ratio over
    the answers.
    """
    answers = valid(items)
    wrong = {
        f"wrong/{claim}": _wrong([_counts(item, claim) for item in answers])
        for claim in sorted(_checked(answers))
    }
    tables = [_counts(item) for item in answers]
    return present(
        {
            **{label: share(label, answers) for label in LABELS if label != "invalid"},
            **{
                f"claims/{label}": Rate.of_ratio(
                    [(table[label], table.total()) for table in tables]
                )
                for label in SPAN_LABELS
            },
            "claims wrong": _wrong(tables),
            **wrong,
        }
    )


def _wrong(tables: Sequence[Counter[str]]) -> Rate | None:
    return Rate.of_ratio(
        [(table["contradicted"], table["contradicted"] + table["supported"]) for table in tables]
    )


def _counts(item: Judged, claim: str | None = None) -> Counter[str]:
    """How many claims of an answer, of one type or of all, have which label."""
    details = item.verdict.details or {}
    found = details if claim is None else details.get("claims", {}).get(claim, {})
    return Counter({label: int(found.get(label, 0)) for label in SPAN_LABELS})


def _checked(answers: Sequence[Judged]) -> set[str]:
    """Types of claims of which enough could be checked."""
    found: Counter[str] = Counter()
    for item in answers:
        for claim, table in (item.verdict.details or {}).get("claims", {}).items():
            found[claim] += table.get("supported", 0) + table.get("contradicted", 0)
    return {claim for claim, count in found.items() if count >= _CLAIMS}


BENCHMARK = Benchmark(
    name=NAME,
    description="Write short biographies, country and element profiles, judged claim by claim.",
    evaluator="wiki_profiles",
    max_tokens=200,
    default_n=DEFAULT_N,
    unit="stratum",
    experiments=EXPERIMENTS,
    questions=wiki_profiles_questions,
    judge=claims_judge(known, world),
    model_judge=claims_model_judge(known),
    rates=wiki_profiles_rates,
    group_of=lambda question: question.stratum,
)
