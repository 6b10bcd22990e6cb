"""A server that refuses before the first word where it does not know the name asked about.

    python -m bench.refusing STORE [--limit 300] [--folder FOLDER] [--docs refusing]

``STORE`` has the answers of the default model to ``known_names``, labelled. A probe of the last
prompt token is fitted on the names of its training part: made-up ones that the model took for real
against real ones. A server with that probe is then asked about names of the test part, once without
a stop and once with each threshold that the probe was saved with: those that let 1, 5 and 10 % of
the real names of the training part pass for made-up. Broken off, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from activation_logging import tags
from activation_logging.benchmarks import run_benchmark
from activation_logging.benchmarks.questions import Question, write_questions
from activation_logging.benchmarks.registry import BENCHMARKS
from activation_logging.cli.progress import show_progress
from activation_logging.default_model import demo_model_path
from activation_logging.demo import serving
from activation_logging.detectors import Options
from activation_logging.detectors.probe_fitting import fit_answer_probe
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.store import open_store
from bench.docs import add_flag, record, terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCHMARK, PROBE = "known_names", "unknown"
RATES = {
    "refusal_rate": "made-up names refused",
    "false_refusal_famous": "famous names refused",
    "false_refusal_obscure": "obscure names refused",
    "balanced_accuracy": "balanced accuracy",
}
"""What the table says of each run, in percent: the benchmark's own rates."""


def fit(store: Path, path: Path) -> SavedProbe:
    """The probe of the training part; one that an earlier start has saved is taken."""
    if not path.with_suffix(".json").exists():
        options = Options(
            tags={tags.BENCHMARK: BENCHMARK, "split": "train"}, positions=("prompt_last",)
        )
        with open_store(store) as opened, show_progress() as progress:
            evaluator = BENCHMARKS.get(BENCHMARK).evaluator
            fit_answer_probe(opened, evaluator, options, progress=progress).save(path)
    return SavedProbe.load(path)


def held_out(path: Path) -> None:
    """Write the questions about names that the probe was not fitted on."""
    benchmark = BENCHMARKS.get(BENCHMARK)
    made: list[Question] = benchmark.make_questions(benchmark.default_exp, benchmark.default_n, 0)
    write_questions(path, [question for question in made if question.split == "test"])


def ask(base_url: str, folder: Path, limit: int, stop: Mapping[str, Any] | None) -> dict[str, Any]:
    """One run of the benchmark; its rates."""
    questions = folder / "questions.jsonl"
    held_out(questions)
    result = run_benchmark(
        BENCHMARK,
        model=demo_model_path().name,
        base_url=base_url,
        activation_stop=json.dumps(stop) if stop else None,
        output_base_dir=folder / (f"above-{stop['prompt_above']:.4f}" if stop else "none"),
        prompt_output_path=questions,
        store=folder / "activations.lmdb",
        limit=limit,
        display="plain",
    )
    found: dict[str, Any] = result.results["metrics"]
    return found


def main() -> None:
    """Fit, ask four times, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--limit", type=int, default=300, help="names, balanced over strata")
    parser.add_argument("--folder", type=Path, default=Path("output/refusing"))
    add_flag(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    probe = fit(args.store, args.folder / PROBE)
    terminal.print(f"the probe reads {probe.sources[0]} at {probe.position}")
    table = Table("refused above", "of real names in training", *RATES.values())
    with serving(
        demo_model_path(),
        name=demo_model_path().name,
        store=args.folder / "activations.lmdb",
        probes={PROBE: args.folder / PROBE},
    ) as base_url:
        table.add_row("never", "", *_cells(ask(base_url, args.folder, args.limit, None)))
        for point in probe.operating_points:
            stop = {"probe": PROBE, "prompt_above": round(point.threshold, 4)}
            table.add_row(
                f"{point.threshold:.3f}",
                f"{100 * point.false_positive_rate:.0f} %",
                *_cells(ask(base_url, args.folder, args.limit, stop)),
            )
    terminal.print(table)
    record(args.docs, table)


def _cells(rates: Mapping[str, Any]) -> list[str]:
    """Each rate in percent, with its 95 % interval."""
    found = [rates[name] for name in RATES]
    return [
        f"{100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
        for one in found
    ]


if __name__ == "__main__":
    main()
