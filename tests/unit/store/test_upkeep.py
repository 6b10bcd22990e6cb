"""Deleting, compacting, merging, repairing: nothing that anybody still needs is lost."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.errors import SettingsError, StoreInUse, StoreNotFound
from activation_logging.records import SegmentSlice
from activation_logging.store import StoreWriter
from activation_logging.store.compact import COPY, compact
from activation_logging.store.merge import merge
from activation_logging.store.query import parse_conditions, select
from activation_logging.store.repair import check_segments, page_problems, remove_unreferenced
from activation_logging.verify import verify
from tests.fixtures.answers import (
    NUM_LAYERS,
    make_capture,
    make_document,
    make_rows,
    make_segment,
    put_answer,
    segment_id,
)
from tests.unit.store.programs import ROOT, command


def write(path: Path, names: list[str], **fields: object) -> None:
    """A store with an answer per name, whose prompt is the name's first letter."""
    writer = StoreWriter(path, role="test")
    for name in names:
        put_answer(writer, name, prompt=name[0], **fields)
    writer.close()


def contents(path: Path) -> dict[str, tuple[str, bytes, dict[str, str], tuple[str, ...]]]:
    """What a store holds, by key: answer, rows, tags and labels."""
    with open_store(path) as store:
        assert verify(store).ok
        return {
            key: (
                store[key].response,
                store[key].activations.tobytes(),
                store[key].tags,
                tuple(store[key].evaluations),
            )
            for key in store
        }


def label(path: Path, name: str, response: str, verdict: str = "correct") -> None:
    with open_store(path, writable=True) as store:
        (entry,) = (found for found in store.entries() if found.response == response)
        store.put_evaluation(entry.key, name=name, label=verdict)  # type: ignore[arg-type]


class TestCompact:
    def test_gives_back_what_was_deleted(self, store_path: Path) -> None:
        write(store_path, [f"{letter}{n}" for letter in "abc" for n in range(60)])
        with open_store(store_path, writable=True) as store:
            assert store.delete_all(list(store)[::2]) == 90
            assert store.delete_all(["0" * 64]) == 0
        del store
        before = contents(store_path)
        size = (store_path / "data.mdb").stat().st_size
        done = compact(store_path)
        assert done.before == size
        assert done.after == (store_path / "data.mdb").stat().st_size < size
        assert contents(store_path) == before
        assert sorted(found.name for found in store_path.iterdir()) == ["data.mdb", "lock.mdb"]
        assert compact(store_path).after == done.after
        write(store_path, ["later"])
        assert len(contents(store_path)) == len(before) + 1

    def test_refuses_while_it_is_open(self, store_path: Path) -> None:
        write(store_path, ["a"])
        before = (store_path / "data.mdb").read_bytes()
        with open_store(store_path) as store:
            kept = next(store.entries()).activations
            with pytest.raises(StoreInUse, match="in this process"):
                compact(store_path)
        del store
        gc.collect()
        other = subprocess.Popen(
            command("hold_open", store_path),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUse, match=f"process {other.pid};"):
            compact(store_path)
        other.communicate()
        assert (store_path / "data.mdb").read_bytes() == before
        compact(store_path)
        assert np.array_equal(kept, make_rows("a", NUM_LAYERS, 4))
        assert len(contents(store_path)) == 1

    def test_a_kill_leaves_a_whole_store(self, store_path: Path) -> None:
        """What an earlier attempt left is no hindrance, and no part of the store."""
        write(store_path, [f"a{n}" for n in range(50)])
        (store_path / COPY).write_bytes(b"half a copy")
        assert len(contents(store_path)) == 50
        gc.collect()
        compact(store_path)
        assert not (store_path / COPY).exists()
        assert len(contents(store_path)) == 50

    def test_who_opens_it_meanwhile_waits(self, store_path: Path) -> None:
        """Labels put by a process that keeps coming back are all there, on the new file."""
        write(store_path, [f"a{n}" for n in range(200)])
        other = subprocess.Popen(command("come_and_go", store_path, 25), cwd=ROOT)
        done = 0
        while other.poll() is None:
            with suppress(StoreInUse):
                compact(store_path)
                done += 1
        assert other.returncode == 0
        assert done
        with open_store(store_path) as store:
            assert len(next(store.entries()).evaluations) == 25
        assert page_problems(store_path) == []

    def test_what_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound):
            compact(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


class TestMerge:
    def test_keys_repeats_tags_and_labels(self, tmp_path: Path) -> None:
        a, b, c = (tmp_path / name for name in "abc")
        write(a, ["x0", "x1", "y0"], tags={"from": "a"})
        write(b, ["x2", "z0"], tags={"from": "b"})
        with open_store(a, writable=True) as store:
            store.delete(store.for_prompt("x")[0].key)
        label(b, "judge", "answer x2")
        done = merge([a, b], c)
        assert (done.entries, done.duplicates, done.renumbered, done.labels) == (4, 0, 1, 1)
        with open_store(c) as store:
            answers = store.for_prompt("x")
            # The first source's keep their keys, gaps included.
            assert [e.key.partition("#")[2] for e in answers] == ["1", "2"]
            assert [e.response for e in answers] == ["answer x1", "answer x2"]
            assert [e.tags["from"] for e in store.entries()] == ["a", "a", "b", "b"]
            assert answers[1].evaluations["judge"].label == "correct"
            with open_store(a) as first, open_store(b) as second:
                assert set(store.writers()) == {*first.writers(), *second.writers()}
        assert len(contents(c)) == 4

    def test_nothing_comes_twice(self, tmp_path: Path) -> None:
        a, b, c = (tmp_path / name for name in "abc")
        # The same ids of captures and segments in both, as counters give them.
        write(a, ["x0", "y0"], logprobs=[float("nan"), -1.0])
        write(b, ["x0", "y0"], model="another")
        assert merge([a, a, b], c).duplicates == 2
        before = contents(c)
        assert len(before) == 4
        again = merge([b, a], c)
        assert (again.entries, again.duplicates, again.completed) == (0, 4, 0)
        assert contents(c) == before
        write(a, ["z0"])
        label(a, "judge", "answer y0")
        more = merge([a], c)
        assert (more.entries, more.duplicates, more.labels) == (1, 2, 1)

    def test_rows_of_the_same_name_stay_apart(self, tmp_path: Path) -> None:
        a, b, c = (tmp_path / name for name in "abc")
        write(a, ["x0"])
        writer = StoreWriter(b, role="test")
        segment = make_segment("x0", 4)
        segment.rows[NUM_LAYERS][:] = 7
        writer.put_capture(make_capture("x0", [segment]))
        writer.put_entry(make_document("x0", prompt="other"))
        writer.close()
        merge([a, b], c)
        merge([b], c)
        with open_store(c) as store:
            assert np.array_equal(
                store.for_prompt("x")[0].activations, make_rows("x0", NUM_LAYERS, 4)
            )
            assert (store.for_prompt("other")[0].activations == 7).all()
            assert store.snapshot().count(b"~segments") == 2
            assert verify(store).ok

    def test_shared_rows_stay_shared(self, tmp_path: Path) -> None:
        a, c = tmp_path / "a", tmp_path / "c"
        writer = StoreWriter(a, role="test")
        put_answer(writer, "first")
        for number in range(5):
            own = make_segment(f"own{number}", 1)
            slices = [SegmentSlice(segment_id("first"), 0, 3), SegmentSlice(own.id, 0, 1)]
            writer.put_capture(make_capture(f"next{number}", [own], slices))
            writer.put_entry(make_document(f"next{number}"))
        writer.close()
        merge([a], c)
        with open_store(c, writable=True) as store, open_store(a) as source:
            assert store.snapshot().count(b"~rows") == source.snapshot().count(b"~rows") == 6
            assert verify(store).ok
            store.delete_all(list(store)[:-1])
            (left,) = store.entries()
            assert left.activations.shape[0] == 4
            assert verify(store).ok

    def test_rows_that_came_later(self, tmp_path: Path) -> None:
        """From a server that still runs: merged too early, and again."""
        a, c = tmp_path / "a", tmp_path / "c"
        writer = StoreWriter(a, role="test")
        writer.put_entry(make_document("x"))
        writer.put_capture(make_capture("y", [make_segment("y", 4)]))
        writer.flush()
        early = merge([a], c)
        assert (early.entries, early.rows_without_entry) == (1, 1)
        with open_store(c) as store:
            assert next(store.entries()).status == "pending"
        writer.put_capture(make_capture("x", [make_segment("x", 4)]))
        writer.put_entry(make_document("y"))
        writer.close()
        late = merge([a], c)
        assert (late.entries, late.duplicates, late.completed) == (1, 1, 1)
        with open_store(c) as store:
            assert [entry.status for entry in store.entries()] == ["complete"] * 2
            assert all("stopped" in record for record in store.writers().values())

    def test_while_both_are_written(self, tmp_path: Path) -> None:
        a, c = tmp_path / "a", tmp_path / "c"
        writers = [StoreWriter(a, role="test"), StoreWriter(c, role="test")]
        for number in range(300):
            put_answer(writers[0], f"a{number}", prompt=f"{number}")
        writers[0].flush()

        def go_on() -> None:
            for number in range(300, 600):
                for name, writer in zip("ac", writers, strict=True):
                    put_answer(writer, f"{name}{number}", prompt=f"{number}")

        busy = threading.Thread(target=go_on)
        busy.start()
        merge([a], c)
        busy.join()
        for writer in writers:
            writer.close()
        merge([a], c)
        with open_store(c) as store:
            assert len(store) == 900
            assert verify(store).ok

    def test_what_cannot_be_merged(self, tmp_path: Path) -> None:
        write(tmp_path / "a", ["x"])
        with pytest.raises(SettingsError, match="not a valid source"):
            merge([tmp_path / "a"], tmp_path / "a" / ".." / "a")
        with pytest.raises(StoreNotFound):
            merge([tmp_path / "a", tmp_path / "nothing"], tmp_path / "c")
        assert not (tmp_path / "c").exists()


class TestLeftovers:
    def test_rows_of_a_killed_writer_that_nobody_uses(self, store_path: Path) -> None:
        """The entry was deleted while its writer ran, which was then killed."""
        done = subprocess.run(command("delete_and_die", store_path), cwd=ROOT, check=False)
        assert done.returncode == 1
        with open_store(store_path, writable=True) as store:
            (left,) = check_segments(store).unreferenced
            assert left.nbytes == make_rows("one", NUM_LAYERS, 4).nbytes
            (problem,) = verify(store).problems
            assert problem.key == left.segment.hex()
            assert "repair" in problem.what
        found = CliRunner().invoke(_app, ["repair", str(store_path), "--yes"])
        assert found.exit_code == 0, found.output
        with open_store(store_path) as store:
            assert verify(store).ok
            assert store.snapshot().count(b"~rows") == store.snapshot().count(b"~segments") == 1

    def test_those_of_a_running_writer_stay(self, store_path: Path) -> None:
        writer = StoreWriter(store_path, role="test")
        name = bytes.fromhex(writer.id) + b"1"
        segment = make_segment("r", 4)
        segment = type(segment)(name, segment.rows, segment.nbytes)
        writer.put_capture(make_capture("r", [segment]))
        writer.put_entry(make_document("r"))
        writer.flush()
        with open_store(store_path, writable=True) as store:
            store.delete(next(iter(store)))
            assert check_segments(store).unreferenced == []
            assert remove_unreferenced(store, [name]) == 0
            assert store.snapshot().count(b"~rows") == 1
            writer.close()
            assert store.snapshot().count(b"~rows") == 0

    def test_a_wrong_count_is_named_and_used_rows_stay(self, store_path: Path) -> None:
        write(store_path, ["x", "y"])
        with open_store(store_path, writable=True) as store:
            env = store.environment
            with env.write() as txn:
                txn.put(segment_id("x"), b"0", db=env.database(b"~segments"))
                txn.put(segment_id("y"), b"7", db=env.database(b"~segments"))
            found = check_segments(store)
            assert found.unreferenced == []
            assert [(wrong.counted, wrong.found) for wrong in found.miscounts] == [(0, 1), (7, 1)]
            assert remove_unreferenced(store, [segment_id("y")]) == 0
            assert len(verify(store).problems) == 2


class TestConditions:
    def test_they_choose_as_ls_does(self, store_path: Path) -> None:
        write(store_path, ["x0", "x1", "y0"], tags={"split": "a=b"})
        label(store_path, "judge", "answer x1")
        with open_store(store_path) as store:
            for texts, number in (
                (["model=model"], 3),
                (["model=other"], 0),
                (["status=complete", "tag=split=a=b"], 3),
                (["tag=split=a"], 0),
                (["label=judge=correct"], 1),
                (["label=correct", "model=org/model"], 1),
            ):
                assert len(list(select(store, **parse_conditions(texts)))) == number

    @pytest.mark.parametrize(
        "text", ["", "x=1", "model", "model=", "tag=x", "status=a=", "label=x"]
    )
    def test_what_makes_no_sense(self, text: str, store_path: Path) -> None:
        write(store_path, ["x"])
        with open_store(store_path) as store, pytest.raises(SettingsError):
            select(store, **parse_conditions([text]))
        with pytest.raises(SettingsError, match="twice"):
            parse_conditions(["model=a", "model=b"])


class TestCommands:
    def run(self, *arguments: object, code: int = 0) -> str:
        found = CliRunner().invoke(_app, [*map(str, arguments)], catch_exceptions=False)
        assert found.exit_code == code, found.output
        return found.stdout

    def test_delete(self, store_path: Path) -> None:
        write(store_path, ["x0", "x1", "y0"])
        label(store_path, "judge", "answer x1")
        chosen = ("delete", store_path, "--where", "label=correct")
        assert "1 entries would be deleted" in self.run(*chosen, "--dry-run")
        assert len(contents(store_path)) == 3
        done = json.loads(self.run(*chosen, "--yes", "--json"))
        assert (len(done["chosen"]), done["deleted"]) == (1, 1)
        assert "nothing matches" in self.run(*chosen, "--yes")
        assert len(contents(store_path)) == 2
        with pytest.raises(SettingsError, match="either keys, or filters"):
            self.run("delete", store_path, "--yes")

    def test_merge_and_compact(self, tmp_path: Path) -> None:
        write(tmp_path / "a", ["x0"])
        write(tmp_path / "b", ["x1"])
        both = (tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c")
        assert json.loads(self.run("merge", *both, "--json"))["entries"] == 2
        assert "duplicates" in self.run("merge", *both)
        done = json.loads(self.run("compact", tmp_path / "c", "--json"))
        assert done["after"] <= done["before"]
        assert "now" in self.run("compact", tmp_path / "c")
        assert "all is well" in self.run("verify", tmp_path / "c")

    def test_an_unreadable_entry_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "a", ["x0", "y0"])
        with open_store(tmp_path / "a", writable=True) as store:
            env = store.environment
            with env.write() as txn:
                txn.put(store.for_prompt("x")[0].key.encode(), b"[]", db=env.database(b""))
        out = self.run("merge", tmp_path / "a", "-o", tmp_path / "c", "--json", code=1)
        assert next(iter(json.loads(out)["unreadable"].values())).endswith("not a JSON object")
        assert len(contents(tmp_path / "c")) == 1


def test_another_users_store_is_not_taken_over(store_path: Path) -> None:
    """A copy would belong to who makes it, and its owner's server could write no more."""
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    write(store_path, ["x"])
    for found in (store_path, *store_path.iterdir()):
        os.chown(found, 4321, 4321)
    gc.collect()
    compact(store_path)
    assert (store_path / "data.mdb").stat().st_uid == 4321


def test_no_room_for_the_copy(store_path: Path) -> None:
    write(store_path, [f"a{n}" for n in range(100)])
    gc.collect()
    done = subprocess.run(
        command("compact_with_a_small_limit", store_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "StoreError\n", done.stderr
    assert sorted(found.name for found in store_path.iterdir()) == ["data.mdb", "lock.mdb"]
    assert len(contents(store_path)) == 100
