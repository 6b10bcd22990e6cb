"""What a benchmark is, and which benchmarks there are.

To add one, write a module that holds a :class:`Benchmark` and list it in :data:`BENCHMARKS`, or
offer it from another package by an entry point::

    [project.entry-points."activation_logging.benchmarks"]
    my_benchmark = "my_package.my_benchmark:BENCHMARK"

``activation-logging eval my_benchmark`` then runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activation_logging.errors import BenchmarkError
from activation_logging.judges.model import model_judge
from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from activation_logging.benchmarks.questions import Question
    from activation_logging.benchmarks.rates import Judged, Rates
    from activation_logging.judges.registry import Judge


@dataclass(frozen=True)
class Benchmark:
    """Questions, and how their answers are judged and counted.

    Attributes:
        name: as in the registry.
        description: one sentence for ``--help``.
        evaluator: under which name the store keeps the labels.
        max_tokens: of an answer, unless a run says otherwise.
        default_n: questions for each ``unit``, unless a run says otherwise.
        unit: what ``--N`` counts questions of, such as ``domain`` or ``stratum``.
        experiments: name -> the parts of the benchmark that it asks about; the first is the
            default.
        questions: from (parts, n, seed) to the questions: the same on every machine, their ids
            unique. Raises BenchmarkError where ``n`` is more than the data give.
        judge: the benchmark's own judge, used unless ``--judge`` names another.
        rates: from judged answers to rates by name; labels that are ``invalid`` count in none.
        group_of: which row of the result table a question belongs to.
        settings: fields of :class:`.RunOptions` that the questions depend on too; ``questions`` is
            given them by name.
        model_judge: from a model's name, Inspect's handle of it and whether vLLM serves it to the
            judge that ``--judge MODEL`` is.
        packages: distributions whose versions the run's record names, beside those that all runs
            name.
    """

    name: str
    description: str
    evaluator: str
    max_tokens: int
    default_n: int
    unit: str
    experiments: Mapping[str, Sequence[str]]
    questions: Callable[..., list[Question]]
    judge: Judge
    rates: Callable[[Sequence[Judged]], Rates]
    group_of: Callable[[Question], str]
    settings: tuple[str, ...] = ()
    model_judge: Callable[..., Judge] = model_judge
    packages: tuple[str, ...] = ()

    @property
    def default_exp(self) -> str:
        return next(iter(self.experiments))

    def make_questions(self, exp: str, n: int, seed: int, **settings: Any) -> list[Question]:
        """The questions of an experiment, with the benchmark's own ``settings``.

        Raises:
            BenchmarkError: there is no such experiment, or ``n`` is more than the data give.
        """
        return self.questions(self.experiments[self.known(exp)], n, seed, **settings)

    def known(self, exp: str) -> str:
        """The name of an experiment, if there is such a one.

        Raises:
            BenchmarkError: there is none; the text lists the names.
        """
        if exp not in self.experiments:
            raise BenchmarkError(
                f"{self.name} has no experiment {exp!r}; known are {', '.join(self.experiments)}"
            )
        return exp


BENCHMARKS = Registry(
    "benchmark",
    Benchmark,
    "activation_logging.benchmarks",
    {
        name: f"activation_logging.benchmarks.{name}:BENCHMARK"
        for name in (
            "nonsense_mixed_entities",
            "known_names",
            "generated_entities",
            "short_facts",
            "wiki_facts",
            "wiki_profiles",
        )
    },
)
