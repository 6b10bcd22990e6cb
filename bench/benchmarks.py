"""Every benchmark on one model: how it answers, and what its states tell beside the words.

    python -m bench.benchmarks [--large] [--only known_names ...] [--docs benchmarks-small]

Serves the default model, or with ``--large`` Qwen2.5-Coder-1.5B-Instruct, asks each benchmark's
questions, labels the answers in one store, and reports each benchmark by itself. Broken off, it
goes on where it was. Two tables: the rates with their 95 % intervals over questions, and the AUROC
of the detectors that tell hallucinated from correct answers, with intervals over groups, beside the
best control and shuffled labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging import tags
from activation_logging.benchmarks import run_benchmark
from activation_logging.benchmarks.registry import BENCHMARKS
from activation_logging.cli.progress import show_progress
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from activation_logging.demo import serving
from activation_logging.errors import DatasetError
from activation_logging.large_model import large_model_path
from activation_logging.records import LABELS
from activation_logging.report import build_report
from bench.docs import add_flag, interval_text, markdown, record_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZES = {
    "known_names": 1600,
    "wiki_facts": 3000,
    "wiki_profiles": 300,
    "generated_entities": 200,
    "short_facts": 1400,
    "nonsense_mixed_entities": 400,
}
"""At most so many questions of each, balanced over its strata."""
INVENTED = 20
"""Names of each domain that the model is to invent."""
LAYERS = "4,8,12,16,20,24,last"
DETECTORS = {
    "linear_probe": "linear probe",
    "linear_probe_before": "before the answer",
    "stacked": "stacked with log-probability",
    "mean_logprob": "mean log-probability",
    "min_logprob": "minimum log-probability",
    "answer_logprob": "log-probability of the answer given",
    "text_only": "text only",
    "prompt_only": "prompt only",
    "length": "length",
}
"""By their names in the registry: what the second table calls them."""
COMPARED = ("shuffled labels", "best control", "probe over it", "before the answer over the prompt")
"""What the second table says besides: the floor, and differences of AUROC."""
terminal = PlainConsole(width=150)


def answer(
    model: Path, names: Sequence[str], folder: Path, limit: int | None, *, judge_again: bool
) -> None:
    """Serve the model, and ask and label what was not asked before."""
    store = folder / "activations.lmdb"
    with serving(model, name=model.name, store=store, layers=LAYERS) as base_url:
        for name in names:
            terminal.rule(name)
            run_benchmark(
                name,
                model=model.name,
                base_url=base_url,
                output_base_dir=folder,
                store=store,
                limit=min(limit or SIZES[name], SIZES[name]),
                n=INVENTED if name == "generated_entities" else None,
                max_connections=64,
                eval_overwrite=judge_again,
                display="plain",
            )


def results_of(name: str, folder: Path) -> dict[str, Any]:
    """What the run of a benchmark found: its ``eval_results.json``."""
    default = BENCHMARKS.get(name).default_exp
    (path,) = folder.glob(f"{default}_*/*/eval_results.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rates(names: Sequence[str], folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table."""
    header = ["benchmark", *LABELS, "rates in %, with 95 % intervals"]
    rows = []
    for name in names:
        found = results_of(name, folder)
        shown = [
            f"{rate.replace('_', ' ')} {100 * of['value']:.1f} "
            f"({100 * of['low']:.1f} to {100 * of['high']:.1f})"
            for rate, of in found["metrics"].items()
            if "/" not in rate
        ]
        counts = [str(found["counts"][label]) for label in LABELS]
        rows.append([f"`{name}`", *counts, "; ".join(shown)])
    return header, rows


def detectors(names: Sequence[str], folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the second table; a benchmark that cannot be learned from says why."""
    rows = []
    for name in names:
        try:
            with show_progress() as progress:
                made = build_report(
                    folder / "activations.lmdb",
                    folder / f"report-{name}",
                    label=BENCHMARKS.get(name).evaluator,
                    tags={tags.BENCHMARK: name},
                    progress=progress,
                )
        except DatasetError as error:
            terminal.print(f"{name}: {error}")
            rows.append([f"`{name}`", str(error), *[""] * (len(DETECTORS) + len(COMPARED) - 1)])
            continue
        terminal.print(f"{name}: {made.headline}")
        found: Mapping[str, Any] = {row["name"]: row for row in made.document["detectors"]}
        trust, before = made.document["trust"], found.get("linear_probe_before", {})
        rows.append(
            [
                f"`{name}`",
                *(interval_text(found[one]["auroc"]) if one in found else "" for one in DETECTORS),
                interval_text(trust["shuffled"]["auroc"]),
                DETECTORS.get(trust["best_control"], trust["best_control"] or ""),
                interval_text(found["linear_probe"]["over_best_control"]),
                interval_text(before.get("over_prompt")),
            ]
        )
    return ["benchmark", *DETECTORS.values(), *COMPARED], rows


def main() -> None:
    """Ask, label, report, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="the model of 1.5 billion weights")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), help="some of the benchmarks")
    parser.add_argument("--limit", type=int, help="at most so many questions of each")
    parser.add_argument("--judge-again", action="store_true", help="all answers, by today's rules")
    parser.add_argument("--folder", type=Path, default=Path("output/benchmarks"))
    add_flag(parser)
    options = parser.parse_args()
    model = (large_model_path if options.large else demo_model_path)()
    folder, names = options.folder / model.name, options.only or list(SIZES)
    folder.mkdir(parents=True, exist_ok=True)
    answer(model, names, folder, options.limit, judge_again=options.judge_again)
    for kind, (header, rows) in {
        "rates": rates(names, folder),
        "detectors": detectors(names, folder),
    }.items():
        terminal.print("\n".join(markdown(header, rows)), soft_wrap=True)
        if options.docs:
            record_rows(f"{options.docs}-{kind}", header, rows)


if __name__ == "__main__":
    main()
