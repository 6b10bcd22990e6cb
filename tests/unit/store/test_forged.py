"""Records that this package has not written are named as damage, by what reads and what writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activation_logging import Store, open_store
from activation_logging.errors import StoreCorrupt
from activation_logging.store import StoreWriter, layout
from activation_logging.store.repair import check_segments
from activation_logging.store.statistics import statistics
from activation_logging.store_metrics import counters, metrics
from tests.fixtures.answers import put_answer

KEY = layout.prompt_key("Hello, world!")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = StoreWriter(tmp_path / "s", role="test")
    put_answer(writer, "r")
    writer.close()
    with open_store(tmp_path / "s", writable=True) as store:
        store.put_evaluation(KEY, name="e", label="correct", judge="j")
    return tmp_path / "s"


def put(path: Path, database: bytes, key: bytes, value: bytes) -> None:
    with open_store(path, writable=True) as store, store.environment.write() as txn:
        txn.put(key, value, db=store.environment.database(database))


def change(path: Path, database: bytes, key: bytes | None = None, **fields: Any) -> None:
    """Give a record other fields, or take those away that are ``...``."""
    with open_store(path) as store:
        found, raw = next(iter(store.walk(database))) if key is None else (key, b"")
        raw = raw or bytes(store.snapshot().get(database, found) or b"")
    record = {**json.loads(raw), **fields}
    kept = {name: value for name, value in record.items() if value is not ...}
    put(path, database, found, json.dumps(kept, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [("sequence", 10**20 - 1), ("rows", 10**17), ("num_prompt", 10**17), ("created", 9e99)],
)
def test_numbers_in_the_head_of_an_entry(path: Path, field: str, value: Any) -> None:
    change(path, layout.MAIN, KEY.encode(), **{field: value})
    with open_store(path) as store:
        try:
            entry = store[KEY]
            assert entry.num_tokens == (3, 2)
            assert entry.num_rows_expected == 4
            assert entry.document
        except StoreCorrupt as error:
            assert f"entry {KEY} is invalid" in str(error)  # noqa: PT017 - or it is right


@pytest.mark.parametrize(
    "written",
    ["model [1]", "model []", "label []", 'label ["a"]', 'judge ["a",[2]]', "span {}", "label [["],
)
def test_terms_of_the_index(path: Path, written: str) -> None:
    put(path, layout.INDEX, written.replace(" ", "\0").encode(), layout.place(1.0, 0))
    with open_store(path) as store, pytest.raises(StoreCorrupt, match="invalid term"):
        statistics(store)


def test_a_reference_count_without_end(path: Path) -> None:
    with open_store(path) as store:
        ((segment, _),) = store.walk(layout.SEGMENTS)
    put(path, layout.SEGMENTS, segment, b"9" * 5000)
    with open_store(path) as store:
        assert [found.counted for found in check_segments(store).miscounts] == [-1]


def test_a_key_that_begins_like_an_entrys(path: Path) -> None:
    put(path, layout.MAIN, KEY.encode() + b"\xff", b"x")
    with open_store(path) as store:
        assert [entry.key for entry in store.for_prompt("Hello, world!")] == [KEY]


def delete(store: Store) -> None:
    """Delete the entry, whose rows are made to be the writer's, as a server's are."""
    ((writer, _),) = store.walk(layout.WRITERS)
    ((name, raw),) = store.walk(layout.CAPTURES)
    record = json.loads(raw)
    record["slices"][0][0] = writer.decode() + "00000000"
    with store.environment.write() as txn:
        txn.put(name, layout.dump(record), db=store.environment.database(layout.CAPTURES))
    store.delete(KEY)


@pytest.mark.parametrize("use", [counters, delete, lambda store: metrics(str(store.path))])
@pytest.mark.parametrize(
    "fields", [{"entries": []}, {"host": ...}, {"pid": "1"}, {"queue_bytes_max": "x"}]
)
def test_a_writers_record(path: Path, use: Callable[[Store], Any], fields: Any) -> None:
    change(path, layout.WRITERS, stopped=..., **fields)
    with open_store(path, writable=True) as store, pytest.raises(StoreCorrupt, match="writer"):
        use(store)


def test_counters_that_a_writer_lacks(path: Path) -> None:
    change(path, layout.WRITERS, queue_bytes_max=..., lost=...)
    with open_store(path) as store:
        totals = counters(store)["totals"]
    assert (totals["queue_bytes_max"], totals["lost"], totals["entries"]) == (0, 0, 1)
    assert b"activation_logging_queue_bytes_max" in metrics(str(path))


@pytest.mark.parametrize("fields", [{"judge": [1, 2]}, {"label": {}}, {"label": ...}, {"spans": 3}])
def test_a_label_that_is_replaced_or_deleted(path: Path, fields: Any) -> None:
    place = layout.beside_key(KEY, "e")
    change(path, layout.EVALUATIONS, place, **fields)
    with open_store(path, writable=True) as store:
        store.put_evaluation(KEY, name="e", label="refused")
        assert store[KEY].evaluations["e"].label == "refused"
    change(path, layout.EVALUATIONS, place, **fields)
    with open_store(path, writable=True) as store:
        assert store.delete_evaluation(KEY, "e")
        assert store[KEY].evaluations == {}
