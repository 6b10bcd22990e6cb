"""The command line of the scripts under ``tasks/``: the same flags for every benchmark."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from activation_logging.benchmarks.options import RunOptions, default_of, flags, script_flag
from activation_logging.benchmarks.registry import BENCHMARKS, Benchmark
from activation_logging.errors import ActivationLoggingError
from activation_logging.printable import lines

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    """The flags, whose names are those of the public benchmark's scripts where it has them."""
    made = argparse.ArgumentParser(
        description=f"{benchmark.description} Runs the benchmark {benchmark.name} against an "
        "OpenAI-compatible server and labels every answer in the activation store. The same flags "
        "resume a run that was broken off.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = get_type_hints(RunOptions)
    for one in flags():
        if one.metadata["setting"] and one.name not in benchmark.settings:
            continue
        text = one.metadata["help"].format(unit=benchmark.unit)
        if one.name == "exp":
            text += f": one of {', '.join(benchmark.experiments)}"
        name, kind = script_flag(one), hints[one.name]
        if kind is bool:
            made.add_argument(name, dest=one.name, action="store_true", help=text)
            continue
        default = default_of(one, benchmark)
        if kind == list[str] | None:
            made.add_argument(name, dest=one.name, action="append", help=text)
            continue
        made.add_argument(name, dest=one.name, type=_plain(kind), default=default, help=text)
    return made


def main(benchmark: str, arguments: Sequence[str] | None = None) -> int:
    """Run a script; errors are one sentence on standard error and exit code 1."""
    try:
        about = BENCHMARKS.get(benchmark)
        made = parser(about)
        given = vars(made.parse_args(arguments))
        if not (given["do_generate_prompt"] or given["do_inference"] or given["do_eval"]):
            made.error("nothing to do: give --do_generate_prompt, --do_inference or --do_eval")
        from activation_logging.benchmarks.run import run_benchmark
        from activation_logging.benchmarks.table import print_result

        print_result(run_benchmark(benchmark, RunOptions.from_command_line(**given)))
    except ActivationLoggingError as error:
        print(f"error: {lines(error)}", file=sys.stderr)  # noqa: T201  a script's output
        return 1
    return 0


def _plain(kind: object) -> type:
    """The type that argparse calls with a flag's text: of ``int | None`` it is ``int``."""
    return next(one for one in (int, float, Path, str) if kind in (one, one | None))
