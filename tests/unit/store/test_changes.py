"""The list of changes: what has followed a store learns of all that it has to read again."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging import Derived, open_store
from activation_logging.store.index import Change, Index
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
