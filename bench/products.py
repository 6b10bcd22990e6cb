"""Tables of the docs from what the package's own commands write.

    python -m bench.products detectors output/demo/report/report.json
    python -m bench.products replayed a/report.json b/report.json --rows linear_probe lookback_lens
    python -m bench.products short-facts output/.../eval_results.json
    python -m bench.products speed bench.json
    python -m bench.products replay replay.json

The first word names the table (a report gives three: NAME, NAME-sweep and NAME-transfer; several
give NAME and NAME-over, with a column for each). The file is a report's ``report.json``, a run's
``eval_results.json``, what ``activation-logging bench`` or ``activation-logging replay`` prints
with ``--json``, or what ``bench/gpu.py`` writes. ``python -m bench.docs`` then writes the pages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.bench.ratios import RATIOS
from activation_logging.records import LABELS
from bench.docs import interval_text, record_rows, spread_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def report(name: str, found: Mapping[str, Any], command: str | None) -> None:
    """The detectors, the linear probe at every place, and the transfer between kinds."""
    record_rows(
        name,
        [
            *("detector", "AUROC", "AUPRC", "recall at 5 % false positives", "AURC", "ECE"),
            "AUROC over the best control",
        ],
        [
            [
                row["title"],
                interval_text(row["auroc"]),
                f"{row['auprc']['value']:.3f}",
                f"{row['recall_at']['0.05']['value']:.3f}",
                f"{row['risk_coverage']['aurc']['value']:.3f}",
                f"{row['ece']['value']:.3f}",
                interval_text(row["over_best_control"]),
            ]
            for row in found["detectors"]
        ]
        + [
            [
                "Linear probe, shuffled labels",
                interval_text(found["trust"]["shuffled"]["auroc"]),
                *[""] * 5,
            ]
        ],
        command=command,
    )
    positions = list(dict.fromkeys(cell["position"] for cell in found["sweep"]))
    auroc = {(c["layer"], c["position"]): c["auroc"]["value"] for c in found["sweep"]}
    record_rows(
        f"{name}-sweep",
        ["layer", *map(str, positions)],
        [
            [str(layer), *(f"{auroc[layer, position]:.3f}" for position in positions)]
            for layer in dict.fromkeys(layer for layer, _ in auroc)
        ],
        command=command,
    )
    if transfer := found["transfer"].get("auroc"):
        values = found["transfer"]["values"]
        record_rows(
            f"{name}-transfer",
            ["fitted on", *values],
            [
                [value, *("-" if c["value"] is None else f"{c['value']:.3f}" for c in row)]
                for value, row in zip(values, transfer, strict=True)
            ],
            command=command,
        )


def reports(
    name: str, found: Sequence[Mapping[str, Any]], rows: Sequence[str], command: str | None
) -> None:
    """Some detectors by reports: their AUROC, and what it has over the best control of each."""
    of_report = [{row["name"]: row for row in one["detectors"]} for one in found]
    titles = {name: row["title"] for each in of_report for name, row in each.items()}
    several = len({one["data"]["model"] for one in found}) > 1
    columns = [
        "`{}`".format(one["provenance"]["tags"].get("benchmark", one["data"]["label"]))
        + (f", {one['data']['model']}" if several else "")
        for one in found
    ]
    kept = [row for row in rows or titles if row in titles]

    def table(figure: str) -> list[list[str]]:
        return [
            [
                titles[row],
                *(interval_text(each[row][figure]) if row in each else "" for each in of_report),
            ]
            for row in kept
        ]

    counts = [" and ".join(f"{n} {c}" for c, n in one["data"]["counts"].items()) for one in found]
    record_rows(
        name,
        ["AUROC", *columns],
        [["answers", *counts], *table("auroc")],
        command=command,
    )
    best = [titles[one["trust"]["best_control"]] for one in found]
    over = [row for row in table("over_best_control") if any(row[1:])]
    record_rows(
        f"{name}-over",
        ["AUROC less that of the best control", *columns],
        [["best control", *best], *over],
        command=command,
    )


def benchmark(name: str, found: Mapping[str, Any], command: str | None) -> None:
    """The rates of each group and of all, and how often each label was given."""
    groups = {**found["groups"], "all": found}
    rates = list(dict.fromkeys(rate for group in groups.values() for rate in group["metrics"]))
    record_rows(
        name,
        ["", *(rate.replace("_", " ") for rate in rates), *(label[0].upper() for label in LABELS)],
        [
            [
                group,
                *(_rate(each["metrics"].get(rate)) for rate in rates),
                *(str(each["counts"][label]) for label in LABELS),
            ]
            for group, each in groups.items()
        ],
        command=command,
    )


def comparison(name: str, found: Mapping[str, Any], command: str | None) -> None:
    """The ratios of each candidate to the baseline, a column for each number in flight."""
    columns = list(dict.fromkeys(each["concurrency"] for each in found["comparisons"]))
    ratios = {(c["candidate"], c["concurrency"]): c["ratios"] for c in found["comparisons"]}
    record_rows(
        name,
        ["requests in flight", *map(str, columns)],
        [
            [
                f"{metric.replace('_', ' ')}, {candidate}",
                *(
                    spread_text(ratios[candidate, column][metric])
                    if (candidate, column) in ratios
                    else ""
                    for column in columns
                ),
            ]
            for metric in RATIOS
            for candidate in dict.fromkeys(candidate for candidate, _ in ratios)
        ],
        command=command or " ".join(["activation-logging", *found["command"]]),
    )


def proof(name: str, found: Mapping[str, Any], command: str | None) -> None:
    """How far the logged rows are from a replay's, by layer."""
    record_rows(
        name,
        ["layer", "rows", "median difference", "worst"],
        [
            [layer, str(each["rows"]), f"{each['median']:.1e}", f"{each['worst']:.1e}"]
            for layer, each in found["proof"].items()
        ],
        command=command,
    )


def modes(name: str, found: Mapping[str, Any], command: str | None) -> None:
    """How far a GPU's rows are from transformers, in each mode of the engine."""
    record_rows(
        name,
        [
            *("mode", "rows", "from transformers", "from its float32"),
            *("transformers from its float32", "greedy tokens that follow"),
        ],
        [
            [
                mode,
                str(each["rows"]),
                *(f"{each[key]:.1e}" for key in ("worst", "ours", "theirs")),
                f"{100 * each['aligned']:.2f} %",
            ]
            for mode, each in found["modes"].items()
        ],
        command=command,
    )


def _rate(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    error = found["stderr"]
    return f"{100 * found['value']:.1f}" + ("" if error is None else f"±{100 * error:.1f}")


def main() -> None:
    """Tell the kinds of file apart by what is in them."""
    parser = argparse.ArgumentParser(description="Tables of docs/ from what commands write.")
    parser.add_argument("name", help="of the table")
    parser.add_argument(
        "files", nargs="+", type=Path, help="report.json, eval_results.json or JSON printed"
    )
    parser.add_argument("--rows", nargs="+", default=(), help="of several reports: only these")
    parser.add_argument("--command", help="what measured it, for the record")
    options = parser.parse_args()
    found, *others = [json.loads(file.read_text(encoding="utf-8")) for file in options.files]
    if others:
        reports(options.name, [found, *others], options.rows, options.command)
        return
    kinds = {
        "detectors": report,
        "groups": benchmark,
        "comparisons": comparison,
        "proof": proof,
        "modes": modes,
    }
    for key, write in kinds.items():
        if key in found:
            write(options.name, found, options.command)
            return
    parser.error(f"{options.files[0]} has none of {', '.join(kinds)}")


if __name__ == "__main__":
    main()
