"""The report's numbers as JSON and CSV, for other programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from activation_logging.files import write_whole
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

METRICS = ("auroc", "auprc", "accuracy", "ece", "over_text", "over_best_control", "over_prompt")


def write_data(
    folder: Path,
    document: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write ``report.json`` and one CSV file per table.

    Args:
        folder: where they go; it must exist.
        document: what :func:`activation_logging.report.document.make_document` returns.
        scores: what :func:`activation_logging.report.document.score_rows` returns.
        claims: what :func:`activation_logging.report.tokens.claim_rows` returns.

    Returns:
        The paths of the files; a table without rows has none, and that of an earlier report in
        the folder goes away.
    """
    tables: dict[str, Sequence[Mapping[str, Any]]] = {
        "detectors": [flat(row) for row in document["detectors"]],
        "sweep": [
            {"layer": row["layer"], "position": row["position"], **spread("auroc", row["auroc"])}
            for row in document["sweep"]
        ],
        "folds": [{"fold": i, **row} for i, row in enumerate(document["folds"])],
        "scores": scores,
        "curves": [
            {"detector": name, **dict(zip(curve, values, strict=True))}
            for name, curve in document["curves"].items()
            for values in zip(
                curve["false_positive_rate"][1:],
                curve["true_positive_rate"][1:],
                curve["recall"],
                curve["precision"],
                strict=True,
            )
        ],
        "calibration": [
            {"detector": name, **row}
            for name, rows in document["calibration"].items()
            for row in rows
        ],
        "transfer": _transfer_rows(document["transfer"]),
        **_trust_tables(document),
        "operating_points": [_plain(point) for point in document["operating_points"]],
        "claims": claims,
        **_token_tables(document["tokens"]),
    }
    written = [folder / "report.json"]
    text = dumps(document, indent=1, ascii_only=False)
    write_whole(written[0], text.encode("utf-8"))
    for name, rows in tables.items():
        path = folder / f"{name}.csv"
        if rows:
            write_whole(path, csv_bytes(rows))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows that all have the names of the first one, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's row, its intervals as three columns each."""
    texts = ("name", "title", "layer", "position", "source", "role", "control", "before_answer")
    plain = {name: row[name] for name in texts}
    for metric in METRICS:
        plain.update(spread(metric, row[metric]))
    for rate, recall in row["recall_at"].items():
        plain.update(spread(f"recall_at_{rate}", recall))
    plain.update(spread("aurc", row["risk_coverage"]["aurc"]))
    return plain


def _trust_tables(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    trust = document["trust"]
    shuffled = trust["shuffled"]
    return {
        "risk_coverage": [
            {"detector": row["name"], "coverage": coverage, "risk": risk}
            for row in document["detectors"]
            for coverage, risk in zip(
                row["risk_coverage"]["coverage"], row["risk_coverage"]["risk"], strict=True
            )
        ],
        "shuffled": [{"detector": trust["probe"], **_plain(shuffled)}],
        "conformal": [
            {"detector": trust["probe"], **_plain(promise)} for promise in trust["conformal"]
        ],
        "learning_curves": [
            {"detector": name, **_plain(point)}
            for name, points in trust["learning_curves"].items()
            for point in points
        ],
    }


def _token_tables(part: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        "token_detectors": token_rows(part),
        "token_sweep": part.get("sweep", []),
        "token_transfer": [
            {
                "tag": one["tag"],
                "fitted_on": source,
                "tested_on": value,
                **spread("auroc", one["auroc"][i][j]),
            }
            for one in part.get("transfers", ())
            for i, source in enumerate(one["sources"])
            for j, value in enumerate(one["values"])
        ],
    }


def token_rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per detector of tokens and level; none without a study of tokens."""
    names = ("name", "title", "layer", "source", "role")
    return [
        {**{name: row[name] for name in names}, "level": level, **_level(found)}
        for row in part.get("detectors", ())
        for level, found in row["levels"].items()
    ]


def _level(found: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for metric in (
        *("auroc", "auprc", "aurc", "over_best_control"),
        *("within_types", "within_types_over_best_control"),
    ):
        plain.update(spread(metric, found[metric]))
    for rate, recall in found["recall_at"].items():
        plain.update(spread(f"recall_at_{rate}", recall))
    return plain | {name: found[name] for name in ("best_control", "best_control_within_types")}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose intervals are three columns each."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        plain.update(spread(name, value) if isinstance(value, dict) else {name: value})
    return plain


def spread(name: str, interval: Mapping[str, float | None] | None) -> dict[str, Any]:
    """An interval as three columns; empty ones without it."""
    interval = interval or dict.fromkeys(("value", "low", "high"))
    return {
        name: interval["value"],
        f"{name}_low": interval["low"],
        f"{name}_high": interval["high"],
    }


def _transfer_rows(transfer: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = transfer.get("values", ())
    return [
        {
            "tag": transfer["tag"],
            "fitted_on": source,
            "tested_on": target,
            **spread("auroc", transfer["auroc"][i][j]),
            "left_out_for_shared_entities": transfer["shared_entities_left_out"][i][j],
        }
        for i, source in enumerate(values)
        for j, target in enumerate(values)
    ]
