"""The page: one HTML file that opens from disk and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from activation_logging.report import comparison_data, headline, where_charts
from activation_logging.report.charts import make_charts
from activation_logging.report.marking import marked, shade
from activation_logging.report.templates import environment_of
from activation_logging.strict_json import dumps
from activation_logging.text import ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jinja2 import Environment

LEVELS = {
    "span": "A claim, by its highest token",
    "first": "A claim, by its first token alone",
    "token": "A token of a claim",
    "answer": "A whole answer, by its highest token",
}
"""What a probe of tokens is asked about."""

MINUS = "\N{MINUS SIGN}"


def render_page(document: Mapping[str, Any]) -> str:
    """The whole page as text; about 5 MB, most of it the charting library.

    Every text of the document is escaped: none becomes markup or a script.

    Args:
        document: what :func:`activation_logging.report.document.make_document` returns.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            document,
            headline=headline.headline(document),
            probe=headline.main_probe(document),
            before=headline.probe_before_answer(document),
            best_control=headline.best_control(document),
            made=datetime.fromtimestamp(document["created"], tz=timezone.utc),
            charts=make_charts(document),
            sites=list(where_charts.places(document).sites),
            heads=where_charts.best_heads(document),
            head_positions=where_charts.head_positions(document),
            css=_trusted("page.css"),
            levels=LEVELS,
            rates=list(document["detectors"][0]["recall_at"]),
            scripts=_scripts(),
        )
    )


def _scripts() -> list[Markup]:
    """What runs in a page, in this order."""
    return [
        Markup(get_plotlyjs()),  # noqa: S704 - a library's code, no text of a prompt
        *(_trusted(name) for name in ("pick.js", "tokens.js", "page.js")),
    ]


def script_hashes() -> list[str]:
    """The scripts of a page as a Content Security Policy names them: nothing else need run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in _scripts())
    return [f"sha256-{base64.b64encode(digest).decode()}" for digest in digests]


def render_comparison(document: Mapping[str, Any]) -> str:
    """The page of a comparison as text. Every text of the document is escaped.

    Args:
        document: what :func:`activation_logging.report.comparison.build_comparison` makes.
    """
    claims = comparison_data.claim_lines(document)
    return (
        _environment()
        .get_template("compare.html.j2")
        .render(
            studies=document["studies"],
            without=document["left_out"],
            lines=comparison_data.lines(document),
            best_controls=comparison_data.best_controls(document),
            claims=claims,
            claim_titles={line.name: line.title for line in claims},
            metrics=comparison_data.METRICS,
            made=datetime.fromtimestamp(document["created"], tz=timezone.utc),
            css=_trusted("page.css"),
            pick_js=_trusted("pick.js"),
        )
    )


def _environment() -> Environment:
    made = environment_of(PackageLoader("activation_logging.report", "."))
    made.filters.update(
        number=_number,
        ranges=_ranges,
        on_axis=_on_axis,
        marked=marked,
        shade=shade,
        place=_place,
        where=_where,
        percent=_percent,
        metric=comparison_data.metric,
    )
    made.policies["json.dumps_function"] = dumps
    made.policies["json.dumps_kwargs"] = {}
    return made


def _trusted(name: str) -> Markup:
    """A file of this folder, to stand in the page as it is."""
    text = (files("activation_logging.report") / name).read_text("utf-8")
    return Markup(text)  # noqa: S704 - our own file, no text of a prompt


def _number(value: float, sign: str = "") -> str:
    """Three decimals; with ``sign="+"`` the sign of positive numbers, too."""
    return f"{value:{sign}.3f}".replace("-", MINUS)


def _on_axis(value: float | None) -> float:
    """Where an AUROC is on the table's axis: from 0 to 150 pixels for 0.4 to 1."""
    return round(150 * (min(max(value or 0.0, 0.4), 1.0) - 0.4) / 0.6, 1)


def _ranges(numbers: Iterable[int]) -> str:
    return ", ".join(ranges(numbers))


def _place(layer: int | str) -> str:
    """What a sentence calls a layer, a site, or one head of it."""
    return f"layer {layer}" if str(layer).isdecimal() else str(layer)


def _where(row: Mapping[str, Any]) -> str:
    """The places of a detector, one for each fold, in a few words; the CSV has them all."""
    layers, positions = (
        row[part].split(", ") if row[part] else [] for part in ("layer", "position")
    )
    if not layers:
        return ""
    if len(layers) == 1:
        named = _place(layers[0])
    else:
        named = f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
    return f"{named}; {positions[0] if len(positions) == 1 else f'{len(positions)} positions'}"


def _percent(share: float | str) -> str:
    return f"{100 * float(share):g}\N{NO-BREAK SPACE}%"
