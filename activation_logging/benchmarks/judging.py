"""Which judge a run uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.benchmarks.endpoint import check_endpoint, inspect_model, served_model
from activation_logging.errors import BenchmarkError
from activation_logging.judges.registry import JUDGES, Judge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging.benchmarks.questions import Question
    from activation_logging.benchmarks.registry import Benchmark


def judge_named(benchmark: Benchmark, name: str, base_url: str | None) -> Judge:
    """The judge that ``--judge`` names.

    Args:
        benchmark: whose answers it judges.
        name: ``rules`` for the benchmark's own judge, which the option's default has always
            meant; another judge of the registry; or a model.
        base_url: where that model is served; None for a model that Inspect knows by its name.

    Raises:
        BenchmarkError: the model's server does not answer or does not serve it.
        PluginError: another package offers this judge, and it cannot be loaded.
    """
    if name == "rules":
        return benchmark.judge
    if name in JUDGES:
        return JUDGES.get(name)
    if base_url is None:
        return benchmark.model_judge(name, inspect_model(name))
    endpoint = check_endpoint(base_url, name, role="judge")
    model = served_model(name, base_url, role="judge")
    return benchmark.model_judge(name, model, is_vllm=endpoint.is_vllm)


def check_kinds(judge: Judge, questions: Iterable[Question]) -> None:
    """Make sure that a judge can judge the answers to these questions.

    Raises:
        BenchmarkError: some are of a kind that it cannot judge.
    """
    others = {question.kind for question in questions} - set(judge.kinds)
    if others:
        raise BenchmarkError(
            f"the judge {judge.identity!r} cannot judge questions of the kind {min(others)!r}, "
            f"only {', '.join(judge.kinds)}: leave --judge out"
        )
