"""The measurements for people: a line for each round, a table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from activation_logging.bench.compare import COUNTERS, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from activation_logging.bench.compare import Plan, Results, Storage
    from activation_logging.bench.load import Load
    from activation_logging.bench.ratios import Comparison, Pair, Spread

_RATIOS = {
    "throughput": "throughput",
    "ttft_p50": "first token, p50",
    "itl_p50": "between tokens, p50",
    "itl_p99": "between tokens, p99",
    "cpu_per_token": "CPU time per token",
}


def round_line(load: Load, pairs: Sequence[Pair], kept: bool) -> Text:
    """The line of a finished round, and whether it will be measured again."""
    baseline = pairs[0].baseline
    ratios = ", ".join(
        f"{pair.candidate.server} {pair.candidate.throughput / baseline.throughput:.3f}"
        for pair in pairs
    )
    text = (
        f"{load.concurrency:>3} at a time: {baseline.server} {baseline.throughput:.1f} "
        f"tokens/s, of that {ratios}; others used {max(p.others for p in pairs):.2f} cores"
    )
    return Text(text) + Text("" if kept else ", measured again", style="yellow")


def show(results: Results, console: Console) -> None:
    """Print a table for each candidate, and what it was measured on."""
    plan = results.plan
    for candidate in plan.candidates:
        found = [each for each in results.comparisons if each.candidate == candidate.name]
        console.print(_table(plan, candidate.name, found))
        if candidate.name in results.storage:
            _show_storage(results.storage[candidate.name], console)
    machine = results.machine
    packages = machine["packages"]
    console.print(
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{', '.join(machine['gpu']) or 'no GPU'}; vLLM {packages['vllm']}, "
        f"{'eager' if plan.options.eager else 'compiled'}; {plan.options.model}; "
        f"{plan.shared_prefix + plan.prompt_words} words of prompt, {plan.shared_prefix} of them "
        f"common; {plan.answer_tokens} tokens of answer"
    )


def _table(plan: Plan, candidate: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table(
        title=f"{in_words(candidate)}, against {in_words(plan.baseline)}",
        caption=f"ratios: median of {plan.restarts} x {plan.rounds} rounds, least to greatest",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("requests in flight")
    for comparison in comparisons:
        table.add_column(str(comparison.load.concurrency), justify="right")
    for title, which in ((plan.baseline, "baseline"), (candidate, "candidate")):
        speeds = [found.absolute("throughput", which) for found in comparisons]
        table.add_row(f"tokens/s, {title}", *(f"{speed.median:.1f}" for speed in speeds))
    for metric, label in _RATIOS.items():
        table.add_row(label, *(_ratio(found.ratio(metric)) for found in comparisons))
    others = [max(pair.others for pair in found.pairs) for found in comparisons]
    table.add_row("cores others used", *(f"{cores:.2f}" for cores in others))
    return table


def _ratio(spread: Spread) -> Text:
    return Text.assemble(
        f"{spread.median:.3f} ", (f"{spread.least:.2f}-{spread.greatest:.2f}", "dim")
    )


def _show_storage(storage: Storage, console: Console) -> None:
    console.print(
        f"stored: {storage.per_token:.0f} bytes per token on disk, {storage.rows_per_token:.0f} of "
        f"them activations; {storage.tokens} tokens"
    )
    table = Table("the store's counters", *storage.counters)
    for name in COUNTERS:
        table.add_row(name, *(str(record[name]) for record in storage.counters.values()))
    console.print(table)
