"""``generated_entities``: things that a model has invented by itself, and that no list knows.

The tested model, or others that ``--generator`` names, invent names of people, places, works,
species and medicines; :mod:`.inventing` keeps those that nothing on this machine knows. Then they
are asked about, beside famous names of the same sort. The idea is that of the generated entities of
HalluLens; wording and code here are our own.

Unlike swapped halves, an invented name may give itself away by its words alone: compare what a
probe finds with the text-only control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from activation_logging import tags
from activation_logging.benchmarks import known_names
from activation_logging.benchmarks.inventing import TEMPERATURE, THINGS, inventions
from activation_logging.benchmarks.questions import Picker, Question, check_parts
from activation_logging.benchmarks.refusal import FAMOUS, MADE_UP, refusal_rates
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.drugs import medicines
from activation_logging.benchmarks.sources.pools import pool
from activation_logging.errors import BenchmarkError
from activation_logging.judges.rules import RULES
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from activation_logging.benchmarks.inventing import Invention
    from activation_logging.benchmarks.options import Inventor
    from activation_logging.benchmarks.sources.pools import Domain

NAME = "generated_entities"
DOMAINS = tuple(THINGS)
EXPERIMENTS = {
    "generated_entities_all": DOMAINS,
    **{f"generated_entities_{domain}": (domain,) for domain in DOMAINS},
}
DEFAULT_N = 50

TEMPLATES: dict[str, tuple[str, ...]] = {
    **{str(domain): templates for domain, templates in known_names.TEMPLATES.items()},
    "medicine": (
        "What is the medicine {name}, and what is it for?",
        "What do you know about the medicine {name}?",
        "Tell me in a few sentences about the medicine {name}.",
    ),
}


def generated_questions(
    domains: Sequence[str] = DOMAINS,
    n: int = DEFAULT_N,
    seed: int = 0,
    generator: Sequence[Inventor] = (),
) -> list[Question]:
    """``n`` invented names and ``n`` famous ones for each domain, in turns.

    Args:
        domains: some of :data:`DOMAINS`.
        n: names of each sort.
        seed: of the choice of famous names, and of the inventing.
        generator: the models that invent, each as many as the others.

    Raises:
        BenchmarkError: nobody is to invent, a model's server does not answer, a model invents too
            little of use, or ``n`` is more than there are famous names.
        PackageError, ExtraMissing: a list of names is not on this machine.
    """
    check_parts("domain", domains, DOMAINS)
    if n < 1:
        raise BenchmarkError(f"--N {n}: ask about at least one name of each domain")
    if not generator:
        raise BenchmarkError("--generator is missing: name the model that invents, as MODEL@URL")
    famous = {domain: Picker(NAME, seed, domain).shuffled(_famous(domain)) for domain in domains}
    for domain, names in famous.items():
        if n > len(names):
            raise BenchmarkError(
                f"--N {n}: there are only {len(names)} famous names of the domain {domain}"
            )
    made = inventions(domains, generator, n, seed)
    return [
        question
        for domain in domains
        for number, (invention, name) in enumerate(zip(made[domain], famous[domain], strict=False))
        for question in _questions(domain, number, invention, name, seed)
    ]


def _famous(domain: str) -> Sequence[str]:
    if domain == "medicine":
        return medicines().well_known
    return [name.name for name in pool(cast("Domain", domain), "famous")]


def _questions(
    domain: str, number: int, invention: Invention, famous: str, seed: int
) -> Iterator[Question]:
    template = TEMPLATES[domain][number % len(TEMPLATES[domain])]
    yield Question(
        id=f"{domain}-invented-{number:05d}",
        prompt=template.format(name=invention.name),
        name=invention.name,
        type=domain,
        kind="made_up",
        stratum=f"{domain}/made_up",
        group=f"{domain}:{fold(invention.name)}",
        seed=seed,
        details={
            tags.FAME: MADE_UP,
            tags.INVENTOR: invention.model,
            "invented_with": f"seed {invention.seed}, temperature {TEMPERATURE}",
        },
    )
    yield Question(
        id=f"{domain}-{FAMOUS}-{number:05d}",
        prompt=template.format(name=famous),
        name=famous,
        type=domain,
        kind="real",
        stratum=f"{domain}/real",
        group=f"{domain}:{fold(famous)}",
        seed=seed,
        details={tags.FAME: FAMOUS},
    )


BENCHMARK = Benchmark(
    name=NAME,
    description="Describe things that a model has invented and no list knows, and famous ones.",
    evaluator="refusal",
    max_tokens=128,
    default_n=DEFAULT_N,
    unit="domain",
    experiments=EXPERIMENTS,
    questions=generated_questions,
    judge=RULES,
    rates=refusal_rates,
    group_of=lambda question: question.type,
    settings=("generator",),
)
