"""Disks that are full, or may not be written: logging waits, says so, and goes on by itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from activation_logging.errors import StoreError, StoreReadOnly
from activation_logging.store import StoreWriter, open_store
from activation_logging.store.structure import structure_problems
from activation_logging.verify import verify
from tests.unit.store.faults.answers import is_right, put
from tests.unit.store.faults.children import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 8 << 20
"""Of the disk, bytes."""


class NotPermitted(Exception):
    """This user may not mount a file system here."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of :data:`SIZE` bytes at a folder, for as long as this lasts.

    Raises:
        NotPermitted: with the reason that mount gives.
    """
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotPermitted(made.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_the_disk(folder: Path, policy: Literal["block", "drop"], times: int = 1) -> Counter[str]:
    """Write until the disk is full, make room, and go on; the counts say what became of it."""
    found = Counter[str]()
    with small_disk(folder):
        for turn in range(times):
            outcome = run(_write_through_a_full_disk, folder, policy, turn)
            assert outcome.died_of is None, outcome.died_of
            found += outcome.value
            shutil.rmtree(folder / f"{policy}{turn}.lmdb")
    return found


def _write_through_a_full_disk(
    folder: Path, policy: Literal["block", "drop"], turn: int
) -> Counter[str]:
    path, ballast = folder / f"{policy}{turn}.lmdb", folder / "ballast"
    writer = StoreWriter(path, role="child", policy=policy, queue_bytes=1 << 20)
    put(writer, "first")
    writer.flush()
    _fill(ballast)
    sent = [f"{turn}.{number}" for number in range(150)]
    if policy == "block":
        # More than the queue takes would wait for the room that is made below.
        now, later = sent[:50], sent[50:]
    else:
        now, later = sent[:140], sent[140:]
    for name in now:
        put(writer, name)
    while not writer.stats.errors:
        time.sleep(0.01)
    # Reading goes on, and nothing is half there; what looks at it must not need the disk.
    with open_store(path) as store:
        assert is_right(store.for_request("first")[0])
        assert store.readers() == []
        views = [store._snapshot() for _ in range(1000)]
        del views
    ballast.unlink()
    for name in later:
        put(writer, name)
    writer.close()
    with open_store(path) as store:
        statuses = Counter(entry.status for entry in store.entries())
        assert len(store) == len(sent) + 1
        assert all(is_right(entry) for entry in store.entries() if entry.status == "complete")
        # What was dropped is the only thing that is wrong.
        assert len(verify(store).problems) == statuses["dropped"] == writer.stats.dropped
    assert structure_problems(path) == []
    assert writer.stats.lost == 0
    return Counter(errors=writer.stats.errors, **statuses)


def open_on_a_full_disk(folder: Path) -> str:
    """Make a store where there is no room, and return what the error says."""
    with small_disk(folder):
        _fill(folder / "ballast")
        outcome = run(_error_of_opening, folder / "new.lmdb")
        assert outcome.died_of is None, outcome.died_of
        return str(outcome.value)


def _error_of_opening(path: Path) -> str:
    try:
        StoreWriter(path, role="child")
    except StoreError as error:
        return str(error)
    return ""


def read_only_disk(folder: Path) -> Counter[str]:
    """Read a store on a disk that was mounted for reading, and try to write it."""
    with small_disk(folder):
        outcome = run(_write_some, folder / "a.lmdb")
        assert outcome.died_of is None, outcome.died_of
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        outcome = run(_read_but_not_write, folder / "a.lmdb")
        assert outcome.died_of is None, outcome.died_of
        found: Counter[str] = outcome.value
        return found


def _write_some(path: Path) -> None:
    writer = StoreWriter(path, role="child")
    for number in range(10):
        put(writer, f"r{number}")
    writer.close()


def _read_but_not_write(path: Path) -> Counter[str]:
    with open_store(path) as store:
        found = Counter(read=sum(map(is_right, store.entries())))
    for attempt in (
        lambda: open_store(path, writable=True),
        lambda: StoreWriter(path, role="child"),
        lambda: StoreWriter(path.with_name("new.lmdb"), role="child"),
    ):
        found["refused"] += _is_refused(attempt)
    return found


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except StoreReadOnly:
        return True
    return False


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
