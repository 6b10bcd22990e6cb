"""The page without a browser: whole, well-formed, asking for nothing, and no text runs in it."""

from __future__ import annotations

import copy
import html
import json
from html.parser import HTMLParser

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from jinja2 import UndefinedError

from activation_logging.report import build_report
from activation_logging.report.charts import make_charts
from activation_logging.report.page import render_page
from tests.fixtures.planted import build

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='http://a.b'>x</a>"
    "</title></style>{{ 7 * 7 }}{% if %}{# #}\"'`&lt;&quot;-->\u2028\u2029"
)
VOID = {"meta", "br", "img", "input", "link", "hr"}
SECTIONS = [
    *(
        "detectors",
        "trust",
        "where",
        "curves",
        "scores",
        "map",
        "transfer-section",
        "claims",
        "answers",
        "method",
    )
]


class Page(HTMLParser):
    """Elements with their attributes, text, and scripts; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside in {"script", "style"}:
            (self.scripts if inside == "script" else self.styles).append(data)
        else:
            self.text += data

    def values(self, attribute):
        return [at[attribute] for _, at in self.elements if attribute in at]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a store in which everything that a client can send is hostile."""

    def change(i, document):
        text = f"What is thing {i}? {HOSTILE}\ud800"
        document["response_tokens"][0] = f"{HOSTILE}\ud800"
        document["response"] = "".join(document["response_tokens"])
        document["messages"] = [{"role": "user", "content": text}]
        document["prompt"] = text
        document["model"] = f"org/{HOSTILE}"

    folder = tmp_path_factory.mktemp("page")
    store = build(
        folder / "s",
        n=80,
        name=f"facts {HOSTILE}"[:80],
        change=change,
        tags_of=lambda i: {
            "entity": f"thing {i} {HOSTILE}",
            "gold": HOSTILE,
            f"kind {HOSTILE}": f"{'ab'[(i // 2) % 2]} {HOSTILE}",
        },
    )
    options = {"draws": 100, "layers": [2, 4], "transfer_by": f"kind {HOSTILE}"}
    return build_report(store, folder / "report", **options)


def test_the_page_is_well_formed_and_has_every_section(report):
    page = Page(report.page.read_text("utf-8"))
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert set(SECTIONS) <= set(ids)
    assert [link.removeprefix("#") for link in page.values("href")] == SECTIONS
    assert report.headline in page.text
    for row in report.document["detectors"]:
        assert row["title"] in page.text
    charts = json.loads(page.scripts[0])
    assert set(page.values("data-chart")) <= set(charts)
    for kind in ("histogram", "calibration"):
        assert {f"{kind}/{name}" for name in page.values("value")} <= set(charts)
    assert len([cls for cls in page.values("class") if cls == "card answer"]) == len(
        report.document["examples"]
    )


def test_the_page_asks_no_network_for_anything(report):
    page = Page(report.page.read_text("utf-8"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
    assert not {name for _, at in page.elements for name in at} & {"src", "srcset", "action"}
    assert all(link.startswith("#") for link in page.values("href"))
    assert "default-src 'none'" in " ".join(page.values("content"))
    assert not any("url(" in style or "@import" in style for style in page.styles)


def test_texts_of_clients_are_shown_and_never_markup(report):
    page = Page(report.page.read_text("utf-8"))
    assert {tag for tag, _ in page.elements if tag in {"script", "img", "a"}} == {"script", "a"}
    assert len(page.scripts) == 5
    assert not any(name.startswith("on") for _, at in page.elements for name in at)
    # The question and the first token of each answer, the model twice, and the tags.
    assert page.text.count(f"{HOSTILE}?") >= 2 * len(report.document["examples"])
    assert page.text.count(f"org/{HOSTILE}") == 2
    for example in report.document["examples"]:
        answer = "".join(token["text"] for token in example["tokens"])
        assert answer.replace("\ud800", "?") in page.text
    assert f"The tag is kind {HOSTILE};" in page.text
    assert f"expected: {HOSTILE}" in page.text


TEXT_KEYS = (
    *("counts", "grouped_by", "left_out", "dtypes", "folds", "curves", "calibration"),
    *("histograms", "detectors_left_out", "positions_left_out", "values_left_out"),
    *("learning_curves", "claims", "not_used", "to_labels"),
)
"""Where the names in a document's objects are texts, too."""
FIXED = {"role", "kind", "coloured_by", "mistake", "key"}
"""What is one of a few words, or is made of digits and the safe signs of a store's name."""


def mark_texts(value, mark, *, names=False):
    """A part of a document with ``mark`` after every text, so that texts that agree still do."""
    if isinstance(value, str):
        return value + mark
    if isinstance(value, list):
        return [mark_texts(part, mark, names=names) for part in value]
    if not isinstance(value, dict):
        return value
    marked = {}
    for name, part in value.items():
        inner = mark_texts(part, mark, names=name in TEXT_KEYS)
        if name == "histograms":
            inner = {one + mark: mark_texts(two, mark, names=True) for one, two in part.items()}
        marked[name + mark if names else name] = part if name in FIXED else inner
    return marked


def test_no_text_of_a_document_becomes_markup(report):
    """A page whose every text ends in hostile text has the elements of one that ends in x."""
    document = {
        **report.document,
        "detectors_left_out": {"one": "a reason"},
        "positions_left_out": {"another": "a reason"},
    }
    document["data"] = {**document["data"], "left_out": {"for a reason": 2}}
    document["transfer"] = {**document["transfer"], "values_left_out": {"a value": "a reason"}}
    plain = Page(render_page(mark_texts(document, "x")))
    hostile = Page(render_page(mark_texts(document, HOSTILE)))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    for (tag, expected), (_, found) in zip(plain.elements, hostile.elements, strict=True):
        shown = {name: value and value.replace(HOSTILE, "x") for name, value in found.items()}
        assert shown == expected, tag
    assert hostile.text.replace(HOSTILE, "x") == plain.text.replace(HOSTILE, "x")
    assert hostile.text.count(HOSTILE) > 100
    assert hostile.scripts[1:] == plain.scripts[1:]
    assert not set("<>\u2028\u2029") & set(hostile.scripts[0])


def test_no_text_of_a_chart_is_markup_to_plotly(report):
    document = mark_texts(report.document, HOSTILE)
    texts = list(strings(make_charts(document)))
    assert not [text for text in texts if "<script" in text or "<img" in text or "<a " in text]
    shown = [html.unescape(text) for text in texts if "alert(1)" in text]
    assert len(shown) > 100
    assert all(HOSTILE in text for text in shown)
    # Plotly decodes numeric entities and &lt; &gt; &amp;, but would show this one as it is.
    assert not [text for text in texts if "&quot;" in text]


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        # Names are not drawn.
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def test_a_name_that_the_document_lacks_is_an_error(report):
    document = copy.deepcopy(dict(report.document))
    del document["data"]["store"]
    with pytest.raises(UndefinedError, match="store"):
        render_page(document)


def names_of(chart):
    return [trace["name"] for trace in chart["data"] if trace.get("showlegend") is not False]


def test_curves_show_the_detectors_that_ask_for_it(report):
    charts = make_charts(report.document)
    names = [name.rpartition(" ")[0] for name in names_of(charts["roc"])]
    assert names == [
        *("Linear probe", "SAPLMA network", "Linear probe and log-probability, stacked"),
        *("Mean log-probability", "Minimum log-probability"),
        *("Text only", "Length of the answer"),
    ]
    *_, text, signal, length = names_of(charts["layers"])
    assert (text, signal, length) == (
        *("Text only", "Mean log-probability"),
        "Length of the answer",
    )
    document = copy.deepcopy(dict(report.document))
    for row in document["detectors"]:
        row["in_curves"] = row["name"] in {"mass_mean", "prompt_only"}
    charts = make_charts(document)
    assert [name.rpartition(" ")[0] for name in names_of(charts["roc"])] == [
        "Mass-mean probe",
        "Prompt only",
    ]
    assert names_of(charts["precision-recall"])[0].startswith("Mass-mean probe ")
