"""The numbers of a run as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from activation_logging.console import PlainConsole
from activation_logging.records import LABELS

if TYPE_CHECKING:
    from rich.console import Console

    from activation_logging.benchmarks.result import RunResult


_SHORT = {
    "refusal_rate": "refusal",
    "false_acceptance_rate": "false acc.",
    "false_refusal_rate": "false ref.",
    "false_refusal_famous": "famous",
    "false_refusal_obscure": "obscure",
    "balanced_accuracy": "balanced",
    "hallucinated": "halluc.",
    "claims wrong": "wrong",
    "majority_baseline": "majority",
}
_CAPTION = (
    "Rates in % with standard errors, then the number of answers by label:\n"
    "H hallucinated, C correct, R refused, I invalid (in no rate)."
)


def result_table(results: dict[str, Any]) -> Table:
    """One row for each domain or stratum and one for all: rates with standard errors, counts."""
    names = [name for name in results["metrics"] if "/" not in name]
    if "false_refusal_famous" in names:  # no room for both: it is what refusal leaves of 100 %
        names.remove("false_acceptance_rate")
    table = Table(
        title=f"{results['benchmark']}, judged by {results['judge']}",
        caption=_CAPTION,
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("", no_wrap=True)
    for title in [_SHORT.get(name, name) for name in names] + [k[0].upper() for k in LABELS]:
        table.add_column(title, justify="right", no_wrap=True)
    for title, part in (*results["groups"].items(), ("all", results)):
        rates = [_rate(part["metrics"].get(name)) for name in names]
        table.add_row(title, *rates, *(str(part["counts"][label]) for label in LABELS))
    return table


def parts_table(results: dict[str, Any]) -> Table | None:
    """One row for each rate of a part of the answers, named ``wrong/birth year``; None if none."""
    parts = {name: rate for name, rate in results["metrics"].items() if "/" in name}
    if not parts:
        return None
    table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1))
    for title in ("", "rate", "95 % interval", "answers"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for name, rate in parts.items():
        interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
        table.add_row(name, _rate(rate), interval, str(rate["n"]))
    return table


def print_result(result: RunResult, console: Console | None = None) -> None:
    """The table of a run, where its labels and files are, and its notes."""
    console = console or PlainConsole()
    if result.results:
        console.print(result_table(result.results))
        if (parts := parts_table(result.results)) is not None:
            console.print(parts)
    if result.labels is not None:
        console.print(f"{result.labels.written} labels written to {result.labels.where}")
    for note in result.notes:
        console.print(f"note: {note}")
    console.print(f"files: {result.folder}")


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "-"
    error = "" if rate["stderr"] is None else f"±{100 * rate['stderr']:.1f}"
    return f"{100 * rate['value']:.1f}{error}"
