"""Lists, pages and counts are what a walk through the whole store gives."""

from __future__ import annotations

from collections import Counter
from urllib.parse import parse_qsl

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import ViewError
from activation_logging.store.query import select
from activation_logging.view.finding import Search, find, matching_slots
from activation_logging.view.index import SearchIndex
from tests.unit.view.conftest import HOSTILE, NUMBER


@pytest.fixture
def index(path):
    with open_store(path) as store:
        made = SearchIndex(store)
        made.build()
        yield made


def keys(index, search, **options):
    return index.keys(find(index, search, **options).slots)


CONDITIONS = [
    ({}, {}),
    ({"model": ("org/model",)}, {"model": "org/model"}),
    ({"model": (HOSTILE,)}, {"model": HOSTILE}),
    ({"status": ("complete",)}, {"status": "complete"}),
    ({"status": ("failed",)}, {"status": "failed"}),
    ({"label": ("rules=correct",)}, {"label": "rules=correct"}),
    ({"label": ("absent=correct",)}, {"label": "absent=correct"}),
    ({"tag": ("dataset=even",)}, {"tags": {"dataset": "even"}}),
    ({"tag": (f"sample={HOSTILE}",)}, {"tags": {"sample": HOSTILE}}),
    ({"since": "2023-11-14T22:13:25+00:00"}, {"since": 1_700_000_005.0}),
    ({"until": "2023-11-14T22:13:25+00:00"}, {"until": 1_700_000_005.0}),
    (
        {"tag": ("dataset=odd",), "label": ("rules=refused",), "model": ("org/model",)},
        {"tags": {"dataset": "odd"}, "label": "rules=refused", "model": "org/model"},
    ),
]


@pytest.mark.parametrize(("asked", "same"), CONDITIONS)
def test_conditions_are_those_of_select(index, asked, same):
    expected = [entry.key for entry in select(index.store, **same)]
    assert keys(index, Search(**asked)) == expected
    assert keys(index, Search(**asked, sort="oldest")) == expected[::-1]
    assert find(index, Search(**asked)).total == len(expected)


def test_values_of_one_name_are_alternatives(index):
    both = find(index, Search(label=("rules=correct", "rules=refused")))
    assert both.total == sum(
        e.evaluations["rules"].label != "hallucinated" for e in index.store.entries()
    )
    assert find(index, Search(label=("rules=correct", "model=hallucinated"))).total == 0


def test_unlabelled_is_a_label(index):
    without = keys(index, Search(label=("model=unlabelled",)))
    assert without == [e.key for e in select(index.store) if "model" not in e.evaluations]
    assert len(without) == 6


def test_by_score(index):
    best = {e.key: float(np.nanmax(e.scores["made_up"])) for e in index.store.entries()}
    falling = sorted(best, key=best.get, reverse=True)
    assert keys(index, Search(score="score/made_up", sort="highest")) == falling
    assert keys(index, Search(score="score/made_up", sort="lowest")) == falling[::-1]
    found = find(index, Search(score="score/made_up", sort="highest", low="0.3", high="0.6"))
    assert index.keys(found.slots) == [k for k in falling if 0.3 <= best[k] <= 0.6]
    assert found.numbers == pytest.approx([best[k] for k in falling if 0.3 <= best[k] <= 0.6])


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("sort", ["newest", "oldest", "highest", "lowest"])
@pytest.mark.parametrize("score", ["score/made_up", "judged/rules"])
def test_pages_hold_every_answer_once(index, size, sort, score):
    search = Search(sort=sort, score=score)
    whole = find(index, search, size=100).slots
    assert len(whole) == NUMBER
    paged, after = [], ""
    while after is not None:
        page = find(index, Search(sort=sort, score=score, after=after), size=size)
        assert page.total == NUMBER
        paged += page.slots
        after = page.next
    assert paged == whole


def test_pages_of_equal_values_hold_every_answer_once(index):
    with index.reading() as columns:
        columns["created"][:] = 5.0
    paged, after = [], ""
    while after is not None:
        page = find(index, Search(after=after), size=5)
        paged += page.slots
        after = page.next
    assert paged == list(range(NUMBER))[::-1]


def test_a_later_answer_moves_no_page(path, index):
    from activation_logging.store import StoreWriter
    from tests.fixtures.answers import put_answer

    first = find(index, Search(), size=5)
    second = find(index, Search(after=first.next), size=5)
    writer = StoreWriter(path, role="test")
    put_answer(writer, "later", prompt="later", created=1_800_000_000.0)
    writer.close()
    index.keep_up()
    assert find(index, Search(after=first.next), size=5).slots == second.slots
    assert find(index, Search(), size=5).slots[1:] == first.slots[:4]


@pytest.mark.parametrize("asked", [asked for asked, _ in CONDITIONS])
def test_counts_are_those_of_the_answers(index, asked):
    """Each facet counts the answers that meet the conditions on all other things."""
    found = find(index, Search(**asked))
    for facet in found.facets:
        name = facet.title.partition(": ")[2]
        others = {
            field: tuple(v for v in values if not v.startswith(f"{name}="))
            if name
            else ()
            if field == facet.name
            else values
            for field, values in asked.items()
            if not isinstance(values, str)
        } | {field: value for field, value in asked.items() if isinstance(value, str)}
        if facet.name in others and not name:
            others[facet.name] = ()
        entries = [index.entry(slot) for slot in find(index, Search(**others), size=100).slots]
        expected = Counter(value_of(entry, facet.name, name) for entry in entries)
        expected.pop(None, None)
        assert {v.text: v.answers for v in facet.values if v.answers} == expected, facet.title


def test_who_has_labelled_none_of_them_is_no_facet(index):
    def titles(**asked):
        return {facet.title for facet in find(index, Search(**asked)).facets}

    assert "label: model" in titles()
    assert "label: model" not in titles(q="11")
    assert "label: rules" in titles(q="11")
    assert "label: model" in titles(q="11", label=("model=unlabelled",))


def value_of(entry, kind, name):
    if kind == "label":
        return entry.evaluations[name].label if name in entry.evaluations else "unlabelled"
    return entry.tags.get(name) if kind == "tag" else getattr(entry, kind)


@pytest.mark.parametrize(
    "query",
    [
        "status=none", "label=correct", "label=rules%3Dwrong", "tag=nothing", "since=yesterday",
        "score=score%2Fabsent&sort=highest", "score=score%2Fmade_up&low=x", "sort=random",
        "after=x", "score=created&sort=highest", "score=label%2Frules&low=1",
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(index, query):
    with pytest.raises(ViewError):
        find(index, Search.of(parse_qsl(query)))


def test_a_search_is_its_link():
    search = Search.of(
        [("q", "a b"), ("label", "x=correct"), ("label", "y=refused"), ("tag", f"t={HOSTILE}"),
         ("unknown", "1"), ("score", "score/p"), ("low", ""), ("after", "1:2")]
    )  # fmt: skip
    assert Search.of(parse_qsl(search.link(after="1:2"))) == search
    assert "after" not in search.link()
    without = Search.of(parse_qsl(search.toggled("label", "x=correct")))
    assert without.label == ("y=refused",)
    assert Search.of(parse_qsl(without.toggled("label", "x=correct"))).label == (
        "y=refused",
        "x=correct",
    )


def test_a_search_with_words_and_conditions(index):
    search = Search(q="answer:number", label=("rules=correct",), tag=("dataset=even",))
    expected = [e.key for e in select(index.store, label="rules=correct", tags={"dataset": "even"})]
    assert keys(index, search) == expected
    assert index.keys(matching_slots(index, search).tolist()) == expected[::-1]


def test_more_words_than_are_looked_at(index, monkeypatch):
    monkeypatch.setattr("activation_logging.view.index.MOST_FOUND", 5)
    monkeypatch.setattr("activation_logging.view.finding.MOST_FOUND", 5)
    found = find(index, Search(q="number"))
    assert found.cut
    assert found.slots == list(range(NUMBER))[::-1][:5]
