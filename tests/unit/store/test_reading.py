"""``store.read``: many answers in one array equal the same answers read one by one."""

from __future__ import annotations

import multiprocessing
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.dataset import NAMED_POSITIONS
from activation_logging.dataset.positions import Place, find_rows, pool_rows
from activation_logging.errors import DatasetError, EntryNotFound, RowsMissing, StoreError
from activation_logging.records import Capture, Segment, SegmentSlice
from activation_logging.store import StoreWriter
from activation_logging.store.engine import environment
from tests.fixtures.answers import (
    HIDDEN,
    NUM_LAYERS,
    make_capture,
    make_document,
    make_segment,
    put_answer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.store import Entry

LAYERS = (2, NUM_LAYERS)
TEXTS = {
    "response": "It is Paris.",
    "response_tokens": ["It", " is", " Paris", ".", ""],
    "tags": {"answer": "Paris"},
}


def fill(writer: StoreWriter, dtype: str = "float32", count: int = 12) -> None:
    """Answers of different lengths; every third shares the rows of its beginning."""
    shared = make_segment("shared", 9, dtype=dtype, layers=LAYERS)
    for number in range(count):
        name, prompt = f"r{number}", list(range(3 + number))
        document = make_document(name, prompt=f"p{number}", prompt_ids=prompt, response_ids=[5] * 5)
        own = make_segment(name, len(prompt) + 4, dtype=dtype, layers=LAYERS)
        segments, slices = [own], None
        if number % 3 == 0:
            segments = [shared, own]
            slices = [
                SegmentSlice(shared.id, 1, 2),
                SegmentSlice(own.id, 0, 1),
                SegmentSlice(own.id, 2, len(prompt) + 1),
            ]
        writer.put_capture(make_capture(name, segments, slices, dtype=dtype, layers=LAYERS))
        writer.put_entry({**document, **TEXTS})
    writer.flush()


def one_by_one(entry: Entry, layer: int | str, position: str | int) -> np.ndarray:
    rows = find_rows(position, Place.of(entry))
    part = entry.layer(layer)[rows.start : rows.stop]
    return part[0] if rows.pool == "one" else pool_rows(part.astype(np.float32), rows.pool)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equals_one_by_one(dtype: str, store_path: Path, store_writer: StoreWriter) -> None:
    """Every layer and position, any order, keys that come twice; the second pass, too."""
    fill(store_writer, dtype)
    with open_store(store_path) as store:
        keys = list(store)
        orders = [keys, keys[::-1], keys[:1], [keys[3], keys[0], keys[3]]]
        for _ in range(2):
            for order in orders:
                entries = [store[key] for key in order]
                for layer in (*LAYERS, "last"):
                    found = store.read(order, layer=layer)
                    parts = [entry.layer(layer) for entry in entries]
                    assert found.values.dtype == parts[0].dtype
                    assert found.values.flags.writeable
                    assert np.array_equal(found.values, np.concatenate(parts))
                    assert found.offsets.dtype == np.int64
                    lengths = [len(part) for part in parts]
                    assert np.diff(found.offsets).tolist() == lengths
                    assert found.offsets[0] == 0
                    for position in (*NAMED_POSITIONS, 0, 2, -1, np.int64(-2), "-1"):
                        name = position if isinstance(position, str) else int(position)
                        name = -1 if name == "-1" else name
                        wanted = np.stack([one_by_one(entry, layer, name) for entry in entries])
                        got = store.read(order, layer=layer, position=position)
                        assert got.shape == (len(order), HIDDEN)
                        assert np.array_equal(got, wanted), (layer, position)
        assert store.readers() == []


def test_answers_stored_in_several_types(store_path: Path, store_writer: StoreWriter) -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        put_answer(store_writer, dtype, dtype=dtype)
    store_writer.flush()
    with open_store(store_path) as store:
        keys = list(store)
        parts = [store[key].activations.astype(np.float32) for key in keys]
        found = store.read(keys)
        assert found.values.dtype == np.float32
        assert np.array_equal(found.values, np.concatenate(parts))
        assert np.array_equal(store.read(keys, position=1), np.stack([part[1] for part in parts]))
        for key, dtype in zip(keys, (store[key].dtype for key in keys), strict=True):
            assert store.read([key]).values.dtype == (np.float16 if dtype == "float16" else "f4")


def test_refusals_name_the_entry(store_path: Path, store_writer: StoreWriter) -> None:
    put_answer(store_writer, "r", prompt="whole")
    store_writer.put_entry(make_document("pending", prompt="pending"))
    wide = np.zeros((4, 2 * HIDDEN), np.float32)
    segment = Segment(b"w" * 16, {NUM_LAYERS: wide}, wide.nbytes)
    slices = [SegmentSlice(segment.id, 0, 4)]
    store_writer.put_capture(
        Capture(
            "wide-internal", (NUM_LAYERS,), NUM_LAYERS, 2 * HIDDEN, "float32", 0, slices, [segment]
        )
    )
    store_writer.put_entry(make_document("wide", prompt="wide"))
    store_writer.flush()
    with open_store(store_path) as store:
        whole, pending, other = (
            store.for_prompt(text)[0].key for text in ("whole", "pending", "wide")
        )
        with pytest.raises(EntryNotFound, match="0" * 64):
            store.read([whole, "0" * 64])
        with pytest.raises(EntryNotFound, match="nonsense"):
            store.read(["nonsense"], position=0)
        with pytest.raises(RowsMissing, match=f"{pending}.*have not arrived"):
            store.read([whole, pending])
        with pytest.raises(RowsMissing, match=f"layer 2 of entry {whole}"):
            store.read([whole], layer=2)
        with pytest.raises(RowsMissing, match=f"{whole}.*4: the answer is too short"):
            store.read([whole], position=4)
        with pytest.raises(RowsMissing, match=f"{whole}.*no tag of"):
            store.read([whole], position="answer_span")
        with pytest.raises(StoreError, match=f"{whole} have {HIDDEN} .*{other} {2 * HIDDEN}"):
            store.read([whole, other])
        with pytest.raises(DatasetError, match="'first' is not one of"):
            store.read([whole], position="first")
        with pytest.raises(TypeError, match="list of keys"):
            store.read(whole)
        assert store.read([]).values.shape[0] == 0
        assert store.read([]).offsets.tolist() == [0]
        assert store.read([], position=0).shape[0] == 0
        assert store.read(iter([whole])).values.shape == (4, HIDDEN)


def test_what_changes_meanwhile_is_seen(store_path: Path) -> None:
    """Nothing that is remembered outlives a commit, a deletion, or a move of the map."""
    env = environment.acquire(store_path, create=True, map_size=1 << 20)
    writer = StoreWriter(store_path, role="test")
    fill(writer)
    store = open_store(store_path, writable=True)
    wanted = {key: store[key].activations for key in store}
    while len(wanted) > 2:
        assert np.array_equal(store.read(wanted).values, np.concatenate(list(wanted.values())))
        gone, _ = wanted.popitem()
        store.delete(gone)
        with pytest.raises(EntryNotFound, match=gone):
            store.read([*wanted, gone])
        # Into the pages that are free now, and beyond the end of the map.
        for number in range(20):
            put_answer(writer, f"{gone}{number}", prompt="new", prompt_ids=[1] * 900)
        writer.flush()
    assert env is store._environment
    assert env.map_size > 1 << 20
    writer.close()


def test_threads_read_while_the_store_changes(store_path: Path, store_writer: StoreWriter) -> None:
    fill(store_writer)
    store = open_store(store_path)
    keys = list(store)
    expected = store.read(keys).values
    wrong: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not np.array_equal(store.read(keys).values, expected):
                wrong.append(1)
            if not np.array_equal(store.read(keys, position=0), store.read(keys, position=0)):
                wrong.append(2)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(30):
        put_answer(store_writer, f"later{number}", prompt_ids=[1] * 500)
        store_writer.flush()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_a_fork(store_path: Path, store_writer: StoreWriter) -> None:
    """Whatever other threads were doing at that moment."""
    fill(store_writer)
    store = open_store(store_path)
    keys = list(store)
    expected = store.read(keys).values
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()

    def child() -> None:
        result.put(np.array_equal(store.read(keys).values, expected))

    with store._row_reader._lock:
        process = context.Process(target=child)
        process.start()
    process.join(120)
    assert process.exitcode == 0
    assert result.get()
