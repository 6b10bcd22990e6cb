"""Where in the network: AUROC by layer, a heat map per kind of site, and one of the heads.

A row of the sweep is read from a whole site (a layer of the residual stream, ``attn_out@12``), or
from one head (``heads@15.3``). The former have a line and a map per kind of site, the latter a map
of layers by heads, as in ITI (Li et al. 2023, arXiv:2306.03341).
"""

from __future__ import annotations

from itertools import cycle
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from activation_logging.dataset.layers import Source
from activation_logging.report.drawing import (
    DASHES,
    GREY,
    PALETTE,
    Chart,
    band,
    bounds,
    chart,
    matrix,
    short,
    text,
)
from activation_logging.sites import RESID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, Any]

BEST_HEADS = 10
_MANY = 40
_WIDE = 16


class Places(NamedTuple):
    """The sweep, taken apart: rows of whole sites by kind of site, and rows of single heads."""

    sites: dict[str, list[Row]]
    heads: list[Row]


def places(document: Mapping[str, Any]) -> Places:
    """The rows of ``document["sweep"]`` by what they were read from.

    Each has the numbers of its layer and head as ``at`` and ``head``, too.
    """
    found = Places({}, [])
    for row in document["sweep"]:
        site, head = Source.of(row["layer"], document["data"]["num_layers"])
        placed = {**row, "at": site.layer, "head": head}
        (found.heads if head is not None else found.sites.setdefault(site.name, [])).append(placed)
    return found


def where_charts(document: Mapping[str, Any], levels: Sequence[Row]) -> dict[str, Chart]:
    """The charts ``layers``, ``sweep/KIND`` and ``heads/POSITION``, as far as the sweep has them.

    Args:
        document: the report's.
        levels: rows of detectors that have no layer, drawn as horizontal lines.
    """
    sites, heads = places(document)
    scale = _scale(document["sweep"])
    charts = {f"sweep/{kind}": _map(rows, scale) for kind, rows in sites.items()}
    if sites:
        charts["layers"] = _layers(sites, document["place"], levels)
    for position in _positions(heads):
        charts[f"heads/{position}"] = _heads(heads, position, scale)
    return charts


def head_positions(document: Mapping[str, Any]) -> list[Any]:
    """The positions of the heads' maps, that of the best head first."""
    best = best_heads(document)
    first = [best[0]["position"]] if best else []
    return [*first, *(p for p in _positions(places(document).heads) if p not in first)]


def best_heads(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the heads with the best mean AUROC on the validation parts, at most ten.

    Their AUROC on the test sides is then no choice's luck.
    """
    rows = [
        {**row, "validation": sum(row["validation_auroc"]) / len(row["validation_auroc"])}
        for row in places(document).heads
    ]
    return sorted(rows, key=lambda row: -row["validation"])[:BEST_HEADS]


def _layers(sites: Mapping[str, list[Row]], place: Row, levels: Sequence[Row]) -> Chart:
    """AUROC by layer: a line per position, and one per other kind of site at the best position."""
    main = Source.labelled(place["layer"]).site.name
    if main not in sites:
        main = next(iter(sites))
    best = place["position"]
    lines = [(position, main, position) for position in _positions(sites[main])]
    lines += [(f"{kind}, {best}", kind, best) for kind in sites if kind != main]
    traces: list[Any] = []
    for (name, kind, position), colour in zip(lines, cycle(PALETTE), strict=False):
        rows = [row for row in sites[kind] if row["position"] == position]
        rows.sort(key=itemgetter("at"))
        is_best = (kind, position) == (main, best)
        intervals = [row["auroc"] for row in rows]
        x = [row["at"] for row in rows]
        if is_best:
            traces.append(band(x, intervals, colour))
        traces.append(
            go.Scatter(
                mode="lines+markers",
                name=text(name),
                x=x,
                y=[interval["value"] for interval in intervals],
                customdata=[bounds(interval) for interval in intervals],
                line={"color": colour, "width": 3 if is_best else 1.75},
                marker={
                    "size": 6 if is_best else 4,
                    "symbol": "circle" if kind == main else "diamond",
                },
                hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
                "<extra>%{fullData.name}</extra>",
            )
        )
    numbers = [row["at"] for rows in sites.values() for row in rows]
    for row, dash in zip(levels, cycle(DASHES), strict=False):
        traces.append(
            go.Scatter(
                mode="lines",
                name=short(row),
                x=[min(numbers) - 0.5, max(numbers) + 0.5],
                y=[row["auroc"]["value"]] * 2,
                line={"dash": dash, "width": 1.5, "color": GREY},
                hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>",
            )
        )
    legend = {"orientation": "h", "y": -0.22}
    named = "layer" if main == RESID else f"layer of {main}"
    return chart(traces, named, "AUROC", legend=legend, height=440)


def _map(rows: Sequence[Row], scale: Chart) -> Chart:
    """Layers by positions, of one kind of site."""
    layers, positions = sorted({row["at"] for row in rows}), _positions(rows)
    at = {(row["position"], row["at"]): row["auroc"] for row in rows}
    cells = [[at.get((position, layer)) for layer in layers] for position in positions]
    heat = _heat(layers, [text(position) for position in positions], cells, scale, "%{y}")
    return matrix(heat, "layer", "", height=120 + 44 * len(positions))


def _heads(rows: Sequence[Row], position: Any, scale: Chart) -> Chart:
    """Layers by heads, at one position."""
    at = {}
    for row in rows:
        if row["position"] == position:
            at[row["head"], row["at"]] = row["auroc"]
    layers, heads = sorted({layer for _, layer in at}), sorted({head for head, _ in at})
    cells = [[at.get((head, layer)) for layer in layers] for head in heads]
    heat = _heat(layers, list(map(str, heads)), cells, scale, "head %{y}")
    return matrix(
        heat, "layer", "head", height=130 + (30 if len(heads) <= _WIDE else 17) * len(heads)
    )


def _heat(
    layers: Sequence[int], names: list[str], cells: list[list[Row | None]], scale: Chart, said: str
) -> Any:
    # Hundreds of numbers on a map are read by nobody.
    small = len(layers) * len(names) > _MANY * _WIDE or len(layers) > _MANY
    values = [[None if cell is None else cell["value"] for cell in line] for line in cells]
    return go.Heatmap(
        x=[str(layer) for layer in layers],
        y=names,
        z=values,
        customdata=[[None if cell is None else bounds(cell) for cell in line] for line in cells],
        text=[["" if v is None else f"{v:.2f}".lstrip("0") for v in line] for line in values],
        texttemplate="" if small else "%{text}",
        textfont={"size": 10 if len(layers) > _WIDE else 13},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        colorbar={"title": {"text": "AUROC"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"layer %{{x}}, {said}<br>AUROC %{{z:.3f}} [%{{customdata[0]:.3f}}, "
        "%{customdata[1]:.3f}]<extra></extra>",
        **scale,
    )


def _scale(rows: Sequence[Row]) -> Chart:
    """One scale of colours for all maps, so that they compare."""
    most = max([0.6, *(row["auroc"]["value"] for row in rows)])
    return {"colorscale": "Viridis", "zmin": 0.5, "zmax": most}


def _positions(rows: Sequence[Row]) -> list[Any]:
    """The positions, as they come."""
    return list({row["position"]: 0 for row in rows})
