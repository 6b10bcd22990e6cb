"""Token probes on the claims of a store, beside what is known without the states.

    python -m bench.claim_probes STORE [--label NAME] [--docs NAME] [--output FILE]

Prints a table for each of token, claim, first token and answer, and how probes do on other kinds of
claims. Everything is ``run_token_study`` of the package with its own options.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from activation_logging.detectors.tokens import TokenOptions, run_token_study
from activation_logging.detectors.tokens.results import LEVELS
from activation_logging.store import open_store
from bench.docs import add_flag, interval_text, record, terminal, write_figures

if TYPE_CHECKING:
    from activation_logging.detectors.metrics import Interval
    from activation_logging.detectors.tokens.results import LevelName, TokenStudy

NAMES = {"token": "tokens", "span": "claims", "first": "first tokens", "answer": "answers"}


def main() -> None:
    """Study the store and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--label")
    parser.add_argument("--layers", help="such as 8,16,24; all if not given")
    parser.add_argument("--output", type=Path)
    add_flag(parser)
    args = parser.parse_args()
    layers = args.layers.split(",") if args.layers else None
    with open_store(args.store) as store:
        study = run_token_study(store, args.label, TokenOptions(layers=layers))
    terminal.print(f"{study.tokens}; {len(study.tokens.keys)} answers, {int(study.wrong.sum())} of "
                   f"them with a contradicted claim; best place {study.place}")  # fmt: skip
    for name in LEVELS:
        table = levels(study, name)
        terminal.print(table)
        # The pages have no table of single tokens, and none of layers.
        if args.docs and name != "token":
            record(f"{args.docs}-{name}", table)
    terminal.print(layers_of(study))
    for matrix in study.transfers:
        table = Table("fitted on", *matrix.values, title=f"AUROC of claims by {matrix.tag}")
        for source, row in zip(matrix.sources, matrix.auroc, strict=True):
            table.add_row(source, *(f"{one.value:.3f}" for one in row))
        terminal.print(table)
        record(args.docs and f"{args.docs}-by-{matrix.tag}", table)
    for what, reason in study.left_out.items():
        terminal.print(f"left out: {what}: {reason}")
    write_figures(args.output, study.as_json())


def levels(study: TokenStudy, name: LevelName) -> Table:
    """One row per detector."""
    table = Table("detector", "AUROC", "AUPRC", title=f"of {NAMES[name]}")
    for rate in ("1 %", "5 %", "10 %"):
        table.add_column(f"recall at {rate}", justify="right")
    table.add_column("over best control")
    within = name != "answer"
    if within:
        table.add_column("AUROC within types")
        table.add_column("within types, over best control")
    for row in study.results:
        if (level := row.levels.get(name)) is None:
            continue
        cells = [row.title, _text(level.auroc), f"{level.auprc.value:.3f}"]
        cells += [f"{one.value:.2f}" for one in level.recall_at.values()]
        cells.append(_beside(level.over_best_control, level.best_control))
        if within:
            over = level.within_types_over_best_control
            cells += [_text(level.within_types), _beside(over, level.best_control_within_types)]
        table.add_row(*cells)
    return table


def layers_of(study: TokenStudy) -> Table:
    """The sweep: the best penalty of each layer."""
    best: dict[str, float] = {}
    for place, auroc in study.sweep.items():
        best[place.layer] = max(best.get(place.layer, -np.inf), auroc)
    table = Table("layer", "AUROC of claims, validation parts")
    for layer, auroc in best.items():
        table.add_row(layer, f"{auroc:.3f}")
    return table


def _text(interval: Interval | None) -> str:
    return interval_text(interval and interval._asdict())


def _beside(interval: Interval | None, name: str) -> str:
    return "" if interval is None else f"{_text(interval)}, `{name}`"


if __name__ == "__main__":
    main()
