"""The table of a comparison: detectors by studies, for each metric that they are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.report import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Interval = Mapping[str, float | None]

METRICS = {
    "auroc": "AUROC",
    "over_best_control": "AUROC less that of the best control",
    "auprc": "AUPRC",
    "recall_at_0.01": "Recall at 1 % false positives",
    "recall_at_0.05": "Recall at 5 % false positives",
    "recall_at_0.1": "Recall at 10 % false positives",
    "accuracy": "Accuracy at the threshold with the best F1",
    "ece": "Expected calibration error",
}
"""What the studies can be compared by."""


class Line(NamedTuple):
    """One detector: its row of each study, None where a study left it out."""

    name: str
    title: str
    control: bool
    rows: list[Mapping[str, Any] | None]


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The detectors of all studies, in the order of their tables."""
    of_study = [{row["name"]: row for row in study["detectors"]} for study in document["studies"]]
    return [
        Line(name, row["title"], row["control"], [rows.get(name) for rows in of_study])
        for name, row in _first(of_study).items()
    ]


def best_controls(document: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """Of each study the row that ``over_best_control`` compares with; None where there is none."""
    return [
        next((row for row in study["detectors"] if row["name"] == study["best_control"]), None)
        for study in document["studies"]
    ]


def claim_lines(document: Mapping[str, Any]) -> list[Line]:
    """The detectors of claims, with what they say of a whole claim; none without a study of them.

    A row is that of the level ``span``.
    """
    of_study = [
        {
            row["name"]: row
            for row in study["tokens"].get("detectors", ())
            if "span" in row["levels"]
        }
        for study in document["studies"]
    ]
    return [
        Line(
            name,
            row["title"],
            row["role"] != "probe",
            [rows[name]["levels"]["span"] if name in rows else None for rows in of_study],
        )
        for name, row in _first(of_study).items()
    ]


def _first(of_study: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """Each detector's row of the first study that has it."""
    first: dict[str, Mapping[str, Any]] = {}
    for rows in of_study:
        for name, row in rows.items():
            first.setdefault(name, row)
    return first


def metric(row: Mapping[str, Any], name: str) -> Interval | None:
    """One metric of a detector's row; None where it has none."""
    rate = name.removeprefix("recall_at_")
    found: Interval | None = row[name] if rate == name else row["recall_at"][rate]
    return found


def csv_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per study and detector of answers, with every metric and its interval."""
    return [
        {**_about(study), "answers": study["data"]["answers"], **files.flat(row)}
        for study in document["studies"]
        for row in study["detectors"]
    ]


def claim_csv_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per study, detector of tokens, and level."""
    return [
        {**_about(study), **row}
        for study in document["studies"]
        for row in files.token_rows(study["tokens"])
    ]


def _about(study: Mapping[str, Any]) -> dict[str, Any]:
    data = study["data"]
    return {"study": study["title"], **{name: data[name] for name in ("store", "model", "label")}}
