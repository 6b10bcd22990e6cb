"""Risk against coverage, and AUROC against the number of things that a detector was fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from activation_logging.report.drawing import PALETTE, Chart, band, bounds, chart, short, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, Any]


def trust_charts(document: Mapping[str, Any], shown: Sequence[Row]) -> dict[str, Chart]:
    """The charts ``risk`` and ``learning``.

    Args:
        document: the report's.
        shown: the detectors that the former draws.
    """
    return {"risk": _risk(document, shown), "learning": _learning(document)}


def _risk(document: Mapping[str, Any], shown: Sequence[Row]) -> Chart:
    traces = [
        go.Scatter(
            mode="lines",
            name=f"{short(row)} {row['risk_coverage']['aurc']['value']:.2f}",
            x=row["risk_coverage"]["coverage"],
            y=row["risk_coverage"]["risk"],
            line={"color": PALETTE[number % len(PALETTE)], "width": 1.75 if number else 3},
            hovertemplate="%{y:.1%} of the %{x:.0%} that are kept<extra>%{fullData.name}</extra>",
        )
        for number, row in enumerate(shown)
    ]
    return chart(
        traces,
        "answers kept, the least suspicious first",
        f"{text(document['data']['positive'])} among them",
        xaxis={"range": [0, 1.01], "tickformat": ".0%"},
        yaxis={"rangemode": "tozero", "tickformat": ".0%"},
        legend={"orientation": "h", "y": -0.26},
        height=460,
    )


def _learning(document: Mapping[str, Any]) -> Chart:
    named = {row["name"]: row for row in document["detectors"]}
    traces: list[Any] = []
    curves = document["trust"]["learning_curves"].items()
    for number, (name, points) in enumerate(curves):
        colour = PALETTE[number % len(PALETTE)]
        x = [point["groups"] for point in points]
        intervals = [point["auroc"] for point in points]
        traces += [
            band(x, intervals, colour),
            go.Scatter(
                mode="lines+markers",
                name=short(named[name]),
                x=x,
                y=[interval["value"] for interval in intervals],
                customdata=[bounds(interval) for interval in intervals],
                line={"color": colour, "width": 2.5},
                hovertemplate="%{x:.0f} things: %{y:.3f} [%{customdata[0]:.3f}, "
                "%{customdata[1]:.3f}]<extra>%{fullData.name}</extra>",
            ),
        ]
    ticks = sorted({round(point["groups"]) for _, points in curves for point in points})
    return chart(
        traces,
        "things that it was fitted on",
        "AUROC on others",
        xaxis={"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]},
        legend={"orientation": "h", "y": -0.26},
        height=460,
    )
