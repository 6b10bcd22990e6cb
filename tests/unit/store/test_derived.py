"""Arrays beside entries: written, read, moved, and found out where they are wrong."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from safetensors.numpy import load

from activation_logging import Derived, Store, open_store
from activation_logging.errors import (
    DerivedError,
    EntryNotFound,
    StoreCorrupt,
    StoreReadOnly,
    StoreVersionError,
)
from activation_logging.store import StoreWriter, layout
from activation_logging.store.compact import compact
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.merge import merge
from activation_logging.store.statistics import statistics
from activation_logging.store.upgrade import upgrade
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.answers import put_answer
from tests.fixtures.old_stores import without_arrays
from tests.fixtures.readers import command, http

SCORES = np.array([np.nan, 0.25, 0.5, 1.0], np.float32)
HEATS = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
GOOD: dict[str, Any] = {"dtype": "float32", "shape": [2], "created": 1.0, "details": {}}
"""The header of two numbers."""
WRITE = """
import sys, numpy as np
from activation_logging import Derived, open_store
with open_store(sys.argv[1], writable=True) as store:
    store.put_derived(Derived(key, "replay/heat", np.zeros(3, np.int8)) for key in list(store))
"""


def derived(key: str) -> list[Derived]:
    return [
        Derived(key, "score/made_up", SCORES, {"digest": "abc"}),
        Derived(key, "replay/heat", HEATS, {"model": "m", "heads": [1, 2]}),
    ]


@pytest.fixture
def path(store_path: Path) -> Path:
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "one")
    put_answer(writer, "two", prompt="another")
    writer.close()
    with open_store(store_path, writable=True) as store:
        assert store.put_derived(derived(one(store).key)) == 2
    return store_path


@pytest.fixture
def old_path(path: Path) -> Path:
    """The store as it was made before there were arrays."""
    without_arrays(path)
    return path


def one(store: Store) -> Any:
    (entry,) = store.for_request("one")
    return entry


def put_raw(path: Path, key: str, name: str, record: bytes) -> None:
    """Write an array as another program would."""
    with open_alone(path) as opened, opened.env.begin(write=True) as txn:
        txn.put(layout.beside_key(key, name), record, db=opened.databases[layout.DERIVED])


def elsewhere(path: Path) -> None:
    """Write arrays in another process."""
    subprocess.run([sys.executable, "-c", WRITE, str(path)], check=True)


class TestWriting:
    def test_they_come_back(self, path: Path) -> None:
        with open_store(path) as store:
            entry = one(store)
            assert entry.derived_names == ["replay/heat", "score/made_up"]
            heat, scores = (entry.derived(name) for name in entry.derived_names)
            assert heat.values.dtype == np.float16
            assert heat.values.tolist() == HEATS.tolist()
            assert heat.details == {"model": "m", "heads": [1, 2]}
            assert (heat.key, heat.name) == (entry.key, "replay/heat")
            assert heat.created >= scores.created > 1e9
            assert entry.scores.keys() == {"made_up"}
            assert np.array_equal(entry.scores["made_up"], SCORES, equal_nan=True)
            assert entry.score_digests == {"made_up": "abc"}
            (other,) = store.for_request("two")
            assert other.derived_names == []
            assert other.scores == {}

    def test_an_array_is_the_callers_own(self, path: Path) -> None:
        with open_store(path) as store:
            entry = one(store)
            entry.derived("replay/heat").values[:] = 7
            assert entry.derived("replay/heat").values.tolist() == HEATS.tolist()

    def test_the_plain_layout_has_them(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        env = lmdb.open(str(path), readonly=True, max_dbs=16)
        with env.begin() as txn:
            arrays = env.open_db(b"~derived", txn=txn, create=False)
            line, _, data = txn.get(f"{key}\0replay/heat".encode(), db=arrays).partition(b"\n")
        env.close()
        header = json.loads(line)
        assert header.keys() == {"dtype", "shape", "created", "details"}
        found = np.frombuffer(data, header["dtype"]).reshape(header["shape"])
        assert found.tolist() == HEATS.tolist()

    @pytest.mark.parametrize(
        "values",
        [
            np.float64(3.5),
            np.zeros((0, 4), np.float32),
            np.arange(6, dtype=">i4").reshape(2, 3),
            np.arange(12, dtype=np.int64).reshape(3, 4).T,
            np.array([True, False]),
            np.array([0.1, np.inf, -np.inf], np.float64),
        ],
        ids=lambda values: f"{values.dtype}{values.shape}",
    )
    def test_types_and_shapes(self, path: Path, values: Any) -> None:
        with open_store(path, writable=True) as store:
            store.put_derived([Derived(one(store).key, "replay/x", values)])
            found = one(store).derived("replay/x").values
            assert found.shape == values.shape
            assert found.dtype == values.dtype.newbyteorder("=")
            assert np.array_equal(found, values)

    def test_a_later_one_replaces_it(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            key = one(store).key
            store.put_derived([Derived(key, "score/made_up", SCORES[:2], {"digest": "def"})])
            assert one(store).scores["made_up"].shape == (2,)
            assert one(store).score_digests == {"made_up": "def"}
            assert statistics(store).arrays["score/made_up"].number == 1

    def test_many_commits(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            key = one(store).key
            many = (Derived(key, f"replay/{i}", np.full(2, i)) for i in range(2500))
            assert store.put_derived(many) == 2500
            assert len(one(store).derived_names) == 2502
            assert one(store).derived("replay/2499").values.tolist() == [2499, 2499]

    @pytest.mark.parametrize(
        ("name", "values", "details", "said"),
        [
            ("made_up", SCORES, {}, "is not the name of an array"),
            ("score/", SCORES, {}, "is not the name"),
            ("Score/x", SCORES, {}, "is not the name"),
            ("score/a\0b", SCORES, {}, "is not the name"),
            ("score/a\nb", SCORES, {}, "is not the name"),
            ("score/\ud800", SCORES, {}, "is not the name"),
            ("score/" + "x" * 123, SCORES, {}, "128 bytes at most"),
            (5, SCORES, {}, "is not the name"),
            ("score/x", SCORES.astype(np.float64), {}, "scores are float32 [rows]"),
            ("score/x", SCORES[None], {}, "scores are float32 [rows]"),
            ("replay/x", np.array([None]), {}, "an array of object"),
            ("replay/x", np.array(["a"]), {}, "an array of str"),
            ("replay/x", np.zeros(2, np.complex64), {}, "an array of complex64"),
            ("replay/x", np.broadcast_to(np.int8(0), (1 << 30) + 1), {}, "up to 1073741824 bytes"),
            ("replay/x", np.zeros([1] * 9), {}, "8 axes"),
            ("replay/x", SCORES, {"a": float("nan")}, "details.a is nan"),
            ("replay/x", SCORES, {"a": object()}, "details.a holds a object"),
            ("replay/x", SCORES, {"a": "x" * 70_000}, "details are longer than 65536 bytes"),
        ],
    )
    def test_unfit(self, path: Path, name: Any, values: Any, details: Any, said: str) -> None:
        with open_store(path, writable=True) as store:
            with pytest.raises(DerivedError, match=re.escape(said)):
                store.put_derived([Derived(one(store).key, name, values, details)])
            assert len(one(store).derived_names) == 2

    @pytest.mark.parametrize(
        "bad",
        [{"created": float("nan")}, {"created": -1.0}, {"values": np.zeros((0, 1 << 31), np.int8)}],
        ids=str,
    )
    def test_what_nobody_could_read(self, path: Path, bad: dict[str, Any]) -> None:
        with open_store(path, writable=True) as store:
            item = {"key": one(store).key, "name": "replay/x", "values": SCORES, **bad}
            with pytest.raises(DerivedError, match=r"replay/x is invalid: .*cannot be kept"):
                store.put_derived([Derived(**item)])
            assert len(one(store).derived_names) == 2

    def test_without_an_entry(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            for key in ("0" * 64, "no key", f"{one(store).key}\0"):
                with pytest.raises(EntryNotFound, match="to put replay/x beside"):
                    store.put_derived([Derived(key, "replay/x", SCORES)])

    def test_read_only(self, path: Path) -> None:
        with open_store(path) as store, pytest.raises(StoreReadOnly, match="writable=True"):
            store.put_derived(derived(one(store).key))

    @pytest.mark.parametrize("name", ["score/other", "made_up", "score/\0"])
    def test_none_of_this_name(self, path: Path, name: str) -> None:
        with open_store(path) as store, pytest.raises(KeyError):
            one(store).derived(name)


class TestStoresFromBefore:
    def test_they_are_read_as_they_were(self, old_path: Path) -> None:
        before = (old_path / "data.mdb").read_bytes()
        with open_store(old_path) as store:
            assert len(store) == len(list(store)) == 2
            assert one(store).derived_names == []
            assert one(store).scores == {}
            assert statistics(store).arrays == {}
            assert verify(store).ok
            with pytest.raises(KeyError):
                one(store).derived("replay/heat")
        assert (old_path / "data.mdb").read_bytes() == before

    def test_the_first_array_makes_room_for_them(self, old_path: Path) -> None:
        with open_store(old_path, writable=True) as store:
            store.put_derived(derived(one(store).key))
            assert len(one(store).derived_names) == 2
            assert len(store) == 2
            assert verify(store).ok
        compact(old_path)
        with open_store(old_path) as store:
            assert len(one(store).derived_names) == 2
            assert len(store) == 2

    def test_while_another_thread_goes_through_the_databases(self, old_path: Path) -> None:
        with open_store(old_path, writable=True) as store:
            names = iter(store.environment.databases)
            next(names)
            store.put_derived(derived(one(store).key))
            assert layout.DERIVED not in list(names)

    def test_another_process_has_made_the_first(self, old_path: Path) -> None:
        with open_store(old_path, writable=True) as store:
            view = store.snapshot()
            assert view.num_entries == 2
            elsewhere(old_path)
            # A view shows what there was when it began.
            assert view.num_entries == 2
            assert view.count(layout.DERIVED) == 0
            del view
            assert len(store) == 2
            assert one(store).derived("replay/heat").values.tolist() == [0, 0, 0]
            assert store.snapshot().count(layout.DERIVED) == 2

    def test_deleting_takes_those_of_another_process(self, old_path: Path) -> None:
        with open_store(old_path, writable=True) as store:
            key = one(store).key
            elsewhere(old_path)
            store.delete(key)
            assert statistics(store).arrays["replay/heat"].number == 1
            assert verify(store).ok

    def test_version_1_is_to_be_upgraded(self, path: Path) -> None:
        make_version_1(path)
        with open_store(path, writable=True) as store:
            assert len(store) == 2
            with pytest.raises(StoreVersionError, match="`activation-logging upgrade PATH`"):
                store.put_derived(derived(one(store).key))
        upgrade(path)
        with open_store(path, writable=True) as store:
            store.put_derived(derived(one(store).key))
            assert len(one(store).derived_names) == 2
            assert verify(store).ok
        upgrade(path, rebuild=True)
        with open_store(path) as store:
            assert len(one(store).derived_names) == 2


class TestUpkeep:
    def test_merge_takes_them_along(self, path: Path, tmp_path: Path) -> None:
        goal = tmp_path / "merged"
        assert [merge([path], goal).arrays for _ in range(2)] == [2, 0]
        with open_store(path, writable=True) as store, open_store(goal) as merged:
            old, new = one(store).derived("replay/heat"), one(merged).derived("replay/heat")
            assert new.values.tolist() == old.values.tolist()
            assert (new.details, new.created) == (old.details, old.created)
            store.put_derived([Derived(old.key, old.name, old.values + 1)])
            assert merge([path], goal).arrays == 1
            assert one(merged).derived("replay/heat").values.tolist() == (HEATS + 1).tolist()
            assert verify(merged).ok

    def test_merge_keeps_the_later(self, path: Path, tmp_path: Path) -> None:
        goal = tmp_path / "merged"
        merge([path], goal)
        with open_store(goal, writable=True) as merged:
            later = Derived(one(merged).key, "score/made_up", SCORES[:1])
            merged.put_derived([later])
            assert merge([path], goal).arrays == 0
            assert one(merged).scores["made_up"].shape == (1,)

    def test_merge_into_a_store_from_before(self, path: Path, tmp_path: Path) -> None:
        goal = tmp_path / "merged"
        with open_store(goal, writable=True):
            pass
        without_arrays(goal)
        assert merge([path], goal).arrays == 2
        with open_store(goal) as merged:
            assert len(one(merged).derived_names) == len(merged) == 2

    def test_they_go_with_their_entry(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            store.delete(one(store).key)
            assert statistics(store).arrays == {}
            assert store.snapshot().count(layout.DERIVED) == 0
            assert verify(store).ok

    def test_compact_and_repair_keep_them(self, path: Path) -> None:
        compact(path)
        assert "nothing to repair" in command("repair", path)
        with open_store(path) as store:
            assert len(one(store).derived_names) == 2

    def test_those_without_an_entry(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
            place = layout.beside_key(key, "replay/heat")
            record = bytes(store.snapshot().get(layout.DERIVED, place))
        put_raw(path, "0" * 64, "replay/heat", record)
        with open_store(path) as store:
            (problem,) = verify(store).problems
        assert problem.key == "0" * 64
        assert "the entry of its array replay/heat is gone" in problem.what
        assert "1 arrays of entries that are gone" in command("repair", path, "--yes")
        with open_store(path) as store:
            assert verify(store).ok
            assert len(one(store).derived_names) == 2

    def test_they_are_counted(self, path: Path) -> None:
        with open_store(path) as store:
            found = statistics(store)
        assert {name: each.number for name, each in found.arrays.items()} == {
            "replay/heat": 1,
            "score/made_up": 1,
        }
        assert HEATS.nbytes < found.arrays["replay/heat"].nbytes < HEATS.nbytes + 200
        shown = command("stats", path)
        assert re.search(r"array +replay/heat +1 *\n +score/made_up +1", shown)
        told = json.loads(command("stats", path, "--json"))["arrays"]
        assert told["score/made_up"]["number"] == 1

    def test_show(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        assert "replay/heat [2, 3, 4], score/made_up [4]" in command("show", path, key)
        told = json.loads(command("show", path, key, "--json"))["derived"]
        assert told["replay/heat"]["shape"] == [2, 3, 4]
        assert told["score/made_up"]["details"] == {"digest": "abc"}


class TestDamage:
    @pytest.mark.parametrize(
        "record",
        [
            b"",
            b"\n",
            b"x" * 100_000,
            b"[]\n",
            b'{"dtype": "float32"}\n',
            *(
                json.dumps({**GOOD, **change}).encode() + b"\n" + bytes(8)
                for change in (
                    {"dtype": "object"},
                    {"dtype": ">f4"},
                    {"dtype": 5},
                    {"shape": [3]},
                    {"shape": [-2]},
                    {"shape": 2},
                    {"shape": [2.0]},
                    {"shape": [1 << 31]},
                    {"shape": [1] * 9},
                    {"created": "now"},
                    {"created": -1},
                    {"details": []},
                )
            ),
            json.dumps({**GOOD, "shape": [0] + [1 << 30] * 7}).encode() + b"\n",
            json.dumps(GOOD).encode() + b"\n" + bytes(7),
        ],
    )
    def test_invalid_records(self, path: Path, record: bytes, tmp_path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        put_raw(path, key, "score/bad", record)
        with open_store(path, writable=True) as store:
            entry = one(store)
            for read in (lambda: entry.scores, lambda: entry.derived("score/bad")):
                with pytest.raises(StoreCorrupt, match="score/bad of entry"):
                    read()
            assert [found for found, _ in verify(store).problems] == [key]
            assert merge([path], tmp_path / "merged").unreadable.keys() == {key}
            store.put_derived([Derived(key, "score/bad", np.ones(4, np.float32))])
            assert verify(store).ok

    @pytest.mark.parametrize(
        "record", [{**GOOD, "dtype": "int32"}, {**GOOD, "shape": [2, 1]}], ids=str
    )
    def test_scores_of_another_kind(self, path: Path, record: dict[str, Any]) -> None:
        with open_store(path) as store:
            key = one(store).key
        put_raw(path, key, "score/bad", json.dumps(record).encode() + b"\n" + bytes(8))
        with open_store(path) as store:
            with pytest.raises(StoreCorrupt, match=re.escape("is not float32 [rows]")):
                one(store).scores  # noqa: B018 - asked for what it raises
            assert not verify(store).ok

    def test_as_many_scores_as_rows(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            key = one(store).key
            store.put_derived([Derived(key, "score/short", SCORES[:3])])
            problems = [tuple(found) for found in verify(store).problems]
            assert problems == [(key, "3 scores by short for 4 rows")]

    def test_an_invalid_name(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        put_raw(path, key, "score/a\nb", b"")
        with open_store(path) as store, pytest.raises(StoreCorrupt, match="is not the name"):
            one(store).derived_names  # noqa: B018 - asked for what it raises


class TestHttp:
    def test_names_and_shapes(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        with http(path) as client:
            whole = client.get(f"/v1/activations/{key}").json()["derived"]
            listed = client.get("/v1/activations", params={"key": key}).json()["data"][0]["derived"]
        assert listed == ["replay/heat", "score/made_up"]
        assert whole["replay/heat"]["dtype"] == "float16"
        assert whole["replay/heat"]["shape"] == [2, 3, 4]

    def test_values(self, path: Path) -> None:
        with open_store(path) as store:
            key = one(store).key
        with http(path) as client:
            where, what = f"/v1/activations/{key}/tensor", {"derived": "replay/heat"}
            npy = client.get(where, params=what)
            whole = client.get(where, params={**what, "format": "safetensors"})
            absent = client.get(where, params={"derived": "replay/none"})
        assert np.load(io.BytesIO(npy.content)).tolist() == HEATS.tolist()
        assert load(whole.content)["values"].tolist() == HEATS.tolist()
        assert absent.status_code == 404
        assert "has no array replay/none beside it" in absent.text
