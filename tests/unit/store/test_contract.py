"""The store as a user may rely on it: real LMDB, real processes, real kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import (
    EntryNotFound,
    NotAStore,
    RowsMissing,
    StoreNotFound,
    StoreReadOnly,
    StoreVersionError,
)
from activation_logging.records import Segment, SegmentSlice
from activation_logging.store import StoreWriter
from activation_logging.store.engine import environment
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

LAYERS = (2, NUM_LAYERS)


def put(writer: StoreWriter, number: int, prompt: str = "a prompt", **fields: Any) -> None:
    """One whole answer, with the rows that :func:`rows` gives."""
    fields = {"response": f"answer {number}", "created": float(number), **fields}
    put_answer(writer, f"cmpl-{number}", prompt=prompt, layers=LAYERS, **fields)


def rows(number: int, layer: int = NUM_LAYERS) -> np.ndarray:
    """The rows of an answer of three prompt and two response tokens."""
    return make_rows(f"cmpl-{number}", layer, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "activations.lmdb"


@pytest.fixture
def writer(path: Path) -> Any:
    opened = StoreWriter(path, role="test")
    yield opened
    opened.close()


class TestKeys:
    def test_every_answer_is_kept_under_its_prompts_hash(
        self, path: Path, writer: StoreWriter
    ) -> None:
        prompt = "NUL \x00, emoji 🦊, lone \ud800 surrogate"
        for number in range(12):
            put(writer, number, prompt)
        writer.flush()
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        with open_store(path) as store:
            found = store.for_prompt(prompt)
            assert [e.key for e in found] == [key, *(f"{key}#{n}" for n in range(1, 12))]
            assert [e.response for e in found] == [f"answer {n}" for n in range(12)]
            assert found[0].prompt == prompt
            assert len(store) == len(list(store)) == 12
            assert set(store) == {e.key for e in store.entries()}
            assert store.for_prompt("never asked") == []

    def test_unknown_keys(self, path: Path, writer: StoreWriter) -> None:
        writer.flush()
        with open_store(path) as store:
            for key in ("", "x", "~meta", "0" * 64, "z" * 10_000, "../../etc/passwd"):
                assert key not in store
                with pytest.raises(KeyError):
                    store[key]

    def test_requests_and_long_ids(self, path: Path, writer: StoreWriter) -> None:
        long = "cmpl-" + "x" * 5000
        for number, choice in ((0, 2), (1, 0), (2, 1)):
            put(writer, number, request_id=long, choice=choice)
        writer.flush()
        with open_store(path) as store:
            assert [e.choice for e in store.for_request(long)] == [0, 1, 2]
            assert store.for_request("cmpl-") == []


class TestRows:
    def test_arrays(self, path: Path, writer: StoreWriter) -> None:
        put(writer, 7)
        writer.flush()
        with open_store(path) as store:
            (entry,) = store.entries()
            assert entry.layers == LAYERS
            assert np.array_equal(entry.activations, rows(7))
            assert np.array_equal(entry.layer(2), rows(7, 2))
            assert np.array_equal(entry.response_activations, rows(7)[2:])
            assert list(entry.positions) == [0, 1, 2, 3]
            with pytest.raises(RowsMissing, match="layer 1"):
                entry.layer(1)
            kept = entry.activations
        del store, entry
        assert np.array_equal(kept, rows(7)), "an array outlives its store"
        kept[...] = 0
        assert not kept.any(), "and is its owner's to change"

    def test_rows_beyond_the_answer_are_cut_off(self, path: Path, writer: StoreWriter) -> None:
        writer.put_capture(make_capture("r", [make_segment("r", 4)]))
        writer.put_entry(make_document("r", response_ids=[4]))
        writer.flush()
        with open_store(path) as store:
            (entry,) = store.entries()
            assert entry.activations.shape == (3, HIDDEN)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_types_without_loss(self, path: Path, writer: StoreWriter, dtype: str) -> None:
        stored = np.arange(4 * HIDDEN, dtype=np.uint16).reshape(4, HIDDEN) * 97
        block = {
            "float32": rows(1),
            "float16": stored.view(np.float16),
            "bfloat16": stored,
        }[dtype]
        segment = Segment(segment_id("r"), {NUM_LAYERS: block}, block.nbytes)
        writer.put_capture(make_capture("r", [segment], dtype=dtype))
        writer.put_entry(make_document("r"))
        writer.flush()
        with open_store(path) as store:
            (entry,) = store.entries()
            assert np.array_equal(entry.stored("last").view(block.dtype), block)
            if dtype == "bfloat16":
                bits = entry.activations.view(np.uint32)
                assert np.array_equal(bits, stored.astype(np.uint32) << 16)

    def test_shared_rows_survive_the_deletion_of_either(
        self, path: Path, writer: StoreWriter
    ) -> None:
        put(writer, 0)
        own = make_segment("own", 1, layers=LAYERS)
        slices = [SegmentSlice(segment_id("cmpl-0"), 0, 3), SegmentSlice(own.id, 0, 1)]
        writer.put_capture(make_capture("one", [own], slices, layers=LAYERS))
        writer.put_entry(make_document("one", prompt="a prompt"))
        writer.flush()
        expected = np.concatenate([rows(0)[:3], make_rows("own", NUM_LAYERS, 1)])
        with open_store(path, writable=True) as store:
            zero, one = store.entries()
            assert np.array_equal(one.activations, expected)
            store.delete(zero.key)
            assert np.array_equal(store[one.key].activations, expected)
            store.delete(one.key)
            assert len(store) == 0
        writer.close()
        with open_store(path) as store:
            assert list(store.snapshot().cursor(b"~rows").iternext(values=False)) == []


class TestLabels:
    def test_beside_each_other(self, path: Path, writer: StoreWriter) -> None:
        put(writer, 0)
        writer.flush()
        with open_store(path, writable=True) as store:
            (key,) = store
            store.put_evaluation(key, name="a", label="correct", score=0.5, details={"x": [1]})
            store.put_evaluation(key, name="a/b", label="refused")
            store.put_evaluation(key, name="a", label="invalid")
            found = store[key].evaluations
            assert {name: e.label for name, e in found.items()} == {
                "a": "invalid",
                "a/b": "refused",
            }
            with pytest.raises(EntryNotFound):
                store.put_evaluation("0" * 64, name="a", label="correct")
            with pytest.raises(ValueError, match="not one of"):
                store.put_evaluation(key, name="a", label="wrong")
            with pytest.raises(ValueError, match="name"):
                store.put_evaluation(key, name="a\0b", label="correct")
        with open_store(path) as store, pytest.raises(StoreReadOnly):
            store.put_evaluation(key, name="a", label="correct")


class TestOpening:
    def test_what_is_not_a_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound):
            open_store(tmp_path / "nothing")
        (tmp_path / "file").write_text("text")
        with pytest.raises(NotAStore):
            open_store(tmp_path / "file")
        (tmp_path / "garbage").mkdir()
        (tmp_path / "garbage" / "data.mdb").write_bytes(b"garbage" * 5000)
        with pytest.raises(NotAStore):
            open_store(tmp_path / "garbage")

    def test_one_that_is_just_being_made_is_waited_for(self, tmp_path: Path) -> None:
        """Another process makes the file first, and writes what the store is a moment later."""
        path = tmp_path / "s"
        program = (
            "import lmdb, sys, time; from activation_logging.store import StoreWriter; "
            "env = lmdb.open(sys.argv[1]); print(flush=True); "
            "time.sleep(0.3); env.close(); "
            "StoreWriter(sys.argv[1], role='test').close()"
        )
        command = [sys.executable, "-c", program, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as made:
            made.stdout.readline()
            with open_store(path) as store:
                assert len(store) == 0

    @pytest.mark.parametrize(("version", "error"), [(None, NotAStore), (99, StoreVersionError)])
    def test_foreign_environments(
        self, tmp_path: Path, version: int | None, error: type[Exception]
    ) -> None:
        folder = tmp_path / "foreign"
        folder.mkdir()
        with lmdb.open(str(folder), max_dbs=2, lib_version=0) as env, env.begin(write=True) as txn:
            txn.put(b"key", b"value")
            if version:
                meta = env.open_db(b"~meta", txn=txn)
                record = {"format": "activation-logging", "version": version}
                txn.put(b"format", json.dumps(record).encode(), db=meta)
        for writable in (False, True):
            with pytest.raises(error):
                open_store(folder, writable=writable)

    def test_with_lmdb_and_json_alone(self, path: Path, writer: StoreWriter) -> None:
        put(writer, 0)
        writer.close()
        program = textwrap.dedent(
            """
            import hashlib, json, lmdb, numpy, struct, sys
            env = lmdb.open(sys.argv[1], readonly=True, max_dbs=9, lib_version=0)
            captures, stored = env.open_db(b"~captures"), env.open_db(b"~rows")
            with env.begin() as txn:
                key = hashlib.sha256(b"a prompt").hexdigest().encode()
                entry = json.loads(txn.get(key))
                capture = json.loads(txn.get(entry["capture"].encode(), db=captures))
                (segment, start, count), = capture["slices"]
                raw = txn.get(bytes.fromhex(segment) + struct.pack(">H", 4), db=stored)
                print(entry["response"], numpy.frombuffer(raw, "<f4").sum())
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[:2] == ["answer", "0"]
        assert float(done.stdout.split()[2]) == pytest.approx(float(rows(0).sum()), rel=1e-5)


class TestProcesses:
    PROGRAM = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[3])
        from activation_logging.store import StoreWriter
        from tests.unit.store.test_contract import put
        writer = StoreWriter(sys.argv[1], role="child")
        for number in range(int(sys.argv[2]), 10**9):
            put(writer, number, f"prompt {number}")
            if number % 10 == 9:
                writer.flush()
                print(number, flush=True)
        """
    )

    def start(self, path: Path, first: int) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[3])
        return subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(path), str(first), root],
            stdout=subprocess.PIPE,
            text=True,
        )

    def test_kill_loses_nothing_that_was_acknowledged(self, path: Path) -> None:
        """Two writers, killed without mercy: what they had flushed is there, and right."""
        flushed: dict[int, int] = {}
        for turn in range(3):
            writers = {
                first: self.start(path, first) for first in (turn * 20_000, turn * 20_000 + 10_000)
            }
            for first, process in writers.items():
                assert process.stdout is not None
                for _ in range(5 + 3 * turn):
                    flushed[first] = int(process.stdout.readline())
            for process in writers.values():
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                process.stdout.close()
        with open_store(path) as store:
            for first, last in flushed.items():
                for number in range(first, last + 1):
                    (entry,) = store.for_prompt(f"prompt {number}")
                    assert entry.status == "complete"
                    assert np.array_equal(entry.activations, rows(number))

    def test_a_reader_sees_what_others_write(self, path: Path, writer: StoreWriter) -> None:
        writer.flush()
        with open_store(path) as store:
            assert len(store) == 0
            process = self.start(path, 0)
            assert process.stdout is not None
            process.stdout.readline()
            assert len(store) >= 10
            process.kill()
            process.wait()

    def test_the_map_grows_under_readers(self, path: Path) -> None:
        environment.acquire(path, create=True, map_size=1 << 20)
        big = StoreWriter(path, role="test")
        with open_store(path) as store:
            for number in range(300):
                put(big, number, f"{number} " * 2000)
                if number % 50 == 0:
                    big.flush()
                    assert len(store) > number // 2
            big.flush()
            assert len(store) == 300
        big.close()


class TestFullQueue:
    def test_drop_says_so(self, path: Path) -> None:
        writer = StoreWriter(path, role="test", policy="drop", queue_bytes=1)
        for number in range(50):
            put(writer, number, f"prompt {number}")
        writer.flush()
        writer.close()
        with open_store(path) as store:
            statuses = [entry.status for entry in store.entries()]
            assert len(statuses) == 50
            assert statuses.count("dropped") == sum(w["dropped"] for w in store.writers().values())
            assert statuses.count("dropped") > 0
            dropped = next(e for e in store.entries() if e.status == "dropped")
            assert "queue" in (dropped.status_reason or "")
            with pytest.raises(RowsMissing, match="queue"):
                _ = dropped.activations

    def test_block_waits(self, path: Path) -> None:
        writer = StoreWriter(path, role="test", policy="block", queue_bytes=1)
        for number in range(20):
            put(writer, number, f"prompt {number}")
        writer.close()
        with open_store(path) as store:
            assert [entry.status for entry in store.entries()] == ["complete"] * 20

    def test_pending_becomes_complete(self, path: Path, writer: StoreWriter) -> None:
        writer.put_entry(make_document("late"))
        writer.flush()
        with open_store(path) as store:
            (entry,) = store.entries()
            assert entry.status == "pending"
            writer.put_capture(make_capture("late", [make_segment("late", 4)]))
            writer.flush()
            assert entry.status == "complete"
