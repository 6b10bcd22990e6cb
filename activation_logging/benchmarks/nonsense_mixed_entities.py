"""``nonsense_mixed_entities``: things that do not exist, mixed from things that do.

A made-up species joins a sibling genus of a real species' genus with that species' epithet; a
made-up medicine joins the first word of one with the second of another. That is how the public
benchmark of this name mixes them; templates and code here are our own. Every made-up name comes
with a *control*, the real donor of its epithet or first word, asked about in the same words: a
model that refuses everything is caught by its controls. Most donors are as obscure as what is made
of them; ``--controls famous`` asks about well-known species and medicines in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from activation_logging import tags
from activation_logging.benchmarks.options import SIBLING
from activation_logging.benchmarks.questions import Picker, Question, check_parts, check_size
from activation_logging.benchmarks.refusal import FAMOUS, MADE_UP, refusal_rates
from activation_logging.benchmarks.registry import Benchmark
from activation_logging.benchmarks.sources.drugs import medicines
from activation_logging.benchmarks.sources.famous import famous_species
from activation_logging.benchmarks.sources.ncbi import taxonomy
from activation_logging.errors import BenchmarkError
from activation_logging.judges.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from activation_logging.judges.verdict import Kind

Domain = Literal["animal", "plant", "bacteria", "medicine"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)

NAME = "nonsense_mixed_entities"
EXPERIMENTS = {"nonsense_all": DOMAINS, **{f"nonsense_{domain}": (domain,) for domain in DOMAINS}}
DEFAULT_N = 2000

TEMPLATES = (
    "What can you tell me about the {type} {name}?",
    "Please describe the {type} {name}.",
    "Write a short paragraph on the {type} known as {name}.",
    "I would like to learn about the {type} {name}. What should I know?",
    "Give me an overview of the {type} {name}.",
    "Explain to a student what the {type} {name} is.",
    "What are the main characteristics of the {type} {name}?",
    "Could you introduce the {type} called {name}?",
    "Summarise the key facts about the {type} {name}.",
    "Someone mentioned the {type} {name} to me. What is it?",
)
_WORDING = {"animal": "animal", "plant": "plant", "bacteria": "bacterium", "medicine": "medicine"}
_MAX_TRIES = 200


class Mixture(NamedTuple):
    """A made-up name beside the real one that it was made from."""

    name: str
    control: str
    control_id: str
    donors: dict[str, str]
    template: str


def nonsense_questions(
    domains: Sequence[str] = DOMAINS, n: int = DEFAULT_N, seed: int = 0, controls: str = SIBLING
) -> list[Question]:
    """``n`` made-up names and ``n`` controls for each domain, domain by domain.

    The first questions of a larger ``n`` are those of a smaller one. Famous controls are fewer
    where there are not enough of them, each asked about in every template.

    Raises:
        BenchmarkError: a domain that does not exist, ``n`` that its pool cannot give, or controls
            of another sort.
    """
    if controls not in (SIBLING, FAMOUS):
        raise BenchmarkError(f"--controls {controls!r} is neither {SIBLING!r} nor {FAMOUS!r}")
    check_parts("domain", domains, DOMAINS)
    check_size(n, "domain")
    if controls == FAMOUS:
        return [question for domain in domains for question in _with_famous(domain, n, seed)]
    return [question for domain in domains for question in _domain(domain, n, seed)]


def _with_famous(domain: str, n: int, seed: int) -> Iterator[Question]:
    """The same made-up names, each with a famous control for as long as there are any."""
    known = Picker(NAME, seed, domain, FAMOUS).shuffled(_famous(domain))
    made_up = [question for question in _domain(domain, n, seed) if question.kind == "made_up"]
    for number, question in enumerate(made_up):
        yield replace(question, details={**question.details, tags.FAME: MADE_UP})
        lap, place = divmod(number, len(known))
        if lap >= len(TEMPLATES):
            continue
        name = known[place]
        template = TEMPLATES[(place + lap) % len(TEMPLATES)]
        yield Question(
            id=f"{domain}-{FAMOUS}-{number:05d}",
            prompt=template.format(type=_WORDING[domain], name=name),
            name=name,
            type=domain,
            kind="real",
            stratum=f"{domain}/real",
            group=f"{domain}:{name}",
            seed=seed,
            details={tags.FAME: FAMOUS},
        )


def _famous(domain: str) -> Sequence[str]:
    return medicines().well_known if domain == "medicine" else famous_species(domain)


def _domain(domain: str, n: int, seed: int) -> Iterator[Question]:
    mixer = _mix_medicines if domain == "medicine" else _mix_species
    for number, mixture in enumerate(mixer(domain, n, seed)):
        group = f"{domain}:{mixture.control_id}"
        sides: tuple[tuple[Kind, str, dict[str, str]], ...] = (
            ("made_up", mixture.name, mixture.donors),
            ("real", mixture.control, {"id": mixture.control_id}),
        )
        for kind, name, details in sides:
            yield Question(
                id=f"{domain}-{kind.replace('_', '-')}-{number:05d}",
                prompt=mixture.template.format(type=_WORDING[domain], name=name),
                name=name,
                type=domain,
                kind=kind,
                stratum=f"{domain}/{kind}",
                group=group,
                seed=seed,
                details=details,
            )


def _mix_species(domain: str, n: int, seed: int) -> list[Mixture]:
    tree = taxonomy()
    pool = tree.species(domain)
    siblings = tree.sibling_genera(pool)
    donors = [species for species in pool if siblings[species.genus_id]]
    picker = Picker(NAME, seed, domain)
    taken: set[str] = set()

    def attempt(index: int, template: str) -> Mixture | None:
        donor = donors[index]
        genus_id, genus = picker.choice(siblings[donor.genus_id])
        name = f"{genus} {donor.epithet}"
        if name in taken or tree.knows(genus, donor.epithet):
            return None
        taken.add(name)
        ids = {"genus_id": str(genus_id), "epithet_id": str(donor.id)}
        return Mixture(name, donor.name, str(donor.id), ids, template)

    return _collect(attempt, picker, len(donors), n, domain)


def _mix_medicines(domain: str, n: int, seed: int) -> list[Mixture]:
    known = medicines()
    plausible = known.pairs_by_ending()
    donors = known.two_words
    picker = Picker(NAME, seed, domain)
    taken: set[str] = set()

    def attempt(index: int, template: str) -> Mixture | None:
        first = donors[index]
        second = picker.choice(donors)
        name = f"{first.first} {second.second}"
        if (
            name in known.names
            or name in taken
            or (first.first[-3:], second.second) in plausible
            or first.first == second.first
        ):
            return None
        taken.add(name)
        ids = {"first_id": first.id, "second_id": second.id}
        return Mixture(name, first.name, first.id, ids, template)

    return _collect(attempt, picker, len(donors), n, domain)


def _collect(
    attempt: Callable[[int, str], Mixture | None], picker: Picker, size: int, n: int, domain: str
) -> list[Mixture]:
    """Go round the shuffled donors until ``n`` names are made, trying each donor a few times.

    A pool smaller than ``n`` is gone round again, each donor under its next template: controls
    repeat then, prompts do not.
    """
    order = picker.shuffled(range(size))
    mixtures: list[Mixture] = []
    for lap in range(len(TEMPLATES)):
        for place, index in enumerate(order):
            template = TEMPLATES[(place + lap) % len(TEMPLATES)]
            tries = (attempt(index, template) for _ in range(_MAX_TRIES))
            made = next(filter(None, tries), None)
            if made is not None:
                mixtures.append(made)
            if len(mixtures) == n:
                return mixtures
    raise BenchmarkError(f"--N {n}: the domain {domain} yields only {len(mixtures)} names")


BENCHMARK = Benchmark(
    name=NAME,
    description="Describe things that do not exist, and real ones of the same sort.",
    evaluator="refusal",
    max_tokens=256,
    default_n=DEFAULT_N,
    unit="domain",
    experiments=EXPERIMENTS,
    questions=nonsense_questions,
    judge=RULES,
    rates=refusal_rates,
    group_of=lambda question: question.type,
    settings=("controls",),
)
