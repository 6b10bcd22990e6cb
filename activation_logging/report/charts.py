"""Charts as plotly's JSON. Colours of text and grid are left to the page, which knows its theme."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

POSITIVE, NEGATIVE = "#e0702f", "#3a7fd5"
"""Orange and blue: told apart with every common colour blindness."""

PALETTE = ("#e0702f", "#3a7fd5", "#2a9d78", "#b45ac8", "#c9a227", "#6b7f95", "#d14f6a", "#5f8f2e")
CURVES = ("linear_probe", "saplma", "min_logprob", "mean_logprob", "text_only", "length")

Chart = dict[str, Any]


def make_charts(document: Mapping[str, Any]) -> dict[str, Chart]:
    """Every chart of the page by the id of its element."""
    charts = {
        "layers": _layers(document),
        "sweep": _sweep(document),
        "roc": _roc(document),
        "precision-recall": _precision_recall(document),
        "pca": _pca(document),
    }
    for detector in document["detectors"]:
        name = detector["name"]
        charts[f"histogram/{name}"] = _histogram(document, name)
        charts[f"calibration/{name}"] = _calibration(document, name)
    if "values" in document["transfer"]:
        charts["transfer"] = _transfer(document["transfer"])
    return charts


def _layers(document: Mapping[str, Any]) -> Chart:
    """AUROC by layer, one line per position, with the detectors that have no layer as levels."""
    data: list[Chart] = []
    best = document["place"]["position"]
    positions = list(dict.fromkeys(row["position"] for row in document["sweep"]))
    layers = sorted({row["layer"] for row in document["sweep"]})
    for number, position in enumerate(positions):
        rows = [row for row in document["sweep"] if row["position"] == position]
        rows.sort(key=lambda row: row["layer"])
        x = [row["layer"] for row in rows]
        colour = PALETTE[number % len(PALETTE)]
        if position == best:
            data.append(_band(x, [row["auroc"] for row in rows], colour))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": str(position),
                "x": x,
                "y": [row["auroc"]["value"] for row in rows],
                "customdata": [[row["auroc"]["low"], row["auroc"]["high"]] for row in rows],
                "line": {"color": colour, "width": 3 if position == best else 1.75},
                "marker": {"size": 6 if position == best else 4},
                "hovertemplate": "layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, "
                "%{customdata[1]:.3f}]<extra>" + escape(str(position)) + "</extra>",
            }
        )
    for name, dash in (("text_only", "dash"), ("mean_logprob", "dot"), ("length", "dashdot")):
        row = _detector(document, name)
        if row is not None:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": row["title"].split(" (")[0],
                    "x": [layers[0] - 0.5, layers[-1] + 0.5],
                    "y": [row["auroc"]["value"]] * 2,
                    "line": {"dash": dash, "width": 1.5, "color": "#8a8f98"},
                    "hovertemplate": "%{y:.3f}<extra>%{fullData.name}</extra>",
                }
            )
    return _chart(data, "layer", "AUROC", legend={"orientation": "h", "y": -0.22}, height=440)


def _band(x: list[int], intervals: list[dict[str, float]], colour: str) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x + x[::-1],
        "y": [i["high"] for i in intervals] + [i["low"] for i in intervals][::-1],
        "fill": "toself",
        "fillcolor": _fade(colour, 0.16),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _sweep(document: Mapping[str, Any]) -> Chart:
    rows = document["sweep"]
    positions = list(dict.fromkeys(row["position"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    at = {(row["layer"], row["position"]): row["auroc"] for row in rows}
    values = [[at[layer, position]["value"] for layer in layers] for position in positions]
    highest = max(max(line) for line in values)
    heat = {
        "type": "heatmap",
        "x": [str(layer) for layer in layers],
        "y": [str(position) for position in positions],
        "z": values,
        "customdata": [
            [[at[layer, position]["low"], at[layer, position]["high"]] for layer in layers]
            for position in positions
        ],
        "text": [[f"{value:.2f}".lstrip("0") for value in line] for line in values],
        "texttemplate": "%{text}" if len(layers) <= 40 else "",
        "textfont": {"size": 10 if len(layers) > 16 else 13},
        "colorscale": "Viridis",
        "zmin": 0.5,
        "zmax": max(0.6, highest),
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "AUROC"}, "thickness": 12, "outlinewidth": 0},
        "hovertemplate": "layer %{x}, %{y}<br>AUROC %{z:.3f} [%{customdata[0]:.3f}, "
        "%{customdata[1]:.3f}]<extra></extra>",
    }
    chart = _chart([heat], "layer", "", height=120 + 44 * len(positions))
    chart["layout"]["xaxis"].update(type="category", showgrid=False)
    chart["layout"]["yaxis"].update(type="category", showgrid=False, autorange="reversed")
    return chart


def _roc(document: Mapping[str, Any]) -> Chart:
    data = _lines(document, "false_positive_rate", "true_positive_rate", "auroc")
    data.append(_diagonal())
    return _chart(
        data,
        f"{document['data']['negative']} answers flagged",
        f"{document['data']['positive']} answers found",
        legend=_inside("right", 0.02, "bottom"),
        square=True,
    )


def _precision_recall(document: Mapping[str, Any]) -> Chart:
    data = _lines(document, "recall", "precision", "auprc")
    share = document["data"]["counts"][document["data"]["positive"]] / document["data"]["answers"]
    data.append({**_diagonal(), "x": [0, 1], "y": [share, share], "name": "always positive"})
    return _chart(
        data,
        f"{document['data']['positive']} answers found (recall)",
        "flagged answers that are (precision)",
        legend=_inside("left", 0.02, "bottom"),
        square=True,
    )


def _lines(document: Mapping[str, Any], x: str, y: str, area: str) -> list[Chart]:
    lines = []
    for number, name in enumerate(CURVES):
        row = _detector(document, name)
        if row is None:
            continue
        curve = document["curves"][name]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{row['title'].split(' (')[0]} {row[area]['value']:.2f}",
                "x": curve[x],
                "y": curve[y],
                "line": {"color": PALETTE[number], "width": 3 if not number else 1.75},
                "hovertemplate": "%{x:.2f}, %{y:.2f}<extra>%{fullData.name}</extra>",
            }
        )
    return lines


def _histogram(document: Mapping[str, Any], name: str) -> Chart:
    counts = document["histograms"][name]
    bins = len(next(iter(counts.values())))
    centres = [(number + 0.5) / bins for number in range(bins)]
    data = [
        {
            "type": "bar",
            "name": label,
            "x": centres,
            "y": values,
            "width": 1 / bins,
            "marker": {"color": _fade(colour, 0.62), "line": {"color": colour, "width": 1}},
            "hovertemplate": "%{y} answers near %{x:.2f}<extra>" + label + "</extra>",
        }
        for (label, values), colour in zip(counts.items(), (POSITIVE, NEGATIVE), strict=True)
    ]
    chart = _chart(
        data,
        f"probability of {document['data']['positive']}",
        "answers",
        legend={"orientation": "h", "y": 1.12},
    )
    chart["layout"].update(barmode="overlay", bargap=0)
    chart["layout"]["xaxis"]["range"] = [0, 1]
    return chart


def _calibration(document: Mapping[str, Any], name: str) -> Chart:
    rows = document["calibration"][name]
    most = max(row["answers"] for row in rows)
    data = [
        {**_diagonal(), "name": "perfectly calibrated"},
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "bins",
            "x": [row["probability"] for row in rows],
            "y": [row["frequency"] for row in rows],
            "customdata": [row["answers"] for row in rows],
            "line": {"color": POSITIVE, "width": 2},
            "marker": {"size": [6 + 14 * (row["answers"] / most) ** 0.5 for row in rows]},
            "hovertemplate": "said %{x:.2f}, was %{y:.2f} (%{customdata} answers)<extra></extra>",
        },
    ]
    chart = _chart(
        data,
        f"probability of {document['data']['positive']}",
        f"share that was {document['data']['positive']}",
        square=True,
    )
    chart["layout"]["showlegend"] = False
    return chart


def _pca(document: Mapping[str, Any]) -> Chart:
    pca, data = document["pca"], []
    for label, colour in (
        (document["data"]["positive"], POSITIVE),
        (document["data"]["negative"], NEGATIVE),
    ):
        rows = [i for i, other in enumerate(pca["label"]) if other == label]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [pca["x"][i] for i in rows],
                "y": [pca["y"][i] for i in rows],
                "text": [
                    f"<b>{escape(pca['about'][i] or pca['key'][i][:12])}</b><br>"
                    f"{escape(pca['text'][i])}"
                    for i in rows
                ],
                "marker": {"color": colour, "size": 6, "opacity": 0.6},
                "hovertemplate": "%{text}<extra>" + label + "</extra>",
            }
        )
    first, second = (f"{100 * share:.0f} %" for share in pca["explained"])
    return _chart(
        data,
        f"first component ({first} of the variance)",
        f"second component ({second})",
        legend={"orientation": "h", "y": 1.08},
        height=460,
    )


def _transfer(transfer: Mapping[str, Any]) -> Chart:
    values = [escape(value) for value in transfer["values"]]
    cells = transfer["auroc"]
    heat = {
        "type": "heatmap",
        "x": values,
        "y": values,
        "z": [[cell["value"] for cell in row] for row in cells],
        "text": [
            [
                "too few"
                if cell["value"] is None
                else f"{cell['value']:.2f}<br>[{cell['low']:.2f}, {cell['high']:.2f}]"
                for cell in row
            ]
            for row in cells
        ],
        "texttemplate": "%{text}",
        "colorscale": "RdBu",
        "reversescale": True,
        "zmin": 0.0,
        "zmid": 0.5,
        "zmax": 1.0,
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "hovertemplate": "fitted on %{y}, tested on %{x}: %{z:.3f}<extra></extra>",
    }
    chart = _chart([heat], "tested on", "fitted on", height=170 + 62 * len(values))
    chart["layout"]["xaxis"].update(type="category", showgrid=False)
    chart["layout"]["yaxis"].update(type="category", showgrid=False, autorange="reversed")
    return chart


def _chart(
    data: list[Chart],
    x: str,
    y: str,
    *,
    legend: Chart | None = None,
    height: int = 400,
    square: bool = False,
) -> Chart:
    layout: Chart = {
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 24, "b": 56},
        "xaxis": {"title": {"text": x, "standoff": 10}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y, "standoff": 14}, "zeroline": False, "automargin": True},
        "hovermode": "closest",
    }
    if legend:
        layout["legend"] = legend
    if square:
        for axis in ("xaxis", "yaxis"):
            layout[axis]["range"] = [0, 1.01]
    return {"data": data, "layout": layout}


def _diagonal() -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "chance",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"dash": "dot", "width": 1.5, "color": "#8a8f98"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _inside(side: str, y: float, anchor: str) -> Chart:
    x = 0.98 if side == "right" else 0.02
    return {"x": x, "xanchor": side, "y": y, "yanchor": anchor, "bgcolor": "rgba(0,0,0,0)"}


def _detector(document: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((row for row in document["detectors"] if row["name"] == name), None)


def _fade(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
