"""Pieces that every chart is made of: colours, axes, texts that plotly takes for no markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import markupsafe
import plotly.graph_objects as go

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POSITIVE, NEGATIVE = "#e0702f", "#3a7fd5"
"""Orange and blue: told apart with every common colour blindness."""

PALETTE = ("#e0702f", "#3a7fd5", "#2a9d78", "#b45ac8", "#c9a227", "#6b7f95", "#d14f6a", "#5f8f2e")
GREY = "#8a8f98"
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")

Chart = dict[str, Any]
"""``{"data": [...], "layout": {...}}``, as plotly draws it."""


def chart(
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


def matrix(heat: Any, x: str, y: str, *, height: int) -> Chart:
    """A heat map, its first row at the top."""
    names = {"type": "category", "showgrid": False}
    return chart([heat], x, y, xaxis=names, yaxis={**names, "autorange": "reversed"}, height=height)


def diagonal(**changed: Any) -> Any:
    """The dotted line from 0, 0 to 1, 1."""
    line = {"dash": "dot", "width": 1.5, "color": GREY}
    usual = {"name": "chance", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip", "showlegend": False}
    return go.Scatter(mode="lines", line=line, **{**usual, **changed})


def band(x: list[Any], intervals: list[Mapping[str, float]], colour: str) -> Any:
    """The interval around a line, as a faint area."""
    return go.Scatter(
        mode="lines",
        x=x + x[::-1],
        y=[i["high"] for i in intervals] + [i["low"] for i in intervals][::-1],
        fill="toself",
        fillcolor=fade(colour, 0.16),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def inside(side: str, x: float) -> Chart:
    """A legend in the lower corner of this side."""
    return {"x": x, "xanchor": side, "y": 0.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}


def bounds(interval: Mapping[str, float]) -> list[float]:
    """Low and high, for what is shown when one points at it."""
    return [interval["low"], interval["high"]]


def short(row: Mapping[str, Any]) -> str:
    """A detector's title without what stands in brackets."""
    return text(row["title"].split(" (")[0])


def text(value: Any) -> str:
    """Text for plotly, which takes ``<b>`` or ``<a>`` in any text for markup.

    Plotly decodes the numeric entities that quotes become here, unlike ``&quot;``.
    """
    return str(markupsafe.escape(str(value)))


def fade(colour: str, alpha: float) -> str:
    """A colour ``#rrggbb`` made transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
