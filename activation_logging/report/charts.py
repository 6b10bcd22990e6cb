"""The charts as plotly's JSON, their attributes checked by plotly.

Colours of text and grid are left to the page, which knows its theme.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import markupsafe
import plotly.graph_objects as go

from activation_logging.dataset.layers import in_order
from activation_logging.report.headline import text_control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POSITIVE, NEGATIVE = "#e0702f", "#3a7fd5"
"""Orange and blue: told apart with every common colour blindness."""

PALETTE = ("#e0702f", "#3a7fd5", "#2a9d78", "#b45ac8", "#c9a227", "#6b7f95", "#d14f6a", "#5f8f2e")
GREY = "#8a8f98"
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
RED_TO_BLUE = (
    (0, "rgb(178,10,28)"),
    (0.3, "rgb(230,145,90)"),
    (0.4, "rgb(220,170,132)"),
    (0.5, "rgb(190,190,190)"),
    (0.65, "rgb(106,137,247)"),
    (1, "rgb(5,10,172)"),
)
"""For the transfer matrix: below chance red, at chance grey, above it blue."""

Chart = dict[str, Any]


def make_charts(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Every chart of the page by the id of its element: ``{"data": [...], "layout": {...}}``."""
    charts = {
        "layers": _layers(document),
        "sweep": _sweep(document),
        "roc": _roc(document),
        "precision-recall": _precision_recall(document),
        "pca": _pca(document),
    }
    for row in document["detectors"]:
        name = row["name"]
        charts[f"histogram/{name}"] = _histogram(document, name)
        charts[f"calibration/{name}"] = _calibration(document, name)
    if "values" in document["transfer"]:
        charts["transfer"] = _transfer(document["transfer"])
    return charts


def _layers(document: Mapping[str, Any]) -> Chart:
    """AUROC by layer, one line per position, with detectors that have no layer as levels."""
    traces: list[Any] = []
    best = document["place"]["position"]
    layers, positions = _axes(document["sweep"])
    numbers = [layer for layer in layers if isinstance(layer, int)]
    edges: list[Any] = [numbers[0] - 0.5, numbers[-1] + 0.5] if numbers else []
    axis: Chart = {}
    if len(numbers) < len(layers):
        # Sites have names: each gets a place of its own on the axis.
        axis, edges = {"type": "category"}, [str(layers[0]), str(layers[-1])]
    for position, colour in zip(positions, cycle(PALETTE), strict=False):
        rows = [row for row in document["sweep"] if row["position"] == position]
        rows.sort(key=lambda row: layers.index(row["layer"]))
        x = [str(row["layer"]) if axis else row["layer"] for row in rows]
        intervals = [row["auroc"] for row in rows]
        if position == best:
            traces.append(_band(x, intervals, colour))
        traces.append(
            go.Scatter(
                mode="lines+markers",
                name=_text(position),
                x=x,
                y=[interval["value"] for interval in intervals],
                customdata=[_bounds(interval) for interval in intervals],
                line={"color": colour, "width": 3 if position == best else 1.75},
                marker={"size": 6 if position == best else 4},
                hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
                "<extra>%{fullData.name}</extra>",
            )
        )
    for row, dash in zip(_levels(document), cycle(DASHES), strict=False):
        traces.append(
            go.Scatter(
                mode="lines",
                name=_short(row),
                x=edges,
                y=[row["auroc"]["value"]] * 2,
                line={"dash": dash, "width": 1.5, "color": GREY},
                hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>",
            )
        )
    legend = {"orientation": "h", "y": -0.22}
    return _chart(traces, "layer", "AUROC", xaxis=axis, legend=legend, height=440)


def _levels(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The text-only control, the first signal, and the other controls: what a probe must beat."""
    shown = _with_curves(document)
    signals = [row for row in shown if row["role"] == "signal"]
    controls = [row for row in shown if row["role"] == "control"]
    return [*controls[:1], *signals[:1], *controls[1:]]


def _with_curves(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The detectors shown in the curves: probes, signals, the text-only control, other controls."""
    text, roles = text_control(document), ("probe", "signal", "control")
    shown = [row for row in document["detectors"] if row["in_curves"]]
    return sorted(shown, key=lambda row: (roles.index(row["role"]), row is not text))


def _band(x: list[int | str], intervals: list[Mapping[str, float]], colour: str) -> Any:
    return go.Scatter(
        mode="lines",
        x=x + x[::-1],
        y=[i["high"] for i in intervals] + [i["low"] for i in intervals][::-1],
        fill="toself",
        fillcolor=_fade(colour, 0.16),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _sweep(document: Mapping[str, Any]) -> Chart:
    layers, positions = _axes(document["sweep"])
    at = {(row["layer"], row["position"]): row["auroc"] for row in document["sweep"]}
    cells = [[at[layer, position] for layer in layers] for position in positions]
    values = [[cell["value"] for cell in line] for line in cells]
    heat = go.Heatmap(
        x=[str(layer) for layer in layers],
        y=[_text(position) for position in positions],
        z=values,
        customdata=[[_bounds(cell) for cell in line] for line in cells],
        text=[[f"{value:.2f}".lstrip("0") for value in line] for line in values],
        texttemplate="%{text}" if len(layers) <= 40 else "",
        textfont={"size": 10 if len(layers) > 16 else 13},
        colorscale="Viridis",
        zmin=0.5,
        zmax=max(0.6, *map(max, values)),
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "AUROC"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="layer %{x}, %{y}<br>AUROC %{z:.3f} [%{customdata[0]:.3f}, "
        "%{customdata[1]:.3f}]<extra></extra>",
    )
    return _matrix(heat, "layer", "", height=120 + 44 * len(positions))


def _roc(document: Mapping[str, Any]) -> Chart:
    data = document["data"]
    return _chart(
        [*_lines(document, "false_positive_rate", "true_positive_rate", "auroc"), _diagonal()],
        f"{_text(data['negative'])} answers flagged",
        f"{_text(data['positive'])} answers found",
        legend=_inside("right", 0.98),
        square=True,
    )


def _precision_recall(document: Mapping[str, Any]) -> Chart:
    data = document["data"]
    share = data["counts"][data["positive"]] / data["answers"]
    always = _diagonal(y=[share, share], name="always positive")
    return _chart(
        [*_lines(document, "recall", "precision", "auprc"), always],
        f"{_text(data['positive'])} answers found (recall)",
        "flagged answers that are (precision)",
        legend=_inside("left", 0.02),
        square=True,
    )


def _lines(document: Mapping[str, Any], x: str, y: str, area: str) -> list[Any]:
    return [
        go.Scatter(
            mode="lines",
            name=f"{_short(row)} {row[area]['value']:.2f}",
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
            name=_text(label),
            x=[(number + 0.5) / bins for number in range(bins)],
            y=values,
            width=1 / bins,
            marker={"color": _fade(colour, 0.62), "line": {"color": colour, "width": 1}},
            hovertemplate="%{y} answers near %{x:.2f}<extra>%{fullData.name}</extra>",
        )
        for (label, values), colour in zip(counts.items(), (POSITIVE, NEGATIVE), strict=True)
    ]
    return _chart(
        traces,
        f"probability of {_text(document['data']['positive'])}",
        "answers",
        xaxis={"range": [0, 1]},
        legend={"orientation": "h", "y": 1.12},
        barmode="overlay",
        bargap=0,
    )


def _calibration(document: Mapping[str, Any], name: str) -> Chart:
    rows, positive = document["calibration"][name], _text(document["data"]["positive"])
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
    return _chart(
        [_diagonal(name="perfectly calibrated"), bins],
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
                name=_text(label),
                x=[pca["x"][i] for i in rows],
                y=[pca["y"][i] for i in rows],
                text=[
                    f"<b>{_text(pca['about'][i] or pca['key'][i][:12])}</b><br>"
                    f"{_text(pca['text'][i])}"
                    for i in rows
                ],
                marker={"color": colour, "size": 6, "opacity": 0.6},
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
        )
    first, second = (f"{100 * share:.0f} %" for share in pca["explained"])
    return _chart(
        traces,
        f"first component ({first} of the variance)",
        f"second component ({second})",
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )


def _transfer(transfer: Mapping[str, Any]) -> Chart:
    values = [_text(value) for value in transfer["values"]]
    heat = go.Heatmap(
        x=values,
        y=values,
        z=[[cell["value"] for cell in row] for row in transfer["auroc"]],
        text=[
            [
                "too few"
                if cell["value"] is None
                else f"{cell['value']:.2f}<br>[{cell['low']:.2f}, {cell['high']:.2f}]"
                for cell in row
            ]
            for row in transfer["auroc"]
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
    return _matrix(heat, "tested on", "fitted on", height=170 + 62 * len(values))


def _chart(
    traces: Iterable[Any],
    x: str,
    y: str,
    *,
    square: bool = False,
    xaxis: Chart | None = None,
    yaxis: Chart | None = None,
    **layout: Any,
) -> Chart:
    """Traces with their axes; ``layout`` is plotly's, ``square`` makes both axes 0 to 1."""
    axis: Chart = {"zeroline": False, "automargin": True}
    if square:
        axis["range"] = [0, 1.01]
    whole = go.Layout(
        height=layout.pop("height", 400),
        margin={"l": 64, "r": 16, "t": 24, "b": 56},
        xaxis={"title": {"text": x, "standoff": 10}, **axis, **(xaxis or {})},
        yaxis={"title": {"text": y, "standoff": 14}, **axis, **(yaxis or {})},
        hovermode="closest",
        **layout,
    )
    # A go.Figure would add a template of some 6 kB, whose colours the page replaces.
    return {
        "data": [trace.to_plotly_json() for trace in traces],
        "layout": whole.to_plotly_json(),
    }


def _matrix(heat: Any, x: str, y: str, *, height: int) -> Chart:
    names = {"type": "category", "showgrid": False}
    return _chart(
        [heat], x, y, xaxis=names, yaxis={**names, "autorange": "reversed"}, height=height
    )


def _diagonal(**changed: Any) -> Any:
    line = {"dash": "dot", "width": 1.5, "color": GREY}
    usual = {"name": "chance", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip", "showlegend": False}
    return go.Scatter(mode="lines", line=line, **{**usual, **changed})


def _inside(side: str, x: float) -> Chart:
    """A legend in the lower corner of this side."""
    return {"x": x, "xanchor": side, "y": 0.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}


def _axes(sweep: list[Mapping[str, Any]]) -> tuple[list[int | str], list[Any]]:
    """Layers and sites in order, and positions as they come."""
    return in_order(row["layer"] for row in sweep), list({row["position"]: 0 for row in sweep})


def _bounds(interval: Mapping[str, float]) -> list[float]:
    return [interval["low"], interval["high"]]


def _short(row: Mapping[str, Any]) -> str:
    return _text(row["title"].split(" (")[0])


def _text(value: Any) -> str:
    """Text for plotly, which takes ``<b>`` or ``<a>`` in any text for markup.

    Plotly decodes the numeric entities that quotes become here, unlike ``&quot;``.
    """
    return str(markupsafe.escape(str(value)))


def _fade(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
