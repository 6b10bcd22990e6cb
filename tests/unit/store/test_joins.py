"""What merges, repairs and checks, of entries and rows that lie in two stores."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.errors import SettingsError
from activation_logging.store import StoreWriter
from activation_logging.store.merge import merge
from activation_logging.store.repair import find_unmatched, remove_unmatched
from activation_logging.verify import verify
from tests.fixtures.answers import make_capture, make_document, make_segment, put_answer
from tests.fixtures.halves import make_halves
from tests.fixtures.planted import build
from tests.fixtures.readers import command, strict


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """The stores of a server on two hosts."""
    return make_halves(tmp_path / "h")


class TestMerge:
    def test_gives_whole_entries(self, halves: Path, tmp_path: Path) -> None:
        paths = [halves / "a.lmdb", halves / "b.lmdb"]
        for number, sources in enumerate((paths, paths[::-1], [halves])):
            target = tmp_path / f"all{number}.lmdb"
            done = merge(sources, target)
            assert (done.entries, done.joined, done.rows_without_entry) == (5, 2, 1)
            again = merge(sources, target)
            assert (again.entries, again.duplicates, again.joined) == (0, 5, 0)
            with open_store(target) as store, open_store(halves) as both:
                assert [entry.status for entry in store.entries()] == ["complete"] * 4 + ["pending"]
                for entry, other in zip(store.entries(), both.entries(), strict=True):
                    assert entry.key == other.stored_key
                    if entry.status == "complete":
                        assert np.array_equal(entry.activations, other.activations)
                assert [problem.key for problem in verify(store).problems] == [
                    store.for_request("r4")[0].key
                ]

    def test_one_after_the_other(self, halves: Path, tmp_path: Path) -> None:
        target = tmp_path / "all.lmdb"
        assert merge([halves / "a.lmdb"], target).entries == 5
        late = merge([halves / "b.lmdb"], target)
        assert (late.entries, late.joined, late.rows_without_entry) == (0, 2, 1)
        with open_store(target) as store:
            assert sum(entry.status == "complete" for entry in store.entries()) == 4

    def test_rows_before_none(self, halves: Path, tmp_path: Path) -> None:
        """The near worker never met the request and says so; the far one has its rows."""
        near = StoreWriter(halves / "a.lmdb", role="worker of engine 0")
        near.put_capture(replace(make_capture("r1", []), dropped="it never ran"))
        near.close()
        assert merge([halves], tmp_path / "all.lmdb").joined == 2
        with open_store(tmp_path / "all.lmdb") as store:
            assert store.for_request("r1")[0].status == "complete"

    def test_a_folder_with_the_target_in_it(self, halves: Path) -> None:
        for entries in (5, 0):
            assert merge([halves], halves / "all.lmdb").entries == entries
        with pytest.raises(SettingsError, match="is a folder of stores"):
            merge([halves / "a.lmdb"], halves)
        assert not (halves / "data.mdb").exists()
        with pytest.raises(SettingsError, match="not a valid source"):
            merge([halves, halves / "all.lmdb"], halves / "all.lmdb")


class TestRepair:
    def test_of_the_folder(self, halves: Path) -> None:
        shown = command("repair", halves, "--yes")
        assert "a.lmdb" in shown
        assert "r5-internal" in shown
        with open_store(halves) as store:
            assert [entry.status for entry in store.entries()] == ["complete"] * 4
            assert store.orphans() == []
            assert verify(store).ok

    @pytest.mark.parametrize("name", ["a.lmdb", "b.lmdb"])
    def test_of_one_beside_the_other(self, halves: Path, name: str) -> None:
        command("repair", halves / name, "--yes", "--pending")
        with open_store(halves) as store:
            assert sum(entry.status == "complete" for entry in store.entries()) == 4

    def test_of_rows_whose_host_has_no_entries(self, halves: Path) -> None:
        """Their entries lie in a store that is not here."""
        alone = halves.parent / "alone" / "b.lmdb"
        shutil.copytree(halves / "b.lmdb", alone)
        assert "3 may yet be completed" in command("repair", alone, "--yes")
        with open_store(alone) as store:
            assert len(store.orphans()) == 3

    def test_beside_one_that_cannot_be_read(self, halves: Path) -> None:
        (halves / "b.lmdb" / "data.mdb").write_bytes(b"?" * 8192)
        assert "3 may yet be completed" in command("repair", halves, "--yes")
        with open_store(halves / "a.lmdb") as store:
            assert len(store) == 5

    def test_a_server_that_still_runs_on_the_other_host(self, halves: Path) -> None:
        far = StoreWriter(halves / "b.lmdb", role="worker of engine 1")
        far.put_capture(make_capture("r6", [make_segment("r6", 4)]))
        far.flush()
        try:
            with open_store(halves) as store:
                a, b = store.parts
                assert [found.final for found in find_unmatched(a, [b])] == [False]
        finally:
            far.close()
        with open_store(halves) as store:
            a, b = store.parts
            assert [found.final for found in find_unmatched(a, [b])] == [True]

    def test_one_store_alone_is_repaired_as_ever(self, tmp_path: Path) -> None:
        writer = StoreWriter(tmp_path / "d" / "one.lmdb", role="test")
        put_answer(writer, "x")
        writer.put_entry(make_document("y"))
        writer.put_capture(make_capture("z", [make_segment("z", 4)]))
        writer.close()
        (tmp_path / "d" / "notes").mkdir()
        command("repair", tmp_path / "d" / "one.lmdb", "--yes")
        with open_store(tmp_path / "d" / "one.lmdb") as store:
            assert [entry.request_id for entry in store.entries()] == ["x"]
            assert verify(store).ok


class TestManyAtOnce:
    """What is done to hundreds of halves takes a few commits, each of which waits for the disk."""

    @pytest.fixture
    def crowd(self, tmp_path: Path) -> Path:
        folder = tmp_path / "crowd"
        head = StoreWriter(folder / "a.lmdb", role="front end")
        far = StoreWriter(folder / "b.lmdb", role="worker of engine 1")
        for number in range(300):
            head.put_entry(make_document(f"r{number}", prompt=f"r{number}"))
            far.put_capture(make_capture(f"r{number}", [make_segment(f"r{number}", 4)]))
        head.close()
        far.close()
        return folder

    def test_merge(self, crowd: Path, tmp_path: Path) -> None:
        assert merge([crowd], tmp_path / "all.lmdb").joined == 300
        with open_store(tmp_path / "all.lmdb") as store:
            assert {entry.status for entry in store.entries()} == {"complete"}
            assert len(next(store.entries()).activations) == 4
            assert store.environment.last_commit < 15

    def test_delete(self, crowd: Path) -> None:
        with open_store(crowd, writable=True) as store:
            before = sum(part.environment.last_commit for part in store.parts)
            assert store.delete_all(list(store)) == 300
            assert (len(store), store.orphans()) == (0, [])
            assert sum(part.environment.last_commit for part in store.parts) - before < 10

    @pytest.mark.parametrize("name", ["a.lmdb", "b.lmdb"])
    def test_repair(self, crowd: Path, tmp_path: Path, name: str) -> None:
        shutil.copytree(crowd / name, tmp_path / "alone" / name)
        with open_store(tmp_path / "alone" / name, writable=True) as store:
            before = store.environment.last_commit
            assert remove_unmatched(store, find_unmatched(store)) == 300
            assert store.environment.last_commit - before < 5
            assert list(find_unmatched(store)) == []


class TestCommands:
    def test_that_read(self, halves: Path) -> None:
        paths = sorted(halves.iterdir())
        listed = [strict(command("ls", *one, "--json")) for one in ([halves], paths)]
        assert listed[0] == listed[1]
        assert [entry["status"] for entry in listed[0]] == ["pending"] + ["complete"] * 4
        found = strict(command("stats", halves / "*.lmdb", "--json"))
        assert found["stores"]["b.lmdb"]["entries"] == 0
        assert found["statuses"] == {"complete": 4, "pending": 1}
        assert "a.lmdb" in command("stats", halves)
        shown = strict(command("show", halves, "r1", "--json"))
        assert shown["key"].startswith("a.lmdb:")
        assert strict(command("show", halves, shown["key"][:16], "--json"))["key"] == shown["key"]

    def test_verify(self, halves: Path) -> None:
        found = strict(command("verify", halves, "--json", codes=(1,)))
        assert found["statuses"] == {"complete": 4, "pending": 1}
        assert len(found["problems"]) == 2
        assert {problem["key"][:7] for problem in found["problems"]} == {"a.lmdb:", "b.lmdb:"}
        (halves / "c.lmdb").mkdir()
        (halves / "c.lmdb" / "data.mdb").write_bytes(b"?" * 8192)
        found = strict(command("verify", halves, "--json", codes=(1,)))
        assert found["entries"] == 5
        assert any("c.lmdb" in problem["key"] for problem in found["problems"])

    def test_that_change_a_file(self, halves: Path) -> None:
        done = strict(command("compact", halves, "--json"))
        assert list(done["stores"]) == [str(halves / "a.lmdb"), str(halves / "b.lmdb")]
        done = strict(command("upgrade", halves, "--json"))
        assert all(one["version"] == 2 for one in done["stores"].values())
        refused = CliRunner().invoke(_app, ["prune", str(halves), "--max-size", "1MB"])
        assert "is several; name one of them" in str(refused.exception)
        done = strict(command("prune", halves, "--older-than", "1h", "--yes", "--json"))
        assert [one["removed"] for one in done["stores"].values()] == [2, 0]

    def test_delete(self, halves: Path) -> None:
        command("delete", halves, "--where", "status=complete", "--yes")
        with open_store(halves) as store:
            assert [entry.request_id for entry in store.entries()] == ["r4"]
            assert store.orphans() == ["r5-internal"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hosts that were asked some of the same questions, and their answers in one store."""
    folder = tmp_path_factory.mktemp("learning")
    build(folder / "hosts" / "a.lmdb", n=20, prefix="a")
    build(folder / "hosts" / "b.lmdb", n=24, prefix="b")
    merge([folder / "hosts"], folder / "one.lmdb")
    return folder


class TestLearning:
    def test_the_same_dataset(self, planted: Path) -> None:
        many, one = (
            open_store(planted / "hosts").dataset(),
            open_store(planted / "one.lmdb").dataset(),
        )
        assert len(many) == 44
        assert np.array_equal(many.X, one.X)
        assert np.array_equal(many.y, one.y)
        assert np.array_equal(many.groups, one.groups)
        # Answers to one prompt are never on both sides of a split, whoever gave them.
        assert len(set(many.groups)) == 24

    def test_workers_of_torch(self, planted: Path) -> None:
        dataset = open_store(planted / "hosts").dataset()
        there = pickle.loads(pickle.dumps(dataset.torch()))
        assert np.array_equal(there[43][0].numpy(), dataset.X[43])

    def test_an_export(self, planted: Path, tmp_path: Path) -> None:
        command("export", planted / "hosts", "-o", tmp_path / "out", "-f", "npy")
        lines = (tmp_path / "out" / "entries.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 44
        times = [record["created"] for record in records]
        assert times == sorted(times)
