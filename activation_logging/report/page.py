"""The page: one HTML file that opens from disk and asks no network for anything."""

from __future__ import annotations

from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from activation_logging.report import sections
from activation_logging.report.charts import make_charts
from activation_logging.report.wording import detector, find, headline, stacked
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping


# Nothing may be loaded from anywhere: what is not in this file does not exist for it.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
SECTIONS = (
    sections.detectors,
    sections.where,
    sections.curves,
    sections.scores,
    sections.pca,
    sections.transfer,
    sections.answers,
    sections.method,
)


def render_page(document: Mapping[str, Any]) -> str:
    """The whole page as text; about 5 MB, most of it the charting library."""
    from plotly.offline import get_plotlyjs

    folder = files("activation_logging.report")
    data = document["data"]
    title = f"{data['label']} · {data['model']}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{(folder / 'page.css').read_text('utf-8')}</style>",
            "</head>",
            "<body>",
            _head(document),
            "<main>",
            *(section(document) for section in SECTIONS),
            "</main>",
            _foot(document),
            '<div id="tip" role="tooltip" hidden></div>',
            f'<script type="application/json" id="charts">{_json(make_charts(document))}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(folder / 'page.js').read_text('utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(document: Mapping[str, Any]) -> str:
    data = document["data"]
    probe, text = detector(document, "linear_probe"), find(document, "text_only")
    before = find(document, "linear_probe_before")
    tiles = [
        (stacked(row["auroc"]), what)
        for row, what in (
            (probe, "AUROC of the linear probe, best layer and position"),
            (before, "AUROC before the first word of the answer"),
            (text, "AUROC from the words of prompt and answer alone"),
        )
        if row
    ]
    counts = " and ".join(f"{count:,} {escape(name)}" for name, count in data["counts"].items())
    tiles.append((f"{data['answers']:,}", f"answers: {counts}"))
    links = (
        ("detectors", "Detectors"),
        ("where", "Where in the network"),
        ("curves", "Curves"),
        ("scores", "Scores"),
        ("map", "Map"),
        ("transfer-section", "Transfer"),
        ("answers", "Answers, token by token"),
        ("method", "Data and method"),
    )
    return (
        f'<header><p class="kicker">{escape(data["label"])} · {escape(data["model"])}</p>'
        f"<h1>{escape(headline(document))}</h1>"
        f'<nav>{"".join(f"""<a href="#{to}">{name}</a>""" for to, name in links)}</nav>'
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{big}</b><span>{small}</span></div>' for big, small in tiles
        )
        + "</div></header>"
    )


def _foot(document: Mapping[str, Any]) -> str:
    made = datetime.fromtimestamp(document["created"], tz=timezone.utc)
    return (
        f"<footer>Made {made:%Y-%m-%d %H:%M} UTC from <code>"
        f"{escape(document['data']['store'])}</code>. The same figures are beside this page in "
        "report.json and the CSV files.</footer>"
    )


def _json(value: Any) -> str:
    """JSON that may stand inside a script element whatever the texts in it are."""
    text = dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
