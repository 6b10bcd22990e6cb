"""Stores in other places: other processes, little address space, other systems, closed disks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from activation_logging import Entry, Store, open_store
from activation_logging.errors import EntryNotFound, StoreError, StoreNotFound, StoreReadOnly
from activation_logging.store import StoreWriter
from tests.fixtures.answers import HIDDEN, NUM_LAYERS, make_rows, put_answer
from tests.unit.store.programs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

READ = """
import sys
from activation_logging import open_store
with open_store(sys.argv[1]) as store:
    (entry,) = store.entries()
    print(len(store), entry.activations.shape, store.read([entry.key]).values.shape)
"""


@pytest.fixture
def filled(store_path: Path) -> Path:
    """A store of five answers, one of them labelled."""
    writer = StoreWriter(store_path, role="test")
    for number in range(5):
        put_answer(writer, f"r{number}", prompt=f"p{number}", tags={"n": str(number)})
    writer.close()
    with open_store(store_path, writable=True) as store:
        for number in range(5):
            label = "correct" if number % 2 else "hallucinated"
            key = store.for_prompt(f"p{number}")[0].key
            store.put_evaluation(key, name="n", label=label)
    return store_path


def run(
    program: str, *arguments: object, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with at most ``limit`` bytes of address space."""

    def shrink() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=shrink,
        # Every thread of a linear algebra library takes address space, too.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


# --- to other processes ----------------------------------------------------------------


def _rows_of(entry: Entry) -> tuple[str, float]:
    return entry.prompt, float(entry.activations.sum())


def _label(store: Store) -> str:
    key = store.for_prompt("p0")[0].key
    store.put_evaluation(key, name="child", label="refused")
    return key


def test_stores_and_entries_go_to_a_spawned_process(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened by a relative path, in a process that is elsewhere meanwhile."""
    monkeypatch.chdir(filled.parent)
    with open_store(filled.name) as store, open_store(filled.name, writable=True) as writable:
        monkeypatch.chdir("/")
        entries = list(store.entries())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(_rows_of, entries) == [_rows_of(entry) for entry in entries]
            key = pool.apply(_label, (writable,))
            assert store[key].evaluations["child"].label == "refused"
            with pytest.raises(StoreReadOnly, match="open for reading"):
                pool.apply(_label, (store,))


def test_pickling_says_what_is_gone(filled: Path) -> None:
    store = open_store(filled, writable=True)
    entry = next(store.entries())
    kept, whole = pickle.dumps(entry), pickle.dumps(store)
    again, other = pickle.loads(pickle.dumps([entry, store]))
    assert again._store is other
    assert (other.path, other.writable) == (filled, True)
    store.delete(entry.key)
    with pytest.raises(EntryNotFound):
        pickle.loads(kept)
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        pickle.dumps(store)
    del store, entry, again, other
    shutil.rmtree(filled)
    with pytest.raises(StoreNotFound):
        pickle.loads(whole)
    assert not filled.exists()


def test_a_dataset_travels_without_its_states(filled: Path) -> None:
    def silent(*_: object) -> None:
        """What cannot be pickled, as a progress bar's cannot."""

    with open_store(filled) as store:
        dataset = store.dataset("n", progress=silent)
        before = dataset.X
        raw = pickle.dumps(dataset)
        assert before[0].tobytes() not in raw
        assert np.array_equal(pickle.loads(raw).X, before)


def test_a_path_with_a_tilde(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(filled.parent))
    with open_store(f"~/{filled.name}") as store:
        assert store.path == filled
        assert len(pickle.loads(pickle.dumps(store))) == 5


# --- under a limit on address space ----------------------------------------------------

LIMITED = """
import sys
from activation_logging import open_store
from tests.fixtures.answers import put_answer
from activation_logging.store import StoreWriter
path, count = sys.argv[1], int(sys.argv[2])
with open_store(path) as store:
    keys = list(store)
    print(len(keys), sum(store[key].activations.shape[0] for key in keys))
    print(store.read(keys).values.shape)
writer = StoreWriter(path, role="child")
for number in range(count):
    put_answer(writer, f"child {number}", prompt_ids=[1] * 20000)
writer.close()
print(writer.stats.lost, writer.stats.errors)
with open_store(path, writable=True) as store:
    print(len(store), len(store.for_prompt("Hello, world!")[-1].activations))
    store.put_evaluation(keys[0], name="limited", label="correct")
"""


def test_a_limit_on_address_space(filled: Path) -> None:
    """Reading, writing and growing by a hundred megabytes, where no terabyte can be mapped."""
    done = run(LIMITED, filled, 100, limit=2 << 30)
    expected = ["5 20", f"(20, {HIDDEN})", "0 0", "105 20001"]
    assert done.stdout.splitlines() == expected, done.stderr
    with open_store(filled) as store:
        assert len(store) == 105


def test_a_store_that_is_made_under_a_limit(store_path: Path) -> None:
    program = LIMITED.replace("open_store(path) as", "open_store(path, writable=True) as")
    program = program.replace('store.put_evaluation(keys[0], name="limited", label="correct")', "")
    program = program.replace("print(store.read(keys).values.shape)", "")
    done = run(program, store_path, 10, limit=2 << 30)
    assert done.stdout.splitlines() == ["0 0", "0 0", "10 20001"], done.stderr


FOLLOW = """
import sys
from activation_logging import open_store
store = open_store(sys.argv[1])
assert store._environment.map_size < 1 << 30
print(len(store), flush=True)
for line in sys.stdin:
    entry = next(store.entries(newest_first=True))
    print(len(store), float(entry.activations.sum()), flush=True)
"""


def test_a_reader_with_a_small_map_follows_a_writer_with_a_large_one(filled: Path) -> None:
    follower = subprocess.Popen(
        ["/bin/sh", "-c", f"ulimit -v 2000000; exec {sys.executable} -c '{FOLLOW}' {filled}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert follower.stdin is not None
    assert follower.stdout is not None
    assert follower.stdout.readline() == "5\n"
    writer = StoreWriter(filled, role="test")
    for number in range(4):
        expected = float(make_rows(f"more {number}.59", NUM_LAYERS, 20001).sum())
        # Each time more than the follower's map has beyond what it needs.
        for n in range(60):
            put_answer(writer, f"more {number}.{n}", prompt_ids=[1] * 20000)
        writer.flush()
        print(file=follower.stdin, flush=True)
        assert follower.stdout.readline() == f"{65 + 60 * number} {expected}\n"
    writer.close()
    follower.communicate()
    assert follower.returncode == 0


def test_too_little_address_space_is_said(filled: Path) -> None:
    """Where not even the file can be mapped."""
    with (filled / "data.mdb").open("r+b") as file:
        file.truncate(3 << 30)
    done = run(READ, filled, limit=2 << 30)
    assert done.returncode == 1
    assert f"{filled} cannot be opened" in done.stderr
    assert "address space" in done.stderr
    assert "ulimit -v" in done.stderr


# --- to other systems ------------------------------------------------------------------

WITHOUT = """
import builtins, fcntl, os, sys
for name in ("posix_fallocate", "sched_setaffinity", "statvfs", "O_CLOEXEC"):
    delattr(os, name)
sys.platform = "darwin"
del sys.modules["fcntl"]
real_open, real_import = open, builtins.__import__
def no_proc(file, *arguments, **options):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(file)
    return real_open(file, *arguments, **options)
import io
builtins.open = io.open = no_proc
def ioctl(*_):
    raise AssertionError("an ioctl of Linux")
fcntl.ioctl = ioctl
"""


@pytest.mark.parametrize("has_lock", [True, False])
def test_a_system_without_what_only_linux_has(
    has_lock: bool, store_path: Path, store_writer: StoreWriter
) -> None:
    """A store copied to a Mac, with its lock file or without."""
    put_answer(store_writer, "r")
    store_writer.close()
    copy = store_path.with_name("copied")
    shutil.copytree(store_path, copy)
    if not has_lock:
        (copy / "lock.mdb").unlink()
    done = run(WITHOUT + READ, copy)
    assert done.stdout == f"1 (4, {HIDDEN}) (4, {HIDDEN})\n", done.stderr
    assert done.stderr == ""


def test_a_folder_that_is_closed_to_writing(store_path: Path, store_writer: StoreWriter) -> None:
    """A bind mount for reading, in a name space of its own; its lock file was not copied."""
    put_answer(store_writer, "r")
    store_writer.close()
    (store_path / "lock.mdb").unlink()
    program = READ + (
        "try: open_store(sys.argv[1], writable=True)\n"
        "except PermissionError as error: print(error)\n"
    )
    mount = f"mount --bind {store_path} {store_path} && mount -o remount,bind,ro {store_path}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mounts of one's own")
    done = subprocess.run(
        [*inside, f'{mount} && exec {sys.executable} -c "$1" {store_path}', "sh", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"1 (4, {HIDDEN}) (4, {HIDDEN})", done.stderr
    assert lines[1] == f"{store_path} lies on a disk that is mounted read-only"


# --- to the end of the interpreter -----------------------------------------------------

ALIVE = """
import sys
from activation_logging import open_store
store = open_store(sys.argv[1])
walking = store.entries()
entry = next(walking)
for module in list(sys.modules.values()):
    module.kept = [store._snapshot(), store, entry, entry.activations, walking]
print("end")
"""


def test_the_end_of_the_interpreter_is_silent(filled: Path) -> None:
    """Whatever is alive then: something in every module, which go in an order of Python's own."""
    done = run(ALIVE, filled)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
