"""What an entry gives back: any text, any type, rows from several segments, arrays of one's own."""

from __future__ import annotations

import gc
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import EntryNotFound, RowsMissing, StoreCorrupt, StoreReadOnly
from activation_logging.records import SegmentSlice
from activation_logging.store import layout
from tests.fixtures.answers import (
    HIDDEN,
    NUM_LAYERS,
    make_capture,
    make_document,
    make_rows,
    make_segment,
    put_answer,
    segment_id,
)

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.store import StoreWriter

NASTY = {
    "nul": "a\0b\0",
    "emoji": "👩‍🚀 says 🦄",
    "surrogate": "broken \ud83d half",
    "control": "\x1b[31mred\x07\r\n\u202eright to left",
    "empty": "",
    "long": "x" * 100_000,
}


@pytest.mark.parametrize("name", NASTY)
def test_any_text_comes_back(name: str, store_path: Path, store_writer: StoreWriter) -> None:
    text = NASTY[name]
    messages = [{"role": "user", "content": text}]
    put_answer(store_writer, "r", prompt=text, messages=messages, tags={text[:99]: text[:99]})
    store_writer.flush()
    with open_store(store_path) as store:
        (entry,) = store.for_prompt(text)
        assert entry.prompt == text
        assert entry.messages == messages
        assert entry.tags == {text[:99]: text[:99]}
        assert entry.key == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        assert entry.status == "complete"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_bit_pattern_survives(
    dtype: str, store_path: Path, store_writer: StoreWriter
) -> None:
    """All 65,536 patterns of the two-byte types, infinities and NaN included."""
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(-1, HIDDEN)
    block = {
        "float32": (patterns.astype(np.uint32) << 16).view(np.float32),
        "float16": patterns.view(np.float16),
        "bfloat16": patterns,
    }[dtype]
    segment = make_segment("r", len(block), dtype=dtype)
    segment.rows[NUM_LAYERS][:] = block
    store_writer.put_capture(make_capture("r", [segment], dtype=dtype))
    store_writer.put_entry(make_document("r", prompt_ids=[1] * len(block), response_ids=[2]))
    store_writer.flush()
    with open_store(store_path) as store:
        (entry,) = store.entries()
        assert entry.stored("last").tobytes() == block.tobytes()
        if dtype == "bfloat16":
            wide = (patterns.astype(np.uint32) << 16).view(np.float32)
            assert entry.layer("last").tobytes() == wide.tobytes()


def test_rows_in_several_segments(store_path: Path, store_writer: StoreWriter) -> None:
    """Rows 2 to 4 of one segment, then 0 and 1 of another, in every layer."""
    layers = (1, NUM_LAYERS)
    one, two = (make_segment(name, 5, layers=layers) for name in ("one", "two"))
    slices = [SegmentSlice(one.id, 2, 3), SegmentSlice(two.id, 0, 2)]
    store_writer.put_capture(make_capture("r", [one, two], slices, layers=layers))
    store_writer.put_entry(make_document("r", prompt_ids=[1, 2, 3, 4], response_ids=[5, 6]))
    store_writer.flush()
    with open_store(store_path) as store:
        (entry,) = store.entries()
        for layer in layers:
            made = [make_rows("one", layer, 5)[2:], make_rows("two", layer, 5)[:2]]
            assert np.array_equal(entry.layer(layer), np.concatenate(made))
        assert np.array_equal(entry.response_activations, entry.activations[3:5])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_are_the_callers_own(
    dtype: str, store_path: Path, store_writer: StoreWriter
) -> None:
    """Written in place they change no store, and they outlive everything."""
    put_answer(store_writer, "r", dtype=dtype, prompt_ids=[1] * 400)
    store_writer.flush()
    store = open_store(store_path, writable=True)
    (entry,) = store.entries()
    arrays = [
        entry.activations,
        entry.layer(NUM_LAYERS),
        entry.rows("last", 5, 9),
        entry.stored("last"),
        entry.response_activations,
        store.read([entry.key]).values,
        store.read([entry.key], position="response_last"),
    ]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array[...] += 1
        array[...] = 0
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.from_numpy(entry.activations).mul_(2)
    assert np.array_equal(entry.activations, before[0])
    kept = entry.activations
    store.delete(entry.key)
    assert store.readers() == []
    store.close()
    del store, entry
    gc.collect()
    for number in range(20):
        put_answer(store_writer, f"later {number}", prompt_ids=[1] * 400, layers=(0, NUM_LAYERS))
        store_writer.flush()
    assert np.array_equal(kept, before[0])


def test_a_part_of_the_rows(store_path: Path, store_writer: StoreWriter) -> None:
    """As a slice of the whole, over the end of a segment, too."""
    one, two = (make_segment(name, 5) for name in ("one", "two"))
    slices = [SegmentSlice(one.id, 2, 3), SegmentSlice(two.id, 0, 2)]
    store_writer.put_capture(make_capture("r", [one, two], slices))
    store_writer.put_entry(make_document("r", prompt_ids=[1, 2, 3, 4], response_ids=[5, 6]))
    store_writer.flush()
    with open_store(store_path) as store:
        (entry,) = store.entries()
        whole = entry.activations
        for start in (-9, -2, 0, 1, 3, 5, 9):
            for stop in (-9, -2, 0, 2, 4, 5, 9):
                assert np.array_equal(entry.rows("last", start, stop), whole[start:stop])


def test_many_arrays_at_once(store_path: Path, store_writer: StoreWriter) -> None:
    """More arrays than LMDB has places for readers, while the store changes under them."""
    for number in range(2500):
        put_answer(store_writer, f"r{number}")
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        kept = {}
        for number, entry in enumerate(store.entries()):
            kept[entry.request_id] = entry.activations
            if number % 100 == 0:
                store.put_evaluation(entry.key, name="n", label="correct")
        assert len(kept) == 2500
        for name, array in kept.items():
            assert np.array_equal(array, make_rows(name, NUM_LAYERS, 4))


HIDES = '"prompt_token_ids":[1],"response_token_ids":[1]'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt_ids": [], "response_ids": []},
        {"prompt": HIDES, "messages": [{"role": HIDES, "content": "]}\\"}]},
        {"messages": [{"prompt_token_ids": [1], "response_token_ids": [1]}]},
        {"messages": [{"content": [{"image": {"url": ["a", {"b": [[1]]}]}}]}, 1.5e-7, None, "{"]},
        {"first": {"prompt_token_ids": [1], "response_token_ids": [1]}},
    ],
)
def test_the_head_is_read_without_parsing(fields: dict[str, Any]) -> None:
    """Whatever else is in a record, whatever order it came in, or if it pretends to be a head."""
    document = make_document("r", **fields)
    forged = {"rows": 7, "num_prompt": 7, "num_response": 7, "sequence": 7}
    for record in (document, fields | document, document | fields, document | forged):
        written = layout.with_head(record, 5)
        assert layout.read_head(layout.dump(written)) == layout.head_of(written)
        ids = record["prompt_token_ids"], record["response_token_ids"]
        assert layout.head_of(written).lengths == (len(ids[0]), len(ids[1]))
    # What is cut off takes no time to be refused.
    long = layout.dump({"prompt": "x\\" * 100_000, "messages": [["y"] * 1000] * 20})
    assert layout.read_head(long[:-1]) is None


def test_response_only_and_prompt_only(store_path: Path, store_writer: StoreWriter) -> None:
    for tokens, count, first in (("response", 2, 2), ("prompt", 3, 0)):
        segment = make_segment(tokens, count)
        store_writer.put_capture(make_capture(tokens, [segment], first=first))
        store_writer.put_entry(make_document(tokens, tokens=tokens))
    store_writer.flush()
    with open_store(store_path) as store:
        (response,) = store.for_request("response")
        (prompt,) = store.for_request("prompt")
        assert response.status == prompt.status == "complete"
        assert response.positions.tolist() == [2, 3]
        assert np.array_equal(response.response_activations, response.activations)
        assert prompt.positions.tolist() == [0, 1, 2]
        with pytest.raises(RowsMissing, match="positions 0 to 2"):
            _ = prompt.response_activations


def test_choices_come_in_order(store_path: Path, store_writer: StoreWriter) -> None:
    """Choices finish in any order; a request id may even equal another's capture."""
    for choice in (2, 0, 1):
        put_answer(store_writer, "shared", choice=choice, capture=f"shared-{choice}")
    put_answer(store_writer, "other", capture="shared")
    store_writer.flush()
    with open_store(store_path) as store:
        assert [entry.choice for entry in store.for_request("shared")] == [0, 1, 2]
        assert store.for_request("nobody") == []


def test_deleting_leaves_no_rows_behind(store_path: Path, store_writer: StoreWriter) -> None:
    """Ten times the same answers, written and deleted: the file does not grow tenfold."""
    sizes = []
    for turn in range(10):
        for number in range(20):
            put_answer(store_writer, f"r{turn}-{number}", prompt_ids=[1] * 500)
        store_writer.flush()
        with open_store(store_path, writable=True) as store:
            for key in list(store):
                store.delete(key)
            assert len(store) == 0
            assert store.orphans() == []
            assert list(store.entries()) == []
        sizes.append((store_path / "data.mdb").stat().st_size)
    assert sizes[-1] < 3 * sizes[0]


def test_a_capture_of_deleted_rows_says_so(store_path: Path, store_writer: StoreWriter) -> None:
    """The worker may still refer to a prompt whose entry a user has deleted meanwhile."""
    put_answer(store_writer, "first")
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        store.delete(next(iter(store)))
        own = make_segment("own", 1)
        slices = [SegmentSlice(segment_id("first"), 0, 3), SegmentSlice(own.id, 0, 1)]
        store_writer.put_capture(make_capture("second", [own], slices))
        store_writer.put_entry(make_document("second"))
        store_writer.flush()
        (entry,) = store.entries()
        assert entry.status == "dropped"
        assert "no longer there" in (entry.status_reason or "")
        with pytest.raises(RowsMissing):
            _ = entry.activations


def test_a_capture_id_given_twice(store_path: Path, store_writer: StoreWriter) -> None:
    """The later one counts, and the rows of the earlier are freed."""
    store_writer.put_capture(make_capture("r", [make_segment("old", 2)]))
    put_answer(store_writer, "r")
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        (entry,) = store.entries()
        assert entry.activations.shape == (4, HIDDEN)
        store.delete(entry.key)
        assert store.snapshot().count(b"~rows") == 0
        assert store.snapshot().count(b"~segments") == 0


def test_a_segment_id_that_begins_like_another(store_path: Path, store_writer: StoreWriter) -> None:
    for name in (b"ab", b"abcd"):
        segment = make_segment("x", 4)
        segment = type(segment)(name, segment.rows, segment.nbytes)
        store_writer.put_capture(make_capture(name.decode(), [segment]))
        store_writer.put_entry(make_document(name.decode(), prompt=name.decode()))
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        store.delete(store.for_prompt("ab")[0].key)
        (entry,) = store.entries()
        assert np.array_equal(entry.activations, make_rows("x", NUM_LAYERS, 4))


def test_slices_beyond_their_segment_are_found_out(
    store_path: Path, store_writer: StoreWriter
) -> None:
    segment = make_segment("r", 3)
    slices = [SegmentSlice(segment.id, 0, 4)]
    store_writer.put_capture(make_capture("r", [segment], slices))
    store_writer.put_entry(make_document("r"))
    store_writer.flush()
    with open_store(store_path) as store:
        (entry,) = store.entries()
        with pytest.raises(StoreCorrupt, match="length"):
            _ = entry.activations


def test_iterating_while_the_store_changes(store_path: Path, store_writer: StoreWriter) -> None:
    for number in range(700):
        put_answer(store_writer, f"r{number}", prompt=f"p{number}")
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        seen = []
        for entry in store.entries():
            seen.append(entry.prompt)
            store.delete(entry.key)
        assert seen == [f"p{number}" for number in range(700)]
        assert len(store) == 0
        put_answer(store_writer, "r", prompt="again")
        store_writer.flush()
        assert [entry.prompt for entry in store.entries(newest_first=True)] == ["again"]


def test_orders(store_path: Path, store_writer: StoreWriter) -> None:
    for number in range(600):
        put_answer(store_writer, f"r{number}", prompt=f"p{number}")
    store_writer.flush()
    with open_store(store_path) as store:
        written = [entry.prompt for entry in store.entries()]
        assert written == [f"p{number}" for number in range(600)]
        assert [entry.prompt for entry in store.entries(newest_first=True)] == written[::-1]
        assert list(store) == sorted(store)
        assert len(set(store)) == 600


@pytest.mark.parametrize(
    "key", ["~meta", "~rows", "", "x", "0" * 64 + "#0", "\ud800", "0" * 65, None, 5]
)
def test_keys_that_cannot_be(key: Any, store_path: Path, store_writer: StoreWriter) -> None:
    store_writer.flush()
    with open_store(store_path, writable=True) as store:
        assert key not in store
        with pytest.raises(EntryNotFound):
            store[key]
        with pytest.raises(EntryNotFound):
            store.delete(key)
        with pytest.raises(EntryNotFound):
            store.put_evaluation(key, name="n", label="correct")


def test_a_reader_cannot_write(store_path: Path, store_writer: StoreWriter) -> None:
    put_answer(store_writer, "r")
    store_writer.flush()
    with open_store(store_path) as store:
        key = next(iter(store))
        with pytest.raises(StoreReadOnly, match="writable=True"):
            store.put_evaluation(key, name="n", label="correct")
        with pytest.raises(StoreReadOnly, match="writable=True"):
            store.delete(key)
        assert key in store
