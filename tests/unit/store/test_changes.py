"""The list of changes: what has followed a store learns of all that it has to read again."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging import Derived, open_store
from activation_logging.store.index import CHANGED, Change, Index
from activation_logging.store.upgrade import upgrade
from tests.fixtures.answers import put_answer


def changed(store, after=None, limit=100):
    return Index(store.snapshot()).changes(after, limit)


@pytest.fixture
def store(store_path, store_writer):
    for name in "abc":
        put_answer(store_writer, name, prompt=f"prompt {name}")
    store_writer.flush()
    with open_store(store_path, writable=True) as opened:
        yield opened


def test_each_entry_of_a_commit_is_listed_once(store):
    found = changed(store)
    assert sorted(one.sequence for one in found) == [0, 1, 2]
    assert [one.number for one in found] == sorted({one.number for one in found})


def test_nothing_has_changed_after_the_last(store):
    last = Index(store.snapshot()).last_change()
    assert last == changed(store)[-1]
    assert changed(store, last) == []


@pytest.mark.parametrize("what", ["label", "no label", "array", "delete"])
def test_whatever_changes_an_entry_is_listed(store, what):
    entry = next(store.entries())
    store.put_evaluation(entry.key, name="judge", label="correct")
    last = Index(store.snapshot()).last_change()
    if what == "label":
        store.put_evaluation(entry.key, name="judge", label="refused")
    elif what == "no label":
        assert store.delete_evaluation(entry.key, "judge")
    elif what == "array":
        store.put_derived([Derived(entry.key, "score/p", np.ones(4, np.float32))])
    else:
        store.delete(entry.key)
    assert [one.sequence for one in changed(store, last)] == [entry.sequence]


def test_rows_that_come_later_change_their_entry(store_path, store_writer, store):
    from tests.fixtures.answers import make_capture, make_document, make_segment

    store_writer.put_entry(make_document("late", prompt="late"))
    store_writer.flush()
    last = Index(store.snapshot()).last_change()
    store_writer.put_capture(make_capture("late", [make_segment("late", 4)]))
    store_writer.flush()
    assert [one.sequence for one in changed(store, last)] == [3]
    assert store.for_prompt("late")[0].status == "complete"


def test_a_label_that_is_not_there_changes_nothing(store):
    last = Index(store.snapshot()).last_change()
    assert not store.delete_evaluation(next(iter(store)), "nobody")
    assert Index(store.snapshot()).last_change() == last


def test_a_removed_label_leaves_the_index(store):
    key = next(iter(store))
    store.put_evaluation(key, name="judge", label="correct")
    store.delete_evaluation(key, "judge")
    assert store[key].evaluations == {}
    assert Index(store.snapshot()).terms("label") == []
    assert Index(store.snapshot()).terms("judge") == []


def test_numbers_rise_when_the_clock_is_set_back(store, monkeypatch):
    last = Index(store.snapshot()).last_change()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    store.put_evaluation(next(iter(store)), name="judge", label="correct")
    (after,) = changed(store, last)
    assert after.number == last.number + 1


def test_a_change_of_another_store_is_not_known(store):
    assert changed(store, Change(1, 2)) is None


def test_a_rebuilt_index_is_another(store):
    last = Index(store.snapshot()).last_change()
    path = store.path
    store.close()
    upgrade(path, rebuild=True)
    with open_store(path) as reopened:
        assert changed(reopened, last) is None
        assert len(changed(reopened)) == 3


def test_a_list_is_read_in_parts(store):
    first = changed(store, limit=2)
    assert len(first) == 2
    assert first + changed(store, first[-1], limit=2) == changed(store)


def label_all(store, times):
    for i in range(times):
        for key in list(store):
            store.put_evaluation(key, name="judge", label=("correct", "refused")[i % 2])


@pytest.fixture
def short_list(monkeypatch):
    """A list of ten changes, from which five are removed together."""
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 10)
    monkeypatch.setattr("activation_logging.store.indexing.PER_FORGETTING", 5)


def test_the_list_does_not_grow_for_ever(store, short_list):
    first = changed(store)
    label_all(store, 30)
    listed = Index(store.snapshot()).count(CHANGED)
    assert 10 <= listed <= 10 + 5
    # Who has seen none of them, or has seen what was removed, has to read all again.
    assert changed(store) is None
    assert changed(store, first[-1]) is None


def test_who_is_not_far_behind_misses_nothing(store, short_list):
    label_all(store, 30)
    last = Index(store.snapshot()).last_change()
    key = next(iter(store))
    for i in range(9):
        store.put_evaluation(key, name="judge", label=("refused", "correct")[i % 2])
    found = changed(store, last)
    assert [one.sequence for one in found] == [store[key].sequence] * 9
    assert Index(store.snapshot()).last_change() == found[-1]


def test_a_list_that_has_become_too_long_is_cut_step_by_step(store, short_list, monkeypatch):
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 1000)
    label_all(store, 60)
    assert Index(store.snapshot()).count(CHANGED) > 180
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 10)
    label_all(store, 2)
    assert Index(store.snapshot()).count(CHANGED) <= 15
    assert changed(store) is None


def test_as_many_changes_as_entries_are_kept(store, store_writer, short_list, monkeypatch):
    monkeypatch.setattr("activation_logging.store.indexing.MOST_CHANGES", 0)
    for i in range(40):
        put_answer(store_writer, f"more {i}", prompt=f"more {i}")
    store_writer.flush()
    label_all(store, 3)
    assert len(store) <= Index(store.snapshot()).count(CHANGED) <= len(store) + 5
