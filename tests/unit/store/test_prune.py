"""Old rows go; labels, scores, shared rows and what is still being written stay."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.errors import RowsMissing, SettingsError
from activation_logging.keep import PRUNING, Keep
from activation_logging.records import SegmentSlice
from activation_logging.store import Derived, StoreWriter, layout
from activation_logging.store.compact import compact
from activation_logging.store.merge import merge
from activation_logging.store.prune import answer_scores, plan_prune, prune, why_kept
from activation_logging.store.query import select
from activation_logging.store.repair import page_problems
from activation_logging.store.statistics import statistics
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
from tests.unit.store.programs import LARGE, ROOT, command, put_large

DAY = 86_400.0
NOW = time.time()


def run(*arguments: object, code: int = 0, stdin: str | None = None) -> Any:
    found = CliRunner().invoke(_app, [*map(str, arguments)], catch_exceptions=False, input=stdin)
    assert found.exit_code == code, found.output
    return json.loads(found.stdout) if "--json" in arguments else found.output


def statuses(path: Path) -> dict[str, str]:
    with open_store(path) as store:
        assert verify(store).ok
        return {entry.request_id: entry.status for entry in store.entries()}


@pytest.fixture
def aged(store_path: Path) -> Path:
    """Answers of today to five days ago; the third is labelled, the fourth has a score and tags."""
    writer = StoreWriter(store_path, role="test")
    for days in range(6):
        fields: dict[str, Any] = {"tags": {"set": "x"}} if days == 3 else {}
        reason = "length" if days == 5 else "stop"
        created = NOW - days * DAY
        put_answer(
            writer, f"d{days}", prompt=f"d{days}", created=created, finish_reason=reason, **fields
        )
    writer.close()
    with open_store(store_path, writable=True) as store:
        keys = {entry.request_id: entry.key for entry in store.entries()}
        store.put_evaluation(keys["d2"], name="judge", label="correct")
        values = np.array([np.nan, 0.2, 0.1, 0.9], np.float32)
        store.put_derived([Derived(keys["d4"], "score/probe", values, {"digest": "x"})])
    return store_path


class TestCommand:
    def test_by_age(self, aged: Path) -> None:
        said = run("prune", aged, "--older-than", "36h", "--dry-run", "--json")
        assert (len(said["chosen"]), said["removed"]) == (4, 0)
        assert said["bytes"] == 4 * make_rows("d", NUM_LAYERS, 4).nbytes
        assert set(statuses(aged).values()) == {"complete"}
        run("prune", aged, "--older-than", "36h")
        found = statuses(aged)
        assert [found[f"d{day}"] for day in range(6)] == ["complete"] * 2 + ["unkept"] * 4
        with open_store(aged) as store:
            (entry,) = store.for_request("d2")
            assert entry.response == "answer d2"
            assert entry.evaluations["judge"].label == "correct"
            assert "prune" in str(entry.status_reason)
            with pytest.raises(RowsMissing, match="prune"):
                entry.activations  # noqa: B018 - it raises
            (scored,) = store.for_request("d4")
            assert scored.scores["probe"][3] == np.float32(0.9)
            assert [one.request_id for one in select(store, status="unkept")] == [
                f"d{day}" for day in range(2, 6)
            ]
            counted = statistics(store)
        assert counted.statuses == {"complete": 2, "unkept": 4}
        assert counted.rows == 8
        assert counted.rows_bytes == 2 * make_rows("d", NUM_LAYERS, 4).nbytes
        assert "nothing was removed" in run("prune", aged, "--older-than", "36h")

    def test_what_is_kept(self, aged: Path) -> None:
        keep = ("labelled", "tag:set=x,finish:length", "score:probe>0.8")
        flags = [part for term in keep for part in ("--keep", term)]
        said = run("prune", aged, "--older-than", "0s", *flags, "--json")
        assert said["removed"] == 2
        assert said["kept"] == {
            "labelled": 1, "tag:set=x": 1, "finish:length": 1, "score:probe>0.8": 1
        }  # fmt: skip
        found = statuses(aged)
        assert [day for day in range(6) if found[f"d{day}"] == "unkept"] == [0, 1]

    def test_a_probe_that_nothing_has_scores_of(self, aged: Path) -> None:
        flags = ("--older-than", "60h", "--dry-run", "--keep")
        said = "nothing was left alone for a score of prob: none has one"
        assert said in run("prune", aged, *flags, "score:prob>0.8,score:probe>0.8")
        assert "none has one" not in run("prune", aged, *flags, "score:probe>0.95")

    def test_everything_is_asked_about(self, aged: Path) -> None:
        assert "Aborted" in run("prune", aged, "--older-than", "0s", code=1, stdin="n\n")
        assert set(statuses(aged).values()) == {"complete"}
        assert "6 entries' rows would be removed" in run(
            "prune", aged, "--older-than", "0s", "--dry-run"
        )
        assert "removed 6" in run("prune", aged, "--older-than", "0s", "--yes")
        assert set(statuses(aged).values()) == {"unkept"}

    def test_whole_entries(self, aged: Path) -> None:
        run("prune", aged, "--older-than", "84h", "--keep", "score:probe>0.8")
        flags = ("--older-than", "36h", "--entries", "--keep", "labelled,score:none>0.5")
        said = run("prune", aged, *flags, "--json")
        assert said["removed"] == 3
        assert statuses(aged) == {"d0": "complete", "d1": "complete", "d2": "complete"}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "--older-than 30d"),
            (("--keep", "labelled"), "--max-size 200GB"),
            (("--max-size", "200"), "with its unit"),
            (("--older-than", "30"), "neither a date"),
            (("--older-than", "1d", "--keep", "score:x>2"), "number from 0 to 1"),
            (("--older-than", "1d", "--keep", "sample:0.1"), "not one of the terms labelled"),
            (("--older-than", "1d", "--keep", ""), "not one of the terms"),
        ],
    )
    def test_what_makes_no_sense(self, arguments: tuple[str, ...], said: str, aged: Path) -> None:
        with pytest.raises(SettingsError, match=said):
            run("prune", aged, *arguments)
        assert set(statuses(aged).values()) == {"complete"}

    def test_by_size(self, store_path: Path) -> None:
        writer = StoreWriter(store_path, role="test")
        for number in range(20):
            put_large(writer, f"r{number}", created=NOW - 100 + number)
        writer.close()
        said = run("prune", store_path, "--max-size", "3MB", "--json")
        assert said["used_bytes"] > 20 * LARGE
        found = list(statuses(store_path).values())
        assert found == ["unkept"] * said["removed"] + ["complete"] * (20 - said["removed"])
        with open_store(store_path) as store:
            # No more went than had to.
            assert 2_500_000 < store.snapshot().used_bytes <= 3_000_000
        del store, writer
        gc.collect()
        assert compact(store_path).after <= 3_100_000
        assert page_problems(store_path) == []


def test_what_a_score_says_of_an_answer(aged: Path) -> None:
    with open_store(aged, writable=True) as store:
        (entry,) = store.for_request("d4")
        assert answer_scores(entry) == {"probe": pytest.approx(0.9)}
        details = {"digest": "x", "answer": 0.25}
        values = entry.scores["probe"]
        store.put_derived([Derived(entry.key, "score/probe", values, details)])
        assert answer_scores(entry) == {"probe": 0.25}
        assert why_kept(entry, Keep.parse("score:probe>0.2", PRUNING)) == "score:probe>0.2"
        assert why_kept(entry, Keep.parse("score:probe>0.3,score:no>0", PRUNING)) is None


def test_shared_rows_stay_until_nobody_needs_them(store_path: Path) -> None:
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "first", created=NOW - 10)
    own = make_segment("own", 1)
    slices = [SegmentSlice(segment_id("first"), 0, 3), SegmentSlice(own.id, 0, 1)]
    writer.put_capture(make_capture("next", [own], slices))
    writer.put_entry(make_document("next", created=NOW))
    writer.close()
    row = make_rows("x", NUM_LAYERS, 1).nbytes
    with open_store(store_path, writable=True) as store:
        plan = plan_prune(store, before=NOW - 5)
        assert (len(plan.keys), plan.nbytes, plan.everything) == (1, 0, False)
        assert prune(store, plan.keys, "test") == 1
        assert verify(store).ok
        (entry,) = store.for_request("next")
        expected = np.concatenate([make_rows("first", 4, 3), make_rows("own", 4, 1)])
        assert np.array_equal(entry.activations, expected)
        plan = plan_prune(store, before=NOW + 5)
        assert (len(plan.keys), plan.nbytes, plan.everything) == (1, 5 * row, True)
        assert prune(store, [*plan.keys, plan.keys[0], "0" * 64, "no key"], "test") == 1
        assert verify(store).ok
        assert store.snapshot().count(b"~rows") == store.snapshot().count(b"~segments") == 0


def test_a_label_that_comes_meanwhile(aged: Path) -> None:
    with open_store(aged, writable=True) as store:
        plan = plan_prune(store, before=NOW + 5)
        store.put_evaluation(plan.keys[0], name="judge", label="correct")
        assert prune(store, plan.keys, "test", unless_labelled=True) == 4
        assert prune(store, plan.keys, "test", entries=True, unless_labelled=True) == 4
        assert len(store) == 2


def test_merged_entries_stay_unkept(aged: Path, tmp_path: Path) -> None:
    run("prune", aged, "--older-than", "36h")
    merge([aged], tmp_path / "c")
    assert statuses(tmp_path / "c") == statuses(aged)
    assert merge([aged], tmp_path / "c").completed == 0


def test_beside_a_running_writer(store_path: Path) -> None:
    """Its rows come free while it runs, and nothing that it writes is lost."""
    writer = StoreWriter(store_path, role="test")
    writer.share(list)
    ended = threading.Event()

    def write() -> None:
        for number in range(200):
            put_large(writer, f"r{number}", created=time.time())
            time.sleep(0.005)
        ended.set()

    busy = threading.Thread(target=write)
    busy.start()
    removed = 0
    while not ended.is_set():
        with open_store(store_path, writable=True) as store:
            if store.snapshot().has_index and len(store):
                removed += prune(store, plan_prune(store, before=time.time()).keys, "test")
    busy.join()
    put_large(writer, "last", created=time.time() + 5)
    writer.flush()
    put_large(writer, "after", created=time.time() + 5)
    writer.flush()
    with open_store(store_path) as store:
        assert store.snapshot().used_bytes < 40 * LARGE
        left = sum(entry.status == "complete" for entry in store.entries())
        assert removed + left == len(store) == 202
    assert removed > 100
    writer.close()
    assert statuses(store_path)["last"] == "complete"


def test_one_that_is_killed_is_repeated(store_path: Path) -> None:
    writer = StoreWriter(store_path, role="test")
    for number in range(60):
        put_large(writer, f"r{number}", created=NOW - 100 + number)
    writer.close()
    del writer
    gc.collect()
    removed = 0
    for lines in (8, 14, 20):
        with subprocess.Popen(
            command("prune_slowly", store_path), cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        assert page_problems(store_path) == []
        found = list(statuses(store_path).values())
        now = found.count("unkept")
        assert found == ["unkept"] * now + ["complete"] * (60 - now)
        assert removed < now < 60
        removed = now
        gc.collect()
    run("prune", store_path, "--older-than", "0s", "--yes")
    assert set(statuses(store_path).values()) == {"unkept"}
    with open_store(store_path) as store:
        assert store.snapshot().count(b"~rows") == 0


def test_rows_that_are_removed_while_they_are_read(aged: Path) -> None:
    """Whoever has looked at an entry before is told, and hears nothing of damage."""
    with open_store(aged, writable=True) as store:
        first, second = [entry for entry in store.entries() if entry.status == "complete"][:2]
        prune(store, [first.key], "too old")
        store.delete(second.key)
        with pytest.raises(RowsMissing, match=r"rows of entry .* have been removed meanwhile"):
            first.activations  # noqa: B018 - reads
        with pytest.raises(RowsMissing, match="has been deleted"):
            second.layer("last")
        with pytest.raises(RowsMissing, match="too old"):
            store[first.key].activations  # noqa: B018


@pytest.mark.parametrize("whole", [False, True])
def test_what_cannot_be_read_stays_and_stops_nobody(aged: Path, whole: bool) -> None:
    with open_store(aged, writable=True) as store:
        entries = {entry.request_id: entry for entry in store.entries()}
        with store.environment.write() as txn:
            for name in ("d1", "d3", "d5"):
                key = layout.id_key(entries[name].document["capture"])
                txn.put(key, b"{}", db=store.environment.database(layout.CAPTURES))
        plan = plan_prune(store, before=NOW + DAY, entries=whole)
        chosen = {name for name, entry in entries.items() if entry.key in plan.keys}
        assert chosen == {"d0", "d2", "d4"}
        assert plan.kept == {"cannot be read": 3}
        assert prune(store, plan.keys, "too old", entries=whole) == 3
