"""Several stores that are read and labelled as one."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from activation_logging import Entry, Evaluation, Store, open_store
from activation_logging.errors import (
    AmbiguousKey,
    EntryNotFound,
    NotAStore,
    RowsMissing,
    SettingsError,
    StoreError,
    StoreNotFound,
    StoreReadOnly,
)
from activation_logging.store import Derived, ManyStores, StoreWriter
from activation_logging.store.feed import Feed
from activation_logging.store.query import entries_of, find, select
from activation_logging.store.statistics import counts, statistics
from tests.fixtures.answers import make_capture, make_document, make_segment, put_answer
from tests.fixtures.halves import TIME, make_halves
from tests.fixtures.readers import command, strict


def fill(path: Path, host: int, answers: int = 4) -> Path:
    """Answers of one host: a second apart, a tenth of one after those of the host before."""
    writer = StoreWriter(path, role="test")
    for number in range(answers):
        put_answer(
            writer,
            f"{host}-{number}",
            prompt=f"of {host}: {number}" if number else "of all",
            created=TIME + number + host / 10,
            tags={"host": str(host)},
            sampling={},
        )
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three stores of four answers each, of which the first is to one prompt."""
    for host in range(3):
        fill(tmp_path / "data" / f"h{host}.lmdb", host)
    return tmp_path / "data"


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """The stores of a server on two hosts."""
    return make_halves(tmp_path / "h")


def whole(path: Path, answers: int = 4) -> Store:
    """One store with the same answers as :func:`halves`, whole."""
    writer = StoreWriter(path, role="test")
    for number in range(answers):
        put_answer(writer, f"r{number}", prompt=f"r{number}", created=TIME + number)
    writer.close()
    return open_store(path)


class TestPlaces:
    def test_a_folder_a_pattern_and_a_list_are_the_same(self, folder: Path) -> None:
        paths = sorted(folder.iterdir())
        for where in (folder, f"{folder}/*.lmdb", folder / "h?.lmdb", paths, iter(paths), [folder]):
            with open_store(where) as store:
                assert isinstance(store, ManyStores)
                assert store.names == ("h0.lmdb", "h1.lmdb", "h2.lmdb")
                assert len(store) == 12

    def test_one_store_is_no_several(self, folder: Path) -> None:
        for where in (folder / "h0.lmdb", [folder / "h0.lmdb"], str(folder / "h0.lmdb")):
            assert not open_store(where).is_many

    def test_relative_paths(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        for where in ("data", "data/*.lmdb", "."):
            store = open_store(where)
            monkeypatch.chdir("/")
            assert len(store) == 12
            assert all(part.path.is_absolute() for part in store.parts)
            monkeypatch.chdir(folder.parent)

    def test_twice_the_same_counts_once(self, folder: Path) -> None:
        (folder / "latest").symlink_to("h1.lmdb")
        assert len(open_store(folder)) == 12
        assert len(open_store([folder / "h0.lmdb", folder / "h0.lmdb", folder / "h1.lmdb"])) == 8
        again = open_store([folder / "h1.lmdb", folder / "latest"])
        assert not again.is_many
        assert len(again) == 4

    def test_names_tell_them_apart(self, tmp_path: Path) -> None:
        for name in ("x/activations.lmdb", "y/activations.lmdb"):
            fill(tmp_path / "d" / name, 0, 1)
        assert open_store(tmp_path / "d").names == ("x", "y")
        fill(tmp_path / "d" / "x/b #:%.lmdb", 0, 1)
        names = open_store(tmp_path / "d").names
        assert names == ("x+activations.lmdb", "x+b____.lmdb", "y+activations.lmdb")
        assert all(
            f"{name}:" in key for name, key in zip(names, open_store(tmp_path / "d"), strict=True)
        )

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound, match=r"no store matches .*/\*\.lmdb"):
            open_store(tmp_path / "*.lmdb")
        with pytest.raises(StoreNotFound, match="there is no store at"):
            open_store(tmp_path)
        with pytest.raises(SettingsError, match="no store is named"):
            open_store([])
        with pytest.raises(NotAStore, match="is an address"):
            open_store([tmp_path, "s3://bucket/export"])
        (tmp_path / "file").write_text("")
        with pytest.raises(NotAStore, match=r"no data\.mdb inside"):
            open_store(tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == ["file"]

    def test_what_names_no_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for empty in ("", [""]):
            for writable in (False, True):
                with pytest.raises(SettingsError, match="a path is empty"):
                    open_store(empty, writable=writable)
        for given in (None, 5, b"store", [None]):
            with pytest.raises(TypeError, match="a store is named by a path, not by a "):
                open_store(given)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())

    def test_no_store_is_made_around_others(self, folder: Path) -> None:
        with pytest.raises(NotAStore, match="is a folder of stores; name a store in it"):
            StoreWriter(folder, role="test")
        assert not (folder / "data.mdb").exists()

    def test_a_store_whose_name_is_a_pattern(self, tmp_path: Path) -> None:
        fill(tmp_path / "a[1]*.lmdb", 0)
        assert not open_store(tmp_path / "a[1]*.lmdb").is_many


class TestBroken:
    def test_the_rest_is_served(self, folder: Path, our_log: pytest.LogCaptureFixture) -> None:
        (folder / "h1.lmdb" / "data.mdb").write_bytes(b"no store" * 1000)
        paths = [*sorted(folder.iterdir()), folder / "gone.lmdb"]
        with open_store(paths) as store:
            assert len(store) == 8
            assert store.problems.keys() == {"h1.lmdb", "gone.lmdb"}
            found = statistics(store).stores
            assert found["h0.lmdb"].entries == 4
            assert "not an LMDB file" in str(found["h1.lmdb"].problem)
            with pytest.raises(EntryNotFound, match=r"h1.lmdb is left out: .*not an LMDB file"):
                store[f"h1.lmdb:{'0' * 64}"]
            with pytest.raises(EntryNotFound, match=r"h1.lmdb is left out"):
                find(store, "h1.lmdb:00")
            with pytest.raises(EntryNotFound, match=r"has no store 'h7'; it has h0.lmdb"):
                find(store, "h7:00")
            with pytest.raises(EntryNotFound, match=r"there is no entry"):
                find(store, "h0.lmdb:zz")
        assert "gone.lmdb is left out" in our_log.text
        assert not (folder / "gone.lmdb").exists()

    def test_none_is_left(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound):
            open_store([tmp_path / "a", tmp_path / "b"], writable=True)
        assert not any(tmp_path.iterdir())

    def test_one_that_cannot_be_written(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is read, but nothing is labelled of which a part would then be refused."""
        real = os.access
        locked = str(folder / "h1.lmdb")
        monkeypatch.setattr(
            os,
            "access",
            lambda p, mode: not (str(p).startswith(locked) and mode & os.W_OK) and real(p, mode),
        )
        assert len(open_store(folder)) == 12
        with pytest.raises(StoreReadOnly, match=r"h1\.lmdb"):
            open_store(folder, writable=True)

    def test_a_copy_is_named(self, folder: Path, our_log: pytest.LogCaptureFixture) -> None:
        shutil.copytree(folder / "h1.lmdb", folder / "h1-old.lmdb")
        store = open_store(folder)
        assert "h1-old.lmdb and h1.lmdb hold what one writer has written" in our_log.text
        assert len(store) == 16

    def test_a_clock_that_is_ahead(self, folder: Path) -> None:
        writer = StoreWriter(folder / "h2.lmdb", role="test")
        put_answer(writer, "late", prompt="late", created=time.time() + 7200)
        writer.close()
        store = open_store(folder)
        assert [note[:22] for note in store.notes()] == ["the clock of h2.lmdb i"]
        assert next(store.entries(newest_first=True)).prompt == "late"

    def test_what_works_on_one_only(self, folder: Path) -> None:
        with pytest.raises(StoreError, match=r"one store at a time.* name one of h0.lmdb, h1.lmdb"):
            open_store(folder).snapshot()


class TestReading:
    def test_entries_are_in_order_of_time(self, folder: Path) -> None:
        store = open_store(folder)
        times = [entry.created for entry in store.entries()]
        assert times == sorted(times)
        assert len(times) == 12
        assert [e.key for e in store.entries(newest_first=True)] == [
            e.key for e in reversed(list(store.entries()))
        ]
        by_store = sorted(store.entries(), key=lambda entry: entry.sequence)
        assert [e.response for e in by_store] == [
            f"answer {host}-{number}" for host in range(3) for number in range(4)
        ]

    def test_equal_times_stay_in_order(self, tmp_path: Path) -> None:
        for host in range(3):
            writer = StoreWriter(tmp_path / "d" / f"h{host}.lmdb", role="test")
            for number in range(3):
                put_answer(writer, f"{host}-{number}", prompt=f"{host}-{number}")
            writer.close()
        store = open_store(tmp_path / "d")
        expected = [f"{host}-{number}" for host in range(3) for number in range(3)]
        assert [entry.prompt for entry in store.entries()] == expected
        assert [entry.prompt for entry in store.entries(newest_first=True)] == expected[::-1]

    def test_keys(self, folder: Path) -> None:
        store = open_store(folder)
        entry = store.for_prompt("of 1: 2")[0]
        assert entry.key == f"h1.lmdb:{entry.stored_key}"
        assert store[entry.key].response == store[entry.stored_key].response == "answer 1-2"
        assert entry.key in store
        assert entry.stored_key in store
        assert set(store) == {entry.key for entry in store.entries()}
        shared = store.for_prompt("of all")
        assert [one.key[:2] for one in shared] == ["h0", "h1", "h2"]
        for ask in (store.__getitem__, store.get):
            with pytest.raises(AmbiguousKey, match=r"3 stores .*: h0.lmdb:\w{64}, h1.lmdb:"):
                ask(shared[0].stored_key)
        assert store.get("0" * 64) is None
        assert store.get("elsewhere:" + shared[0].stored_key) is None
        with pytest.raises(EntryNotFound, match=r"has no store 'elsewhere'; it has h0\.lmdb"):
            store["elsewhere:" + shared[0].stored_key]
        assert 3 not in store
        assert len({one.prompt_key for one in shared}) == 1

    def test_find(self, folder: Path) -> None:
        store = open_store(folder)
        entry = store.for_request("2-3")[0]
        assert find(store, "2-3")[0].key == entry.key
        assert find(store, entry.stored_key[:12])[0].key == entry.key
        assert find(store, entry.key[:20])[0].key == entry.key
        assert [one.key for one in entries_of(store, entry.stored_key)] == [entry.key]
        shared = store.for_prompt("of all")[0]
        assert len(entries_of(store, shared.stored_key)) == 3
        assert [one.key for one in entries_of(store, shared.key)] == [shared.key]
        with pytest.raises(EntryNotFound, match=r"3 entries begin with .*h0.lmdb:"):
            find(store, shared.stored_key[:12])

    def test_select(self, folder: Path) -> None:
        store = open_store(folder)
        assert [e.created for e in select(store, limit=5, offset=2)] == [
            e.created for e in list(store.entries(newest_first=True))[2:7]
        ]
        assert {e.part for e in select(store, tags={"host": "2"})} == {2}
        assert len(list(select(store, since=TIME + 1, until=TIME + 3))) == 6
        assert not list(select(store, status="pending"))

    def test_rows(self, folder: Path) -> None:
        store = open_store(folder)
        entries = list(store.entries())
        keys = [entry.key for entry in entries]
        batch = store.read(keys)
        assert batch.offsets.tolist() == list(range(0, 49, 4))
        for index, entry in enumerate(entries):
            rows = batch.values[batch.offsets[index] : batch.offsets[index + 1]]
            assert np.array_equal(rows, entry.activations)
        last = store.read([*keys, keys[0]], position="response_last")
        assert np.array_equal(last[:-1], [entry.activations[-1] for entry in entries])
        assert np.array_equal(last[0], last[-1])
        mean = store.read(keys, position="response_mean")
        for entry, found in zip(entries, mean, strict=True):
            own = store.parts[entry.part].read([entry.stored_key], position="response_mean")
            assert np.array_equal(own[0], found)
        assert store.read([], position="response_last").shape[0] == 0
        with pytest.raises(EntryNotFound):
            store.read([keys[0], "h1.lmdb:" + "0" * 64])

    def test_a_store_without_an_index(self, folder: Path) -> None:
        with Store(folder / "h1.lmdb", writable=True) as one:
            one.transact(lambda change, txn: change.forget_index(txn))
        del one
        store = open_store(folder)
        assert not store.is_indexed
        times = [entry.created for entry in store.entries()]
        assert times == sorted(times)
        assert [e.key[:2] for e in select(store, tags={"host": "1"})] == ["h1"] * 4
        assert counts(store).statuses == {"complete": 12}

    def test_travels(self, folder: Path) -> None:
        store = open_store(folder)
        entry = store.for_prompt("of 1: 2")[0]
        there: Entry = pickle.loads(pickle.dumps(entry))
        assert there.key == entry.key
        assert np.array_equal(there.activations, entry.activations)

    def test_closed(self, folder: Path) -> None:
        store = open_store(folder)
        store.close()
        with pytest.raises(StoreError, match="closed"):
            len(store)


class TestWriting:
    def test_labels_go_where_the_entry_lies(self, folder: Path) -> None:
        with open_store(folder, writable=True) as store:
            for entry in store.entries():
                store.put_evaluation(entry.key, name="n", label="correct")
            bare = store.for_prompt("of 1: 2")[0].stored_key
            assert store.put_evaluations([(bare, Evaluation("n", "refused", None, None))]) == 1
            shared = store.for_prompt("of all")[0].stored_key
            with pytest.raises(AmbiguousKey):
                store.put_evaluation(shared, name="n", label="correct")
            gone = {"key": "h1.lmdb:" + "0" * 64, "name": "n", "label": "correct"}
            assert store.put_evaluations([gone], skip_deleted=True) == 0
            with pytest.raises(EntryNotFound):
                store.put_evaluations([gone])
        with open_store(folder / "h1.lmdb") as one:
            assert one[bare].evaluations["n"].label == "refused"
            assert len(list(select(one, label="n=correct"))) == 3
        with open_store(folder, writable=True) as store:
            assert counts(store).labels == {"n": {"correct": 11, "refused": 1}}
            assert store.delete_evaluation(bare, "n")
            assert not store.delete_evaluation(bare, "n")
            assert not store.delete_evaluation("0" * 64, "n")

    def test_arrays(self, folder: Path) -> None:
        with open_store(folder, writable=True) as store:
            entries = list(store.entries())
            scores = [
                Derived(entry.key, "score/p", np.full(4, index, np.float32))
                for index, entry in enumerate(entries)
            ]
            assert store.put_derived(scores) == 12
            assert [e.scores["p"][0] for e in store.entries()] == list(range(12))
            assert statistics(store).arrays["score/p"].number == 12

    def test_deleting(self, folder: Path) -> None:
        with open_store(folder, writable=True) as store:
            keys = [entry.key for entry in store.entries()]
            store.delete(keys[1])
            assert store.delete_all([*keys[:3], "0" * 64]) == 2
            assert len(store) == 9

    def test_read_only(self, folder: Path) -> None:
        store = open_store(folder)
        key = next(iter(store))
        with pytest.raises(StoreReadOnly):
            store.put_evaluation(key, name="n", label="correct")
        with pytest.raises(StoreReadOnly):
            store.delete(key)


class TestHalves:
    def test_are_joined(self, halves: Path, tmp_path: Path) -> None:
        store = open_store(halves)
        assert [entry.status for entry in store.entries()] == ["complete"] * 4 + ["pending"]
        same = whole(tmp_path / "whole.lmdb")
        for entry, other in zip(store.entries(), same.entries(), strict=False):
            assert np.array_equal(entry.activations, other.activations)
            assert np.array_equal(entry.response_activations, other.response_activations)
        keys = [entry.key for entry in store.entries()][:4]
        both = [store.read(keys), same.read([key.partition(":")[2] for key in keys])]
        assert np.array_equal(both[0].values, both[1].values)
        means = [
            one.read(k, position="response_mean")
            for one, k in ((store, keys), (same, [key.partition(":")[2] for key in keys]))
        ]
        assert np.array_equal(*means)

    def test_are_counted(self, halves: Path) -> None:
        store = open_store(halves)
        found = statistics(store)
        assert found.statuses == {"complete": 4, "pending": 1}
        assert found.rows == 16
        assert counts(open_store(halves / "a.lmdb")).statuses == {"complete": 2, "pending": 3}
        assert [e.prompt for e in select(store, status="complete")] == ["r3", "r2", "r1", "r0"]
        assert [e.prompt for e in select(store, status="pending")] == ["r4"]
        assert [e.prompt for e in select(store, status="complete", limit=2, offset=1)] == [
            "r2",
            "r1",
        ]
        assert store.orphans() == ["r5-internal"]

    def test_without_rows(self, halves: Path) -> None:
        store = open_store(halves)
        waiting = store.for_request("r4")[0]
        with pytest.raises(RowsMissing, match="have not arrived"):
            store.read([waiting.key])
        writer = StoreWriter(halves / "b.lmdb", role="worker of engine 1")
        writer.put_capture(make_capture("r4", [make_segment("r4", 4)]))
        writer.close()
        assert store.for_request("r4")[0].status == waiting.status == "complete"
        assert len(store.read([waiting.key]).values) == 4

    def test_a_worker_that_never_met_the_request(self, halves: Path) -> None:
        """It writes that there are no rows; those of another host are still the entry's."""
        writer = StoreWriter(halves / "a.lmdb", role="worker of engine 0")
        writer.put_capture(replace(make_capture("r1", []), dropped="it never ran"))
        writer.close()
        store = open_store(halves)
        own, key = open_store(halves / "a.lmdb"), store.for_request("r1")[0].key
        assert own.for_request("r1")[0].status == "dropped"
        assert store.for_request("r1")[0].status == "complete"
        assert counts(store).statuses == {"complete": 4, "pending": 1}
        assert len(list(select(store, status="complete"))) == 4
        assert len(store.read([key]).values) == 4

    def test_rows_that_come_after_a_record_that_there_are_none(self, halves: Path) -> None:
        """A reader that has asked in between finds them."""
        near = StoreWriter(halves / "a.lmdb", role="worker of engine 0")
        near.put_capture(replace(make_capture("r4", []), dropped="it never ran"))
        near.close()
        store = open_store(halves)
        key = store.for_request("r4")[0].key
        with pytest.raises(RowsMissing, match="it never ran"):
            store.read([key])
        far = StoreWriter(halves / "b.lmdb", role="worker of engine 1")
        far.put_capture(make_capture("r4", [make_segment("r4", 4)]))
        far.close()
        assert len(store.read([key]).values) == 4

    def test_rows_of_an_entry_are_nobody_elses(self, folder: Path, halves: Path) -> None:
        """An entry of one store takes no rows that have an entry in their own."""
        writer = StoreWriter(folder / "h0.lmdb", role="test")
        writer.put_entry(make_document("1-2", prompt="again"))
        writer.close()
        store = open_store(folder)
        assert [entry.status for entry in store.for_request("1-2")] == ["pending", "complete"]

    def test_labels_and_deletion(self, halves: Path) -> None:
        with open_store(halves, writable=True) as store:
            key = store.for_request("r3")[0].key
            store.put_evaluation(key, name="n", label="correct")
            assert store.dataset  # the method is there, as in one store
            store.delete(key)
            assert store.orphans() == ["r5-internal"]
            assert store.delete_all([store.for_request("r1")[0].key]) == 1
            assert store.orphans() == ["r5-internal"]


class TestFeed:
    def test_of_one_and_of_several(self, folder: Path) -> None:
        for where in (folder / "h0.lmdb", folder):
            store = open_store(where)
            feed = Feed(store)
            found: list[int] = []
            while some := feed.written(found[-1] + 1 if found else 0, 3):
                found += some
            assert len(found) == len(store)
            everything = {store.at(_place(number)).key for number in found}  # type: ignore[union-attr]
            assert everything == set(store)
            mark = feed.last()
            with open_store(where, writable=True) as writable:
                for key in list(writable)[-2:]:
                    writable.put_evaluation(key, name="n", label="correct")
            first = feed.changed(mark, 1)
            assert first is not None
            assert len(first.sequences) == 1
            rest = feed.changed(first.mark, 10)
            assert rest is not None
            assert (
                {store.at(_place(n)).key for n in (*first.sequences, *rest.sequences)}
                == set(  # type: ignore[union-attr]
                    list(store)[-2:]
                )
            )
            assert rest.mark == feed.last()

    def test_another_set_of_stores(self, folder: Path) -> None:
        all_three, two = open_store(folder), open_store([folder / "h0.lmdb", folder / "h1.lmdb"])
        assert Feed(all_three).identity() != Feed(two).identity()
        assert Feed(two).changed(Feed(all_three).last(), 10) is None


@pytest.mark.parametrize(
    "words", [("prune", "--older-than", "0s", "--yes"), ("compact",), ("upgrade",)]
)
def test_a_broken_store_keeps_no_other_from_upkeep(folder: Path, words: tuple[str, ...]) -> None:
    os.truncate(folder / "h1.lmdb" / "data.mdb", 5000)
    name, *options = words
    done = strict(command(name, folder, *options, "--json", codes=(1,)))["stores"]
    first, broken, last = (done[str(folder / f"h{host}.lmdb")] for host in range(3))
    assert "has been cut off" in broken["problem"]
    assert "problem" not in {*first, *last}
    if name == "prune":
        assert first["removed"] == last["removed"] == 4
    assert "h2.lmdb" in command(name, folder, *options, codes=(1,))


def _place(sequence: int) -> bytes:
    from activation_logging.store import layout

    return layout.place(0, sequence)
