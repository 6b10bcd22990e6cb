"""Scores that came while the model answered: kept with the rows' record, and wherever that goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from activation_logging import Derived, Store, open_store
from activation_logging.errors import RowsMissing, StoreCorrupt
from activation_logging.records import Capture, LiveScore, Segment, SegmentSlice
from activation_logging.store import StoreWriter, layout
from activation_logging.store.compact import compact
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.live import in_rows
from activation_logging.store.merge import merge
from activation_logging.verify import verify
from tests.fixtures.answers import HIDDEN, NUM_LAYERS, make_document, make_rows

PROMPT, RESPONSE = [1, 2, 3], [4, 5, 6]
ROWS = 5
"""Positions 0 to 4; the worker has computed one more."""


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


TOKENS = LiveScore(2, floats(0.1, 0.2, 0.3, 0.4), "a" * 64)
POOL = LiveScore(3, floats(0.5, 0.6, 0.7), "b" * 64, running=True)
PROMPT_LAST = LiveScore(2, floats(0.9), "c" * 64)
SCORES = {"token": TOKENS, "pool": POOL, "prompt": PROMPT_LAST}
NAN = float("nan")
EXPECTED = {
    "token": [NAN, NAN, 0.1, 0.2, 0.3],
    "pool": [NAN, NAN, NAN, NAN, 0.6],
    "prompt": [NAN, NAN, 0.9, NAN, NAN],
}


def put(
    writer: StoreWriter,
    name: str,
    *,
    first: int = 0,
    rows: int = ROWS + 1,
    scores: Mapping[str, LiveScore] = SCORES,
    dropped: str | None = None,
    **fields: Any,
) -> None:
    ids = {"prompt_ids": PROMPT, "response_ids": RESPONSE}
    writer.put_entry(make_document(name, prompt=name, **ids, **fields))
    segment = bytes.fromhex(writer.id) + name.encode().ljust(8)
    block = make_rows(name, NUM_LAYERS, rows)
    capture = Capture(
        f"{name}-internal",
        (NUM_LAYERS,),
        NUM_LAYERS,
        HIDDEN,
        "float32",
        first,
        [] if dropped else [SegmentSlice(segment, 0, rows)],
        [] if dropped else [Segment(segment, {NUM_LAYERS: block}, block.nbytes)],
        dropped,
        scores=scores,
    )
    writer.put_capture(capture)


@pytest.fixture
def path(store_path: Path) -> Path:
    writer = StoreWriter(store_path, role="worker")
    put(writer, "one")
    put(writer, "none", scores={})
    writer.close()
    return store_path


def entry(store: Store, name: str = "one") -> Any:
    (found,) = store.for_request(name)
    return found


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> bool:
    assert found.keys() == expected.keys()
    return all(
        values.dtype == np.float32
        and np.array_equal(values, np.array(expected[name], np.float32), equal_nan=True)
        for name, values in found.items()
    )


class TestReading:
    def test_they_are_of_the_rows(self, path: Path) -> None:
        with open_store(path) as store:
            assert same(entry(store).scores, EXPECTED)
            digests = {name: score.digest for name, score in SCORES.items()}
            assert entry(store).score_digests == digests
            assert (entry(store, "none").scores, entry(store, "none").score_digests) == ({}, {})
            assert entry(store, "none").derived_names == []

    def test_they_are_listed_among_the_arrays(self, path: Path) -> None:
        with open_store(path) as store:
            found = entry(store)
            assert found.derived_names == ["score/pool", "score/prompt", "score/token"]
            header = found.derived_headers()["score/pool"]
            assert (header.dtype, header.shape, header.created) == (
                "float32",
                (ROWS,),
                found.created,
            )
            assert header.details == {"digest": POOL.digest, "live": True}
            one = found.derived("score/token")
            assert same({"token": one.values}, {"token": EXPECTED["token"]})
            assert found.derived_headers("replay/") == {}
            with pytest.raises(KeyError, match="has no score/other"):
                found.derived("score/other")

    def test_a_later_one_takes_its_place(self, path: Path) -> None:
        later = np.linspace(0, 1, ROWS, dtype=np.float32)
        with open_store(path, writable=True) as store:
            key = entry(store).key
            store.put_derived([Derived(key, "score/token", later, {"digest": "d"})])
            assert same(entry(store).scores, {**EXPECTED, "token": later})
            assert entry(store).score_digests["token"] == "d"
            assert entry(store).derived("score/token").details == {"digest": "d"}
            assert entry(store).score_digests["pool"] == POOL.digest

    @pytest.mark.parametrize(
        ("tokens", "first", "rows", "cut"),
        [("response", 2, 4, slice(2, 5)), ("prompt", 0, 3, slice(0, 3))],
    )
    def test_only_some_rows(
        self, store_path: Path, tokens: str, first: int, rows: int, cut: slice
    ) -> None:
        writer = StoreWriter(store_path, role="worker")
        put(writer, "one", first=first, rows=rows, tokens=tokens)
        writer.close()
        with open_store(store_path) as store:
            expected = {name: values[cut] for name, values in EXPECTED.items()}
            assert same(entry(store).scores, expected)

    @pytest.mark.parametrize(("tokens", "cut"), [("all", slice(0, 5)), ("response", slice(2, 5))])
    def test_they_stay_where_rows_do_not(self, store_path: Path, tokens: str, cut: slice) -> None:
        writer = StoreWriter(store_path, role="worker")
        first = 0 if tokens == "all" else 2
        put(writer, "one", dropped="the queue was full", tokens=tokens, first=first)
        writer.close()
        with open_store(store_path) as store:
            assert entry(store).status == "dropped"
            expected = {name: values[cut] for name, values in EXPECTED.items()}
            assert same(entry(store).scores, expected)

    def test_an_answer_that_was_aborted_before_its_last_state(self, store_path: Path) -> None:
        writer = StoreWriter(store_path, role="worker")
        short = {"token": TOKENS._replace(values=floats(0.1, 0.2))}
        short["pool"] = POOL._replace(values=floats(0.5))
        put(writer, "one", rows=4, scores=short, finish_reason="abort")
        writer.close()
        with open_store(store_path) as store:
            expected = {"token": [NAN, NAN, 0.1, 0.2], "pool": [NAN, NAN, NAN, 0.5]}
            assert same(entry(store).scores, expected)

    def test_the_plain_layout_has_them(self, path: Path) -> None:
        env = lmdb.open(str(path), readonly=True, max_dbs=16)
        with env.begin() as txn:
            captures = env.open_db(b"~captures", txn=txn, create=False)
            record = json.loads(txn.get(b"one-internal", db=captures))
            other = json.loads(txn.get(b"none-internal", db=captures))
        env.close()
        assert record["scores"]["pool"].keys() == {"first", "running", "digest", "values"}
        assert "scores" not in other


class TestTravelling:
    def test_merged_and_compacted(self, path: Path, tmp_path: Path) -> None:
        merge([path], tmp_path / "merged")
        compact(tmp_path / "merged")
        with open_store(tmp_path / "merged") as store:
            assert same(entry(store).scores, EXPECTED)
            assert verify(store).ok

    def test_deleted(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            store.delete(entry(store).key)
        with open_alone(path) as opened, opened.env.begin() as txn:
            assert txn.get(b"one-internal", db=opened.databases[layout.CAPTURES]) is None


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"values": "!"}, "the scores by token of entry .* are damaged"),
            ({"values": "AAA="}, "the scores by token of entry .* are damaged"),
            ({"values": 3}, "is invalid"),
            ({"first": -1}, "is invalid"),
            ({"digest": None}, "is invalid"),
        ],
    )
    def test_it_is_found(self, path: Path, change: dict[str, Any], says: str) -> None:
        with open_alone(path) as opened, opened.env.begin(write=True) as txn:
            database = opened.databases[layout.CAPTURES]
            record = json.loads(txn.get(b"one-internal", db=database))
            record["scores"]["token"] |= change
            txn.put(b"one-internal", json.dumps(record).encode(), db=database)
        with open_store(path) as store:
            with pytest.raises(StoreCorrupt, match=says):
                _ = entry(store).scores
            assert not verify(store).ok
            assert entry(store, "none").scores == {}


class Missing(dict[str, LiveScore]):
    """Scores whose columns another pipeline stage has not sent."""

    def items(self) -> Any:
        raise RowsMissing("a pipeline stage ended before it had sent this request's rows")


def test_scores_that_never_come_lose_nothing_else(store_path: Path) -> None:
    writer = StoreWriter(store_path, role="worker")
    put(writer, "one", scores=Missing(SCORES))
    put(writer, "other")
    writer.close()
    with open_store(store_path) as store:
        assert (entry(store).status, entry(store).scores) == ("dropped", {})
        assert "pipeline stage" in entry(store).status_reason
        assert same(entry(store, "other").scores, EXPECTED)


@pytest.mark.parametrize("running", [False, True])
def test_every_cut(running: bool) -> None:
    """Against the definition, position by position."""
    for first in range(4):
        for count in range(5):
            for last in range(6):
                for length in range(4):
                    score = LiveScore(2, np.arange(1, length + 1, dtype=np.float32), "", running)
                    end = min(last, 2 + length - 1)
                    expected = [
                        position - 1.0
                        if 2 <= position <= end and (position == end or not running)
                        else NAN
                        for position in range(first, first + count)
                    ]
                    found = in_rows(score, first, count, last)
                    assert np.array_equal(found, np.array(expected, np.float32), equal_nan=True)
