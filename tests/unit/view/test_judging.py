"""Labels by hand: the queue, taking back, names that are taken, and agreement."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging import Span
from activation_logging.errors import EntryNotFound, LabelError, ViewError
from activation_logging.view.finding import Search
from activation_logging.view.judging import agreement, give, next_answer, take_back
from tests.unit.view.conftest import NUMBER


def queue(index, order, by="ada", **options):
    """Every answer of a queue, as skipping leads through it."""
    search = options.pop("search", Search())
    found, after = [], ""
    while True:
        one = next_answer(index, search, by=by, order=order, after=after, **options)
        if one.slot is None:
            return found
        found.append(index.entry(one.slot))
        after = one.after


def test_the_newest_come_first(store, index):
    assert [e.key for e in queue(index, "newest")] == [
        e.key for e in store.entries(newest_first=True)
    ]


def test_what_one_has_labelled_is_not_asked_again(store, index):
    first = queue(index, "newest")[0]
    give(index, store, first.key, by="ada", label="correct")
    assert first.key not in {e.key for e in queue(index, "newest")}
    assert first.key in {e.key for e in queue(index, "newest", by="bob")}


def test_unlabelled_answers_come_first(store, index):
    entries = list(store.entries())
    for name in ("rules", "model"):
        store.delete_evaluation(entries[3].key, name)
    index.keep_up()
    found = queue(index, "unlabelled")
    assert found[0].key == entries[3].key
    assert len(found) == NUMBER


def test_only_what_others_disagree_about(store, index):
    disputed = {
        e.key for e in store.entries() if len({one.label for one in e.evaluations.values()}) > 1
    }
    assert len(disputed) == 2
    assert {e.key for e in queue(index, "disagreement")} == disputed


def test_near_a_threshold(store, index):
    found = queue(index, "threshold", threshold=0.5, search=Search(score="score/made_up"))
    far = [abs(float(np.nanmax(e.scores["made_up"])) - 0.5) for e in found]
    assert far == sorted(far)
    assert len(far) == NUMBER


def test_a_queue_may_be_narrowed_down(store, index):
    found = queue(index, "newest", search=Search(tag=("dataset=odd",)))
    assert len(found) == NUMBER // 2
    assert {e.tags["dataset"] for e in found} == {"odd"}


def test_an_order_without_its_score_is_refused(index):
    with pytest.raises(ViewError, match="choose a score"):
        next_answer(index, Search(), by="ada", order="threshold")
    with pytest.raises(ViewError, match="not one of"):
        next_answer(index, Search(), by="ada", order="random")


def test_labels_are_taken_back_one_by_one(store, index):
    keys = [e.key for e in store.entries()][:2]
    span = Span(0, 2, "supported")
    give(index, store, keys[0], by="ada", label="correct")
    give(index, store, keys[0], by="ada", label="refused", spans=[span])
    give(index, store, keys[1], by="ada", label="invalid")
    give(index, store, keys[1], by="bob", label="correct")
    before = dict(store[keys[0]].evaluations)
    assert take_back(index, store, "ada") == keys[1]
    assert "ada" not in store[keys[1]].evaluations
    assert store[keys[1]].evaluations["bob"].label == "correct"
    assert before["ada"].spans == (span,)
    assert take_back(index, store, "ada") == keys[0]
    assert (store[keys[0]].evaluations["ada"].label, store[keys[0]].evaluations["ada"].spans) == (
        "correct",
        (),
    )
    assert take_back(index, store, "ada") == keys[0]
    assert "ada" not in store[keys[0]].evaluations
    with pytest.raises(ViewError, match="nothing that could be taken back"):
        take_back(index, store, "ada")


def test_what_was_deleted_cannot_be_taken_back(store, index):
    key = next(iter(store))
    give(index, store, key, by="ada", label="correct")
    store.delete(key)
    with pytest.raises(EntryNotFound, match="deleted since"):
        take_back(index, store, "ada")


def test_a_new_label_keeps_the_spans(store, index):
    key = next(iter(store))
    give(index, store, key, by="ada", label="correct", spans=[Span(0, 2, "supported")])
    give(index, store, key, by="ada", label="refused")
    assert len(store[key].evaluations["ada"].spans) == 1
    give(index, store, key, by="ada", label="refused", spans=[])
    assert store[key].evaluations["ada"].spans == ()


@pytest.mark.parametrize("by", ["rules", "model"])
def test_the_name_of_another_judge_is_refused(store, index, by):
    key = next(iter(store))
    before = store[key].evaluations
    with pytest.raises(ViewError, match="choose another name"):
        give(index, store, key, by=by, label="correct")
    assert store[key].evaluations == before


@pytest.mark.parametrize("by", ["", "x" * 200, "a\0b"])
def test_a_name_that_cannot_be(store, index, by):
    with pytest.raises(LabelError):
        give(index, store, next(iter(store)), by=by, label="correct")


def test_kappa_is_that_of_scikit_learn(store, index):
    metrics = pytest.importorskip("sklearn.metrics", reason="the extra 'detect' is not installed")
    with index.reading() as columns:
        found = agreement(columns, "rules", "model")
    pairs = [
        (e.evaluations["rules"].label, e.evaluations["model"].label)
        for e in store.entries()
        if "model" in e.evaluations
    ]
    first, second = zip(*pairs, strict=True)
    assert found.answers == len(pairs) == 6
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(first, second))
    assert found.agreed == pytest.approx(np.mean([a == b for a, b in pairs]))
    table = metrics.confusion_matrix(first, second, labels=list(found.labels))
    np.testing.assert_array_equal(found.table, table)


def test_kappa_is_unknown_where_chance_agrees_always(store, index):
    for key in store:
        for by in ("ada", "bob"):
            give(index, store, key, by=by, label="correct")
    with index.reading() as columns:
        found = agreement(columns, "ada", "bob")
        assert (found.agreed, found.kappa) == (1.0, None)
        assert agreement(columns, "ada", "nobody") is None
