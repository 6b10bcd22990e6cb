"""The index: whatever happens to a store, it finds what a walk through all entries finds."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from activation_logging import Evaluation, Store, open_store
from activation_logging.cli import _app
from activation_logging.errors import EntryNotFound, SettingsError, StoreInUse
from activation_logging.records import LABELS, SPAN_LABELS, STATUSES
from activation_logging.store import StoreWriter, layout
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.index import Index
from activation_logging.store.merge import merge
from activation_logging.store.query import Filter, parse_time, select
from activation_logging.store.statistics import statistics
from activation_logging.store.upgrade import index_problems, upgrade
from activation_logging.verify import verify
from bench.version_1 import make_version_1
from tests.fixtures.answers import make_capture, make_document, make_segment
from tests.unit.store.programs import ROOT, command

MODELS = ("org/one", "one", "two", "other/two", "größe \N{SNOWMAN}", "m" * 600)
TAGS = (
    {},
    {"set": "a"},
    {"set": "b", "id": "1"},
    {"set": "a", "id": "\0"},
    {"x": "y" * 900, 'quote"d': "[]"},
)
NAMES = ("refusal", "other", 'a"b', "\N{SNOWMAN}")
TIMES = (1_700_000_000.0, 1_700_000_000.5, 1_700_003_600, 1_700_090_000.25)


def make_history(path: Path, seed: int, steps: int = 120) -> None:
    """Random answers of every status, labels that change, and deletions."""
    chance = random.Random(seed)
    writer = StoreWriter(path, role="test")
    waiting: list[str] = []
    for step in range(steps):
        name = f"{seed}-{step}"
        document = make_document(
            name,
            prompt=f"prompt {chance.randrange(30)}",
            model=chance.choice(MODELS),
            tags=chance.choice(TAGS),
            created=chance.choice(TIMES),
            finish_reason=chance.choice(("stop", "length", "abort")),
        )
        if chance.random() < 0.1:
            document["error"] = "the engine failed"
        count = chance.choice((4, 4, 4, 2))
        segment = make_segment(f"s{step}", count)
        capture = make_capture(name, [segment])
        halves = [lambda d=document: writer.put_entry(d), lambda c=capture: writer.put_capture(c)]
        kind = chance.random()
        if kind < 0.1:
            halves[1] = lambda c=capture: writer.put_capture(replace(c, dropped="no room"))
        elif kind < 0.2:
            bare = replace(capture, segments=(), slices=(), unkept="not wanted")
            halves[1] = lambda c=bare: writer.put_capture(c)
        chance.shuffle(halves)
        halves[0]()
        if kind > 0.8:
            waiting.append(name)
        else:
            halves[1]()
        if chance.random() < 0.3:
            writer.flush()
            change(path, chance)
    # Rows that come a second time take the place of the first.
    for name in chance.sample(waiting, len(waiting) // 2):
        for count in (2, 4):
            segment = make_segment(f"r{count}{name}"[:16], count)
            writer.put_capture(make_capture(name, [segment]))
            writer.flush()
    writer.close()
    change(path, chance)


def change(path: Path, chance: random.Random) -> None:
    """Label some entries, perhaps anew, and delete one."""
    with open_store(path, writable=True) as store:
        keys = list(store)
        for key in chance.sample(keys, min(len(keys), 8)):
            store.put_evaluation(
                key,
                name=chance.choice(NAMES),
                label=chance.choice(LABELS),
                judge=chance.choice(("rules", "probe", None)),
                spans=[
                    {"start": n, "end": n + 3, "label": chance.choice(SPAN_LABELS)}
                    for n in range(chance.randrange(4))
                ],
            )
        if keys and chance.random() < 0.5:
            store.delete(chance.choice(keys))


def conditions() -> Iterator[dict[str, Any]]:
    """One filter of every kind, and some together."""
    yield {}
    for model in ("one", "two", "org/one", "nobody", *MODELS[-2:]):
        yield {"model": model}
    for status in STATUSES:
        yield {"status": status}
        yield {"status": status, "model": "one"}
    for label in LABELS:
        yield {"label": label}
        for name in NAMES:
            yield {"label": f"{name}={label}", "tags": {"set": "a"}}
    for name in NAMES:
        yield {"evaluator": name, "since": TIMES[1], "until": TIMES[3]}
    for tags in (*TAGS, {"set": "c"}, {"": ""}):
        yield {"tags": tags}
    yield {"since": TIMES[1]}
    yield {"until": TIMES[1], "status": "complete", "label": "correct", "tags": {"set": "b"}}
    yield {"since": TIMES[2], "until": TIMES[2]}


def assert_index_finds_what_a_walk_finds(store: Store) -> None:
    assert list(index_problems(store)) == []
    everything = sorted(store.entries(), key=lambda entry: (entry.created, entry.sequence))
    for wanted in conditions():
        walked = [entry.key for entry in everything if Filter(**wanted).matches(entry)]
        assert [e.key for e in select(store, **wanted, newest_first=False)] == walked, wanted
        newest = [entry.key for entry in select(store, **wanted)]
        assert newest == walked[::-1], wanted
        page = select(store, **wanted, offset=2, limit=3)
        assert [entry.key for entry in page] == newest[2:5], wanted


def counted(path: Path) -> dict[str, Any]:
    """What a store holds in numbers, without what depends on how it lies on the disk."""
    with open_store(path) as store:
        found = vars(statistics(store))
    kept = ("entries", "statuses", "models", "labels", "judges", "spans", "rows", "layer_bytes")
    return {name: found[name] for name in kept}


def documents(store: Store) -> dict[str, dict[str, Any]]:
    """All records, without what follows from the rest of them."""
    return {
        key: {n: value for n, value in store[key].document.items() if n not in layout.HEAD_ONLY}
        for key in store
    }


class TestIndexed:
    @pytest.mark.parametrize("seed", range(6))
    def test_finds_what_a_walk_finds(self, tmp_path: Path, seed: int) -> None:
        path = tmp_path / "store"
        make_history(path, seed)
        with open_store(path) as store:
            assert_index_finds_what_a_walk_finds(store)
            # Of one store alone none is elsewhere.
            assert {entry.status for entry in store.entries()} == {*STATUSES} - {"elsewhere"}

    def test_counts_what_a_walk_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        make_history(path, seed=7)
        with_index = counted(path)
        gc.collect()
        make_version_1(path)
        assert with_index == counted(path)
        assert with_index["models"]["m" * 600] > 0

    def test_merged(self, tmp_path: Path) -> None:
        for number in range(2):
            make_history(tmp_path / str(number), seed=number)
        make_version_1(tmp_path / "1")
        for _ in range(2):
            merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
        with open_store(tmp_path / "both") as store:
            assert_index_finds_what_a_walk_finds(store)

    def test_a_page_is_not_disturbed_by_what_is_deleted_meanwhile(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        make_history(path, seed=1)
        with open_store(path, writable=True) as store:
            entries = select(store)
            first = next(entries)
            others = [key for key in store if key != first.key]
            store.delete_all(others[::2])
            left = [entry.key for entry in entries]
            assert set(left) == set(others[1::2])

    def test_what_cannot_be_is_refused(self, tmp_path: Path) -> None:
        make_history(tmp_path / "store", seed=1, steps=3)
        with open_store(tmp_path / "store") as store:
            for wrong in ({"status": "done"}, {"label": "good"}, {"limit": -1}, {"offset": -1}):
                with pytest.raises(SettingsError):
                    select(store, **wrong)
        for text in ("yesterday", "5", "2026-13-01", "-2h", ""):
            with pytest.raises(SettingsError):
                parse_time(text)

    def test_damage_is_named_and_rebuilt(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        make_history(path, seed=3)
        gc.collect()
        with open_alone(path) as opened, opened.env.begin(write=True) as txn:
            index = opened.databases[layout.INDEX]
            cursor = txn.cursor(index)
            assert cursor.set_range(b"model\0")
            cursor.delete()
            txn.put(b'label\0["refusal","correct"]', layout.place(5.0, 10**6), db=index)
        with open_store(path) as store:
            problems = [what for _, what in index_problems(store)]
            assert len(problems) == 3, problems
            assert not verify(store).ok
        done = CliRunner().invoke(_app, ["upgrade", str(path), "--rebuild"])
        assert done.exit_code == 0, done.output
        with open_store(path) as store:
            assert_index_finds_what_a_walk_finds(store)


class TestLabelsInGroups:
    def test_many_at_once(self, tmp_path: Path) -> None:
        make_history(tmp_path / "store", seed=2)
        with open_store(tmp_path / "store", writable=True) as store:
            keys = list(store)
            pairs = [(key, Evaluation("group", "correct", 0.5)) for key in keys]
            mappings = [{"key": key, "name": "dict", "label": "refused"} for key in keys]
            assert store.put_evaluations([*pairs, *mappings]) == 2 * len(keys)
            assert all(entry.evaluations["group"].score == 0.5 for entry in store.entries())
            assert len(list(select(store, label="dict=refused"))) == len(keys)
            assert_index_finds_what_a_walk_finds(store)

    def test_one_that_cannot_be_leaves_none_of_its_group(self, tmp_path: Path) -> None:
        make_history(tmp_path / "store", seed=2)
        with open_store(tmp_path / "store", writable=True) as store:
            key = next(iter(store))
            good = {"key": key, "name": "group", "label": "correct"}
            with pytest.raises(EntryNotFound):
                store.put_evaluations([good, {**good, "key": "0" * 64}])
            with pytest.raises(ValueError, match="a pair of a key"):
                store.put_evaluations([good, {**good, "verdict": "x"}])
            with pytest.raises(ValueError, match="one of"):
                store.put_evaluations([good, {**good, "label": "good"}])
            assert "group" not in store[key].evaluations
            assert list(index_problems(store)) == []


class TestVersion1:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        make_history(tmp_path / "store", seed=4)
        gc.collect()
        make_version_1(tmp_path / "store")
        return tmp_path / "store"

    def test_stays_as_it_is_until_it_is_upgraded(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            before = documents(store)
            walked = {e.key for e in select(store, status="complete", tags={"set": "a"})}
            key = next(iter(walked))
            store.put_evaluation(key, name="late", label="correct")
            assert [entry.key for entry in select(store, label="late=correct")] == [key]
            assert len(store) == len(before)
        gc.collect()
        assert self.version(path)["version"] == 1
        done = CliRunner().invoke(_app, ["upgrade", str(path), "--json"])
        assert json.loads(done.stdout) == {"version": 1, "entries": len(before)}
        assert self.version(path)["version"] == 2
        with open_store(path) as store:
            assert documents(store) == before
            assert_index_finds_what_a_walk_finds(store)
            assert {e.key for e in select(store, status="complete", tags={"set": "a"})} == walked
        again = CliRunner().invoke(_app, ["upgrade", str(path)])
        assert "has its index already" in again.stdout

    def test_counts_are_the_same_afterwards(self, path: Path) -> None:
        before = counted(path)
        gc.collect()
        upgrade(path)
        assert counted(path) == before

    def test_is_not_upgraded_under_a_server(self, path: Path) -> None:
        process = subprocess.Popen(command("hold", path), cwd=ROOT, stdout=subprocess.PIPE)
        try:
            process.stdout.readline()
            with pytest.raises(StoreInUse, match=str(process.pid)):
                upgrade(path)
        finally:
            process.kill()
            process.communicate()
        assert self.version(path)["version"] == 1

    def test_killed_at_any_point(self, path: Path) -> None:
        with open_store(path) as store:
            before = documents(store)
        del store
        gc.collect()
        chance, finished = random.Random(0), 0
        for turn in range(8):
            process = subprocess.Popen(
                command("upgrade_slowly", path), cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for _ in range(chance.randrange(turn, turn + 8)):
                if not process.stdout.readline():
                    break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            finished += process.returncode == 0
            with open_store(path) as store:
                assert documents(store) == before
                is_listed = Index.of(store.snapshot()) is not None
                found = {entry.key for entry in select(store, status="complete")}
                assert found == {e.key for e in store.entries() if e.status == "complete"}
            del store
            gc.collect()
        assert not finished or is_listed
        upgrade(path)
        with open_store(path) as store:
            assert_index_finds_what_a_walk_finds(store)

    def test_servers_write_while_entries_are_listed(self, path: Path) -> None:
        process = subprocess.Popen(
            command("upgrade_slowly", path), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        # That it has started, and that the first are listed: from then on others may come in.
        assert process.stdout.readline() + process.stdout.readline() == "started\n5\n"
        make_history(path, seed=5)
        process.communicate(timeout=300)
        assert process.returncode == 0
        with open_store(path) as store:
            assert_index_finds_what_a_walk_finds(store)
            assert statistics(store).rows == sum(
                len(e.positions) for e in store.entries() if e.status == "complete"
            )

    @staticmethod
    def version(path: Path) -> dict[str, Any]:
        with open_alone(path) as opened, opened.env.begin() as txn:
            meta = opened.databases[layout.META]
            record: dict[str, Any] = json.loads(txn.get(layout.FORMAT_KEY, db=meta))
        return record
