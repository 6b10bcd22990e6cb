"""Entries in one store and their rows in another: what each of the two says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from activation_logging import open_store
from activation_logging.errors import RowsMissing
from activation_logging.store import StoreWriter
from activation_logging.store.elsewhere import Found, about, find_captures, note
from activation_logging.store.merge import merge
from activation_logging.store.query import select
from activation_logging.store.repair import find_unmatched
from activation_logging.verify import entry_problems
from tests.fixtures.answers import make_capture, make_document, make_segment
from tests.fixtures.readers import http

ROWS_IN = "b:/data/b.lmdb"
WHAT = about(make_capture("any", []))


def capture_id(name: str) -> str:
    return str(make_document(name)["capture"])


@pytest.fixture
def writer(store_writer: StoreWriter) -> StoreWriter:
    """Two answers: the rows of ``away`` are elsewhere, those of ``late`` have not arrived."""
    for name in ("away", "late"):
        store_writer.put_entry(make_document(name, prompt=name))
    store_writer.put_capture(note(capture_id("away"), WHAT, rows_in=ROWS_IN))
    store_writer.flush()
    return store_writer


def test_the_entry_says_where_its_rows_are(writer: StoreWriter) -> None:
    with open_store(writer.path) as store:
        [entry] = store.for_prompt("away")
        assert (entry.status, next(select(store, status="elsewhere")).key) == (
            "elsewhere",
            entry.key,
        )
        assert [one.prompt for one in select(store, status="pending")] == ["late"]
        with pytest.raises(RowsMissing, match=f"the rows are in the store {ROWS_IN}"):
            _ = entry.activations
        assert list(entry_problems(entry)) == []
    assert writer.stats.captures == 0


def test_rows_take_the_place_of_a_note_and_not_the_other_way(writer: StoreWriter) -> None:
    name = "away"
    writer.put_capture(make_capture(name, [make_segment(name, 4)]))
    writer.put_capture(note(capture_id(name), WHAT, rows_in=ROWS_IN))
    writer.flush()
    with open_store(writer.path) as store:
        [entry] = store.for_prompt(name)
        assert entry.status == "complete"
        assert len(entry.activations) == 4


def test_why_the_other_store_has_none(writer: StoreWriter) -> None:
    writer.put_capture(note(capture_id("late"), WHAT, rows_in=ROWS_IN, dropped="the queue"))
    writer.flush()
    with open_store(writer.path) as store:
        [entry] = store.for_prompt("late")
        assert (entry.status, entry.status_reason) == ("dropped", "the queue")


def test_neither_half_is_unmatched(writer: StoreWriter, tmp_path: Path) -> None:
    other = StoreWriter(tmp_path / "b.lmdb", role="worker")
    whole = make_capture("away", [make_segment("away", 4)])
    other.put_capture(replace(whole, entry_in="a:/data/a.lmdb"))
    other.put_capture(make_capture("left", [make_segment("left", 4)]))
    other.close()
    writer.close()
    with open_store(writer.path) as store:
        assert [one.kind for one in find_unmatched(store)] == ["entry"]
    with open_store(other.path) as store:
        assert [one.id for one in find_unmatched(store)] == [capture_id("left")]
    names = [capture_id(name) for name in ("away", "late")]
    assert find_captures(other.path, names) == {names[0]: Found(None, None)}


def test_both_are_read_and_merged_as_one(writer: StoreWriter, tmp_path: Path) -> None:
    other = StoreWriter(tmp_path / "b.lmdb", role="worker of engine 1")
    whole = make_capture("away", [make_segment("away", 4)])
    other.put_capture(replace(whole, entry_in="a:/data/a.lmdb"))
    other.close()
    with open_store([writer.path, other.path]) as both:
        [entry] = both.for_prompt("away")
        assert entry.status == "complete"
        assert [one.prompt for one in select(both, status="complete")] == ["away"]
        assert not list(select(both, status="elsewhere"))
    for sources, status in (([writer.path], "elsewhere"), ([other.path], "complete")):
        merge(sources, tmp_path / "all.lmdb")
        with open_store(tmp_path / "all.lmdb") as store:
            assert store.for_prompt("away")[0].status == status


def test_the_routes_say_it_too(writer: StoreWriter) -> None:
    with http(writer.path) as client:
        [alone] = client.get("/v1/activations/stores").json()["data"]
        [listed] = client.get("/v1/activations", params={"status": "elsewhere"}).json()["data"]
        whole = client.get(f"/v1/activations/{listed['key']}").json()
        missing = client.get(f"/v1/activations/{listed['key']}/tensor")
    assert (alone["path"], alone["entries"]) == (str(writer.path), True)
    assert whole["rows_in"] == ROWS_IN
    assert missing.status_code == 404
    assert ROWS_IN in missing.text
