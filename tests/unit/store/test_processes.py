"""Several processes and threads, forks, kills, a full disk, a map that has to grow."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import pytest

from activation_logging import Derived, open_store
from activation_logging.errors import StoreError
from activation_logging.store import StoreWriter
from activation_logging.store.engine import environment
from tests.fixtures.answers import NUM_LAYERS, make_rows, put_answer
from tests.fixtures.old_stores import without_arrays
from tests.unit.store.programs import ROOT, command

if TYPE_CHECKING:
    from pathlib import Path


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_processes_write_at_once(store_path: Path) -> None:
    """The same prompts from three processes: every answer is kept, under a key of its own."""
    started = [
        subprocess.Popen(command("write", store_path, name, 200), cwd=ROOT) for name in "abc"
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    with open_store(store_path) as store:
        assert len(store) == 600
        for number in range(200):
            answers = store.for_prompt(f"p{number}")
            assert {entry.response for entry in answers} == {f"answer {n}{number}" for n in "abc"}
            assert {entry.key.partition("#")[2] for entry in answers} == {"", "1", "2"}
            assert all(entry.status == "complete" for entry in answers)
        assert all("stopped" in record for record in store.writers().values())


def test_a_full_disk_loses_nothing_once_there_is_room(store_path: Path) -> None:
    done = run("fill_the_disk", store_path)
    errors, lost, captures = map(int, done.stdout.split())
    assert errors > 0
    assert (lost, captures) == (0, 100)
    assert "trying again" in done.stderr
    with open_store(store_path) as store:
        assert [entry.status for entry in store.entries()] == ["complete"] * 100


def test_a_disk_that_stays_full_does_not_hold_up_the_end(store_path: Path) -> None:
    done = run("full_at_the_end", store_path)
    assert done.returncode == 0
    assert int(done.stdout) > 0
    assert "records were lost at shutdown" in done.stderr
    with open_store(store_path) as store:
        assert store.for_request("first")[0].status == "complete"
        assert len(store) + int(done.stdout) // 2 >= 100


@pytest.mark.parametrize("is_old", [False, True])
def test_another_user_reads_but_does_not_write(store_path: Path, is_old: bool) -> None:
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "r")
    writer.close()
    del writer
    if is_old:
        without_arrays(store_path)
    else:
        with open_store(store_path, writable=True) as store:
            store.put_derived([Derived(key, "replay/x", np.ones(2)) for key in store])
    for folder in (store_path, *list(store_path.parents)[:-2]):
        folder.chmod(0o755)
    if run("read_without_permission", store_path).returncode and not _importable_by_others():
        pytest.skip("this user's Python cannot be started by another user")
    (store_path / "data.mdb").chmod(0o444)
    (store_path / "lock.mdb").chmod(0o444)
    store_path.chmod(0o555)
    done = run("read_without_permission", store_path)
    store_path.chmod(0o755)
    assert done.stdout.splitlines() == [
        f"1 (4, 16) {[] if is_old else ['replay/x']}",
        "StoreReadOnly",
    ], done.stderr
    assert "only reliable while no process writes" in done.stderr


def _importable_by_others() -> bool:
    done = subprocess.run(
        [sys.executable, "-c", "import os; os.setuid(65534); import numpy, lmdb"],
        cwd=ROOT,
        check=False,
    )
    return done.returncode == 0


def test_threads_share_a_store(store_path: Path, store_writer: StoreWriter) -> None:
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            wrong.extend(
                entry.key
                for entry in store.entries()
                if entry.status == "complete"
                and not np.array_equal(
                    entry.activations, make_rows(entry.request_id, NUM_LAYERS, 4)
                )
            )

    stop = threading.Event()
    with open_store(store_path) as store:
        readers = [threading.Thread(target=read) for _ in range(4)]
        for thread in readers:
            thread.start()
        for number in range(300):
            put_answer(store_writer, f"r{number}")
            if number % 30 == 0:
                store_writer.flush()
        store_writer.flush()
        stop.set()
        for thread in readers:
            thread.join()
        assert not wrong
        assert len(store) == 300


def test_one_that_another_thread_is_just_closing(
    store_path: Path, store_writer: StoreWriter
) -> None:
    """It is not found any more, and yet open: whoever opens the store waits."""
    put_answer(store_writer, "r")
    store_writer.close()
    copy = store_path.with_name("copy.lmdb")
    shutil.copytree(store_path, copy)
    closing = lmdb.open(str(copy), lib_version=0)
    later = threading.Timer(0.2, closing.close)
    later.start()
    with open_store(copy) as store:
        assert len(store) == 1
    later.join()


def test_a_fork_disturbs_neither_side(store_path: Path, store_writer: StoreWriter) -> None:
    """The child reads by itself; its end must not free the pages that the parent's view uses."""
    put_answer(store_writer, "r", prompt_ids=[1] * 1000)
    store_writer.flush()
    store = open_store(store_path, writable=True)
    key = next(iter(store))
    view = store.snapshot()
    readers = _readers(store_path)
    assert readers == 1

    def child(result: multiprocessing.queues.SimpleQueue[object]) -> None:
        nonlocal view
        result.put(float(store[key].activations.sum()))
        view = None  # type: ignore[assignment]
        try:
            put_answer(store_writer, "from the child")
        except StoreError as error:
            result.put(str(error))

    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    process = context.Process(target=child, args=(result,))
    process.start()
    own, refusal = result.get(), result.get()
    process.join()
    assert process.exitcode == 0
    assert own == float(store[key].activations.sum())
    assert "forked" in str(refusal)
    assert _readers(store_path) == readers
    del view
    assert _readers(store_path) == 0


def _readers(path: Path) -> int:
    """Read transactions that are open on a store, by LMDB's own table."""
    lines = environment.acquire(path, create=False)._env.readers().splitlines()
    return sum(line.split()[-1].isdigit() for line in lines if line.strip())


def test_another_process_outgrows_our_map(store_path: Path) -> None:
    """A reader follows."""
    env = environment.acquire(store_path, create=True, map_size=1 << 20)
    small = open_store(store_path)
    assert small._environment is env
    assert env.map_size == 1 << 20
    assert run("write", store_path, "a", 2000).returncode == 0
    assert (store_path / "data.mdb").stat().st_size > 2 << 20
    assert len(small) == 2000
    assert env.map_size > 1 << 20


def test_growth_waits_for_views(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GROW_PATIENCE_S", 0.2)
    env = environment.acquire(store_path, create=True, map_size=1 << 20)
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "r")
    writer.flush()
    store = open_store(store_path, writable=True)
    view = store.snapshot()
    for number in range(100):
        put_answer(writer, f"r{number}", prompt_ids=[1] * 500)
    while not writer.stats.errors:
        time.sleep(0.01)
    assert env.map_size == 1 << 20
    del view
    writer.close()
    assert env.map_size > 1 << 20
    assert len(store) == 101
    assert writer.stats.lost == 0


def test_the_usual_map_is_no_limit(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store goes on growing where the map that it was opened with, a terabyte, is full."""
    monkeypatch.setattr(environment, "MAP_SIZE", 1 << 20)
    env = environment.acquire(store_path, create=True, map_size=1 << 20)
    writer = StoreWriter(store_path, role="test")
    for number in range(100):
        put_answer(writer, f"r{number}", prompt_ids=[1] * 500)
    writer.flush(30)
    writer.close()
    assert env.map_size > 1 << 20
    with open_store(store_path) as store:
        assert len(store) == 100


def test_threads_that_meet_a_grown_map_together(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each used to wait for the other to go first."""
    monkeypatch.setattr(environment, "_GROW_PATIENCE_S", 120.0)  # a busy machine is slow, too
    env = environment.acquire(store_path, create=True, map_size=1 << 20)
    store = open_store(store_path)
    assert store._environment is env
    assert run("write", store_path, "a", 2000).returncode == 0
    lengths: list[int] = []
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        lengths.append(len(store))

    threads = [threading.Thread(target=read) for _ in range(8)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [2000] * 8
    assert time.monotonic() - started < environment._GROW_PATIENCE_S / 2


def test_reading_does_not_hold_back_free_pages(store_path: Path, store_writer: StoreWriter) -> None:
    """An idle reader must not make the file grow with every commit of a busy server."""
    put_answer(store_writer, "r")
    store_writer.flush()
    store = open_store(store_path)
    assert len(list(store.entries())) == len(store) == 1
    assert _readers(store_path) == 0


def test_reading_goes_on_while_someone_writes(store_path: Path, store_writer: StoreWriter) -> None:
    put_answer(store_writer, "r")
    store_writer.flush()
    store = open_store(store_path)
    env = environment.acquire(store_path, create=False)
    with env.write() as txn:
        assert len(store) == 1
        assert next(store.entries()).status == "complete"
        txn.put(b"a", b"b", db=env.database(b"~meta"))
        assert len(store) == 1
