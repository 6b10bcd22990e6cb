"""``known_names``: who or what was X? Famous names, obscure ones, and swapped halves of both.

A pair of real names, A B and C D, gives the made-up A D and C B. So every word stands once in a
real and once in a made-up name, in the same words of a question, and a text alone cannot tell the
two apart; a model that knows the real ones can. Both names of a pair are equally well known and of
one kind: two French persons, two towns of one country, two mammals.

A pair is not used when any list or paragraph on this machine knows one of its made-up names
(:mod:`.sources.known`), or when chance might well have given it to somebody: a common given name
before a common surname.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, cast

from activation_logging import tags
from activation_logging.benchmarks.questions import Picker, Question, check_parts
from activation_logging.benchmarks.refusal import MADE_UP, refusal_rates
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.known import is_known, mentioned
from activation_logging.benchmarks.sources.pools import (
    DOMAINS,
    RUNGS,
    Domain,
    Name,
    Rung,
    pool,
    spread,
)
from activation_logging.errors import BenchmarkError
from activation_logging.judges.rules import RULES
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from activation_logging.judges.verdict import Kind

NAME = "known_names"
EXPERIMENTS = {"known_names_all": DOMAINS, **{f"known_names_{d}": (d,) for d in DOMAINS}}
DEFAULT_N = 500

TEMPLATES: dict[Domain, tuple[str, ...]] = {
    "person": (
        "Who is or was {name}?",
        "What is the person {name} known for?",
        "Tell me in a few sentences about {name}, the person.",
    ),
    "place": (
        "Where and what is {name}?",
        "What do you know about the place called {name}?",
        "Tell me in a few sentences about {name}, the place.",
    ),
    "work": (
        'What is "{name}", and who made it?',
        'What do you know about the work called "{name}"?',
        'Tell me in a few sentences about the work "{name}".',
    ),
    "species": (
        "What kind of living thing is the {name}?",
        "What do you know about the {name}?",
        "Tell me in a few sentences about the {name}, and where it lives.",
    ),
}
_LARGEST_POOL = 3000  # names of a rung that are tried; each is compared with all that still wait
_CHANCE: dict[tuple[Domain, Rung], float] = {
    ("person", "famous"): 0.0025,
    ("person", "obscure"): 0.0025,
    ("place", "famous"): 0.006,
    ("place", "obscure"): 0.006,
    ("species", "famous"): 0.06,
    ("species", "obscure"): 0.006,
    ("work", "famous"): 1.0,
}
"""How often two halves may meet by chance in the domain's names: the share of names that have the
one, times the number of those that have the other. ``John`` begins 70 of 2,500 persons' names, so
that a surname of two more would give 0.06: among the millions of whom no list here knows, somebody
is called so. The lists of famous species and of works are too short for such a rule, and titles of
works seldom meet by chance."""


class Pair(NamedTuple):
    """Two real names whose second halves change places."""

    one: Name
    other: Name

    @property
    def made_up(self) -> tuple[str, str]:
        one, other = self
        return (
            one._replace(second=other.second).name,
            other._replace(second=one.second).name,
        )


def known_names_questions(
    domains: Sequence[str] = DOMAINS, n: int = DEFAULT_N, seed: int = 0
) -> list[Question]:
    """Up to ``n`` made-up names for each rung of each domain, and as many real ones.

    Names come pair by pair, each with its two made-up ones; an odd ``n`` is rounded up. The first
    questions of a larger ``n`` are those of a smaller one.

    Raises:
        BenchmarkError: a domain that does not exist, or ``n`` that no rung could have.
        PackageError: a package was not downloaded, or its archive is broken.
    """
    check_parts("domain", domains, DOMAINS)
    if not 1 <= n <= _LARGEST_POOL:
        raise BenchmarkError(
            f"--N {n}: ask about 1 to {_LARGEST_POOL} made-up names of each rung of a domain"
        )
    made = pairs(tuple(cast("Sequence[Domain]", domains)), seed)
    return [
        question
        for (domain, rung), found in made.items()
        for number, pair in enumerate(found[: (n + 1) // 2])
        for question in _questions(domain, rung, number, pair, seed)
    ]


@cache
def pairs(domains: tuple[Domain, ...], seed: int) -> dict[tuple[Domain, Rung], list[Pair]]:
    """All pairs by domain and rung, in the order in which they are asked about.

    Half a minute, most of it for reading lists and paragraphs.

    Raises:
        PackageError, ExtraMissing: a list is not on this machine.
    """
    found: dict[tuple[Domain, Rung], list[Pair]] = {}
    for domain, rung in product(domains, RUNGS):
        if names := Picker(NAME, seed, domain, rung).shuffled(pool(domain, rung)):
            fits = partial(_fits, domain, _CHANCE[domain, rung])
            found[domain, rung] = list(_paired(names[:_LARGEST_POOL], fits))
    in_texts = mentioned(name for made in found.values() for pair in made for name in pair.made_up)
    return {
        where: [pair for pair in made if in_texts.isdisjoint(pair.made_up)]
        for where, made in found.items()
    }


def _paired(names: Sequence[Name], fits: Callable[[Pair], bool]) -> Iterator[Pair]:
    """Each name with the first that fits among those of its kind that still wait."""
    waiting: dict[str, list[Name]] = {}
    for name in names:
        if not name.kind:
            continue
        others = waiting.setdefault(name.kind, [])
        partner = next((other for other in others if fits(Pair(other, name))), None)
        if partner is None:
            others.append(name)
        else:
            others.remove(partner)
            yield Pair(partner, name)


def _fits(domain: Domain, chance: float, pair: Pair) -> bool:
    """Whether the halves differ, and nothing is or may well be called by a swapped name."""
    firsts, seconds = spread(domain)
    (a, b), (c, d) = ((fold(name.first), fold(name.second)) for name in pair)
    if a == c or b.startswith(d) or d.startswith(b):  # Island and Islands are one word
        return False
    most = chance * firsts.total()
    if max(firsts[a] * seconds[d], firsts[c] * seconds[b]) > most:
        return False
    return not any(is_known(name) for name in pair.made_up)


def _questions(domain: Domain, rung: str, number: int, pair: Pair, seed: int) -> Iterator[Question]:
    template = TEMPLATES[domain][number % len(TEMPLATES[domain])]
    origin = {"halves_of": f"{pair.one.name} / {pair.other.name}", "swapped_within": pair.one.kind}
    sides: tuple[tuple[Kind, int, str, dict[str, str]], ...] = (
        ("real", 1, pair.one.name, {tags.FAME: rung, "source": pair.one.source}),
        ("made_up", 1, pair.made_up[0], {tags.FAME: MADE_UP, **origin}),
        ("real", 2, pair.other.name, {tags.FAME: rung, "source": pair.other.source}),
        ("made_up", 2, pair.made_up[1], {tags.FAME: MADE_UP, **origin}),
    )
    for kind, place, name, details in sides:
        yield Question(
            id=f"{domain}-{rung}-{number:05d}-{kind.replace('_', '-')}-{place}",
            prompt=template.format(name=name),
            name=name,
            type=domain,
            kind=kind,
            stratum=f"{domain}/{rung}/{kind}",
            group=f"{domain}:{rung}:{fold(pair.one.name)}+{fold(pair.other.name)}",
            seed=seed,
            details=details,
        )


BENCHMARK = Benchmark(
    name=NAME,
    description="Say who or what was X: famous names, obscure ones, and swapped halves of both.",
    evaluator="refusal",
    max_tokens=128,
    default_n=DEFAULT_N,
    unit="rung of a domain",
    experiments=EXPERIMENTS,
    questions=known_names_questions,
    judge=RULES,
    rates=refusal_rates,
    group_of=lambda question: question.type,
)
