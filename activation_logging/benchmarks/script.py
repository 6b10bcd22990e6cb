"""The command line of the scripts under ``tasks/``: one set of flags for every benchmark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.benchmarks import facts, nonsense
from activation_logging.benchmarks.runs import (
    DEFAULT_BASE_URL,
    DEFAULT_OUTPUT,
    MAX_CONNECTIONS,
    run_benchmark,
)
from activation_logging.benchmarks.table import print_result
from activation_logging.benchmarks.tasks import MAX_TOKENS
from activation_logging.errors import ActivationLoggingError, BenchmarkError
from activation_logging.printable import lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_N = {nonsense.NAME: nonsense.DEFAULT_N, facts.NAME: facts.DEFAULT_N}
_EXPERIMENTS: dict[str, Mapping[str, Sequence[str]]] = {
    nonsense.NAME: nonsense.EXPERIMENTS,
    facts.NAME: facts.EXPERIMENTS,
}


def parser(benchmark: str) -> argparse.ArgumentParser:
    """The flags, whose names are those of the public benchmark's scripts where it has them."""
    experiments = list(_EXPERIMENTS[benchmark])
    per = "domain" if benchmark == nonsense.NAME else "stratum"
    flags = argparse.ArgumentParser(
        description=f"Run the benchmark {benchmark} against an OpenAI-compatible server and label "
        "every answer in the activation store. The same flags resume a run that was broken off.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = flags.add_argument
    add("--exp", default=experiments[0], help=f"one of {', '.join(experiments)}")
    add("--do_generate_prompt", action="store_true", help="make the questions, anew if they exist")
    add("--do_inference", action="store_true", help="ask what has no answer yet")
    add("--do_eval", action="store_true", help="judge what has no verdict yet, and label it")
    add(
        "--N",
        type=int,
        default=_N[benchmark],
        help=f"questions for each {per} (controls not counted)",
    )
    add("--seed", type=int, default=0, help="of the questions")
    add("--limit", type=int, help="at most so many questions in all, balanced over strata")
    add("--epochs", type=int, default=1, help="how often each question is asked")
    add("--temperature", type=float, default=0.0, help="of the answers; above 0 they are sampled")
    add("--max_tokens", type=int, default=MAX_TOKENS[benchmark], help="of an answer, at most")
    add("--tested_model", help="the model, as the server calls it")
    add("--base_url", default=DEFAULT_BASE_URL, help="the server's address")
    add("--output_base_dir", type=Path, default=DEFAULT_OUTPUT, help="above the run's folder")
    add("--prompt_output_path", type=Path, help="file or folder for the questions")
    add("--infer_overwrite", action="store_true", help="forget the answers that are there")
    add("--eval_overwrite", action="store_true", help="forget the verdicts that are there")
    judge = (
        "'rules' or a model" if benchmark == nonsense.NAME else "ignored: the right answer judges"
    )
    add("--judge", default="rules", help=judge)
    add(
        "--judge_base_url", help="where the judging model is served, if not the tested one's server"
    )
    add(
        "--lmdb_path", type=Path, help="the store, if on this machine; else labels go by the server"
    )
    add("--max_connections", type=int, default=MAX_CONNECTIONS, help="questions open at once")
    return flags


def main(benchmark: str, arguments: Sequence[str] | None = None) -> int:
    """Run a script; errors are one sentence on standard error and exit code 1."""
    flags = parser(benchmark)
    given = flags.parse_args(arguments)
    if not (given.do_generate_prompt or given.do_inference or given.do_eval):
        flags.error("nothing to do: give --do_generate_prompt, --do_inference or --do_eval")
    try:
        _run(benchmark, given)
    except ActivationLoggingError as error:
        print(f"error: {lines(error)}", file=sys.stderr)  # noqa: T201  a script's output
        return 1
    return 0


def _run(benchmark: str, given: argparse.Namespace) -> None:
    if given.tested_model is None and (given.do_inference or given.do_eval):
        raise BenchmarkError("--tested_model is missing: name the model as the server calls it")
    if given.max_connections < 1:
        raise BenchmarkError(f"--max_connections {given.max_connections}: at least one is needed")
    judge_base_url = given.judge_base_url
    if given.judge != "rules" and judge_base_url is None:
        judge_base_url = given.base_url
    result = run_benchmark(
        benchmark,
        model=given.tested_model or "model",
        base_url=given.base_url,
        output_base_dir=given.output_base_dir,
        store=given.lmdb_path,
        exp=given.exp,
        n=given.N,
        seed=given.seed,
        limit=given.limit,
        epochs=given.epochs,
        temperature=given.temperature,
        max_tokens=given.max_tokens,
        judge=given.judge,
        judge_base_url=judge_base_url,
        do_generate_prompt=given.do_generate_prompt,
        do_inference=given.do_inference,
        do_eval=given.do_eval,
        infer_overwrite=given.infer_overwrite,
        eval_overwrite=given.eval_overwrite,
        prompt_output_path=given.prompt_output_path,
        max_connections=given.max_connections,
        display="rich" if sys.stdout.isatty() else "plain",
    )
    print_result(result)
