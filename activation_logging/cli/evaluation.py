"""The command that asks and judges: eval."""

from __future__ import annotations

from dataclasses import MISSING
from inspect import Parameter, Signature
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from activation_logging.benchmarks.options import RunOptions, flags
from activation_logging.benchmarks.registry import BENCHMARKS
from activation_logging.cli.options import AsJson
from activation_logging.cli.terminal import output, print_json
from activation_logging.errors import PluginError


class _Eval(TyperCommand):
    """Lists the benchmarks and their experiments in the help text.

    Other packages' benchmarks are loaded for this text alone, not by every command.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        known = "\n".join(f"- {_line(name)}" for name in BENCHMARKS.names())
        self.help = f"{self.help}\n\nBenchmarks, with the experiments of each:\n\n{known}"
        super().format_help(ctx, formatter)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("eval", cls=_Eval)(evaluate)


def evaluate(benchmark: str, *, as_json: bool, **given: Any) -> None:
    """Ask a served model a benchmark's questions, judge the answers, and label them in the store.

    The same command goes on with a run that was broken off.
    """
    from activation_logging.benchmarks.run import run_benchmark
    from activation_logging.benchmarks.table import print_result

    if as_json:
        given["display"] = "none"
    result = run_benchmark(benchmark, RunOptions.from_command_line(**given))
    if as_json:
        written = result.labels.written if result.labels else 0
        summary = {"folder": result.folder, "labels_written": written, "notes": result.notes}
        print_json({**summary, **result.results})
        return
    print_result(result, output)


def _parameters() -> list[Parameter]:
    """What typer makes the command line of: the benchmark, the fields of RunOptions, ``--json``."""
    named = typer.Argument(help="The benchmark's name.", show_default=False)
    found = [_parameter("benchmark", Annotated[str, named])]
    hints = get_type_hints(RunOptions)
    for one in flags():
        names = one.metadata["command"]
        if names is None:
            names = (f"--{one.name.replace('_', '-')}",)
        if names:
            text = one.metadata["help"].format(unit="domain or stratum")
            shown = typer.Option(*names, help=f"{text[0].upper()}{text[1:]}.")
            default = Parameter.empty if one.default is MISSING else one.default
            found.append(_parameter(one.name, Annotated[hints[one.name], shown], default))
    return [*found, _parameter("as_json", AsJson, default=False)]


def _parameter(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


evaluate.__signature__ = Signature(_parameters())  # type: ignore[attr-defined]
evaluate.__annotations__ = {one.name: one.annotation for one in _parameters()}


def _line(name: str) -> str:
    try:
        known = BENCHMARKS.get(name)
    except PluginError as error:
        return f"`{name}`: {error}"
    return f"`{name}`: {known.description} ({', '.join(known.experiments)})"
