"""The charts as plotly's JSON, their attributes checked by plotly.

Colours of text and grid are left to the page, which knows its theme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from activation_logging.report.drawing import (
    NEGATIVE,
    PALETTE,
    POSITIVE,
    Chart,
    chart,
    diagonal,
    fade,
    inside,
    matrix,
    short,
    text,
)
from activation_logging.report.headline import text_control
from activation_logging.report.trust_charts import trust_charts
from activation_logging.report.where_charts import where_charts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RED_TO_BLUE = (
    (0, "rgb(178,10,28)"),
    (0.3, "rgb(230,145,90)"),
    (0.4, "rgb(220,170,132)"),
    (0.5, "rgb(190,190,190)"),
    (0.65, "rgb(106,137,247)"),
    (1, "rgb(5,10,172)"),
)
"""For the transfer matrix: below chance red, at chance grey, above it blue."""


def make_charts(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Every chart of the page by the id of its element: ``{"data": [...], "layout": {...}}``."""
    charts = {
        **where_charts(document, _levels(document)),
        **trust_charts(document, _with_curves(document)),
        "roc": _roc(document),
        "precision-recall": _precision_recall(document),
        "pca": _pca(document),
    }
    for row in document["detectors"]:
        name = row["name"]
        charts[f"histogram/{name}"] = _histogram(document, name)
        charts[f"calibration/{name}"] = _calibration(document, name)
    if "values" in document["transfer"]:
        transfer = document["transfer"]
        charts["transfer"] = _transfer(transfer["values"], transfer["values"], transfer["auroc"])
    return charts | _of_tokens(document["tokens"])


def _of_tokens(part: Mapping[str, Any]) -> dict[str, Chart]:
    """AUROC of claims by layer, and its transfers; nothing without a study of tokens."""
    charts = {
        f"token-transfer/{number}": _transfer(one["sources"], one["values"], one["auroc"])
        for number, one in enumerate(part.get("transfers", ()))
    }
    best: dict[str, float] = {}
    for row in part.get("sweep", ()):
        best[row["layer"]] = max(best.get(row["layer"], 0.0), row["validation_auroc"])
    if len(best) > 1:
        line = go.Scatter(
            mode="lines+markers",
            x=[text(layer) for layer in best],
            y=list(best.values()),
            line={"color": POSITIVE, "width": 2.5},
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )
        charts["token-layers"] = chart(
            [line], "layer", "AUROC per claim, validation parts", xaxis={"type": "category"}
        )
    return charts


def _levels(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The text-only control, the first signal, and the other controls: what a probe must beat."""
    shown = _with_curves(document)
    signals = [row for row in shown if row["role"] == "signal"]
    controls = [row for row in shown if row["role"] == "control"]
    return [*controls[:1], *signals[:1], *controls[1:]]


def _with_curves(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The detectors shown in the curves: probes, signals, the text-only control, other controls."""
    words, roles = text_control(document), ("probe", "signal", "control")
    shown = [row for row in document["detectors"] if row["in_curves"]]
    return sorted(shown, key=lambda row: (roles.index(row["role"]), row is not words))


def _roc(document: Mapping[str, Any]) -> Chart:
    data = document["data"]
    return chart(
        [*_lines(document, "false_positive_rate", "true_positive_rate", "auroc"), diagonal()],
        f"{text(data['negative'])} answers flagged",
        f"{text(data['positive'])} answers found",
        legend=inside("right", 0.98),
        square=True,
    )


def _precision_recall(document: Mapping[str, Any]) -> Chart:
    data = document["data"]
    share = data["counts"][data["positive"]] / data["answers"]
    always = diagonal(y=[share, share], name="always positive")
    return chart(
        [*_lines(document, "recall", "precision", "auprc"), always],
        f"{text(data['positive'])} answers found (recall)",
        "flagged answers that are (precision)",
        legend=inside("left", 0.02),
        square=True,
    )


def _lines(document: Mapping[str, Any], x: str, y: str, area: str) -> list[Any]:
    return [
        go.Scatter(
            mode="lines",
            name=f"{short(row)} {row[area]['value']:.2f}",
            x=document["curves"][row["name"]][x],
            y=document["curves"][row["name"]][y],
            line={"color": PALETTE[number % len(PALETTE)], "width": 1.75 if number else 3},
            hovertemplate="%{x:.2f}, %{y:.2f}<extra>%{fullData.name}</extra>",
        )
        for number, row in enumerate(_with_curves(document))
    ]


def _histogram(document: Mapping[str, Any], name: str) -> Chart:
    counts = document["histograms"][name]
    bins = len(next(iter(counts.values())))
    traces = [
        go.Bar(
            name=text(label),
            x=[(number + 0.5) / bins for number in range(bins)],
            y=values,
            width=1 / bins,
            marker={"color": fade(colour, 0.62), "line": {"color": colour, "width": 1}},
            hovertemplate="%{y} answers near %{x:.2f}<extra>%{fullData.name}</extra>",
        )
        for (label, values), colour in zip(counts.items(), (POSITIVE, NEGATIVE), strict=True)
    ]
    return chart(
        traces,
        f"probability of {text(document['data']['positive'])}",
        "answers",
        xaxis={"range": [0, 1]},
        legend={"orientation": "h", "y": 1.12},
        barmode="overlay",
        bargap=0,
    )


def _calibration(document: Mapping[str, Any], name: str) -> Chart:
    rows, positive = document["calibration"][name], text(document["data"]["positive"])
    most = max(row["answers"] for row in rows)
    bins = go.Scatter(
        mode="lines+markers",
        name="bins",
        x=[row["probability"] for row in rows],
        y=[row["frequency"] for row in rows],
        customdata=[row["answers"] for row in rows],
        line={"color": POSITIVE, "width": 2},
        marker={"size": [6 + 14 * (row["answers"] / most) ** 0.5 for row in rows]},
        hovertemplate="predicted %{x:.2f}, was %{y:.2f} (%{customdata} answers)<extra></extra>",
    )
    return chart(
        [diagonal(name="perfectly calibrated"), bins],
        f"probability of {positive}",
        f"share that was {positive}",
        square=True,
        showlegend=False,
    )


def _pca(document: Mapping[str, Any]) -> Chart:
    pca, data = document["pca"], document["data"]
    traces = []
    for label, colour in ((data["positive"], POSITIVE), (data["negative"], NEGATIVE)):
        rows = [i for i, other in enumerate(pca["label"]) if other == label]
        traces.append(
            go.Scatter(
                mode="markers",
                name=text(label),
                x=[pca["x"][i] for i in rows],
                y=[pca["y"][i] for i in rows],
                text=[
                    f"<b>{text(pca['about'][i] or pca['key'][i].rpartition(':')[2][:12])}</b><br>"
                    f"{text(pca['text'][i])}"
                    for i in rows
                ],
                marker={"color": colour, "size": 6, "opacity": 0.6},
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    first, second = (f"{100 * share:.0f} %" for share in pca["explained"])
    return chart(
        traces,
        f"first component ({first} of the variance)",
        f"second component ({second})",
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )


def _transfer(
    sources: Sequence[str], targets: Sequence[str], auroc: Sequence[Sequence[Mapping[str, Any]]]
) -> Chart:
    """Rows are what was fitted on, columns what was tested on."""
    heat = go.Heatmap(
        x=[text(target) for target in targets],
        y=[text(source) for source in sources],
        z=[[cell["value"] for cell in row] for row in auroc],
        text=[
            [
                "too few"
                if cell["value"] is None
                else f"{cell['value']:.2f}<br>[{cell['low']:.2f}, {cell['high']:.2f}]"
                for cell in row
            ]
            for row in auroc
        ],
        texttemplate="%{text}",
        colorscale=RED_TO_BLUE,
        zmin=0.0,
        zmid=0.5,
        zmax=1.0,
        xgap=2,
        ygap=2,
        showscale=False,
        hovertemplate="fitted on %{y}, tested on %{x}: %{z:.3f}<extra></extra>",
    )
    return matrix(heat, "tested on", "fitted on", height=170 + 62 * len(sources))
