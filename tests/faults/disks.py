"""Disks that are full, or may not be written: logging waits, says so, and goes on by itself."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections import Counter
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

from activation_logging.errors import StoreError, StoreReadOnly
from activation_logging.store import StoreWriter, open_store
from activation_logging.store.repair import page_problems
from activation_logging.verify import verify
from tests.faults.answers import is_right, put
from tests.faults.children import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 8 << 20
"""Of the disk, bytes."""
_SMALLEST_BTRFS = 128 << 20


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
        # At once for everybody; whoever has something open there keeps it until it lets go.
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def copying_disk(folder: Path, quota: int | None = None) -> Iterator[None]:
    """The same with btrfs, which writes nothing in place; ``quota`` bytes of it may be used.

    Raises:
        NotPermitted: with the reason that the system gives.
    """
    image, mounted = folder.with_name("disk.img"), folder.with_name("mounted")
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(_SMALLEST_BTRFS)
    _do("mkfs.btrfs", "--quiet", image)
    _do("mount", "-o", "loop", image, mounted)
    try:
        _do("btrfs", "subvolume", "create", mounted / "limited")
        if quota is not None:
            _do("btrfs", "quota", "enable", mounted)
            _do("btrfs", "qgroup", "limit", str(quota), mounted / "limited")
        folder.symlink_to(mounted / "limited")
        yield
    finally:
        _do("umount", mounted)
        folder.unlink(missing_ok=True)
        mounted.rmdir()
        image.unlink()


def _do(*command: str | Path) -> None:
    """Run a command that not every system has, or lets everyone run."""
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise NotPermitted(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise NotPermitted(error.stderr.strip()) from None


@contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """Not a byte is free on the disk, or left of the quota, for as long as this lasts."""
    ballast = folder / "ballast"
    _fill(ballast)
    yield
    ballast.unlink()
    os.sync()


@contextmanager
def _file_size_limit(folder: Path) -> Iterator[None]:
    """No file may grow (``ulimit -f``), for as long as this lasts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill_the_disk(
    folder: Path,
    policy: Literal["block", "drop"],
    times: int = 1,
    disk: Callable[[Path], AbstractContextManager[None]] = small_disk,
) -> Counter[str]:
    """Write until the disk is full, make room, and go on; the counts say what became of it."""
    with disk(folder):
        return _meet(no_room, folder, policy, times)


def limit_file_size(folder: Path, policy: Literal["block", "drop"], times: int = 1) -> Counter[str]:
    """The same where files may not grow beyond what they are."""
    folder.mkdir()
    return _meet(_file_size_limit, folder, policy, times)


def exhaust_a_quota(folder: Path, times: int = 1) -> Counter[str]:
    """Use up a quota of btrfs, which may kill (docs/reliability.md), and look at what is left."""
    found = Counter[str]()
    with copying_disk(folder, quota=SIZE):
        for turn in range(times):
            path = folder / f"block{turn}.lmdb"
            outcome = run(_write_through, no_room, folder, "block", turn)
            assert outcome.died_of in {None, "SIGBUS"}, outcome.died_of
            found[outcome.died_of or "survived"] += 1
            (folder / "ballast").unlink(missing_ok=True)
            os.sync()
            assert run(_first_is_right, path).value
            assert page_problems(path) == []
            shutil.rmtree(path)
    return found


def _first_is_right(path: Path) -> bool:
    with open_store(path) as store:
        return is_right(store.for_request("first")[0])


def _meet(
    obstacle: Callable[[Path], AbstractContextManager[None]],
    folder: Path,
    policy: Literal["block", "drop"],
    times: int,
) -> Counter[str]:
    found = Counter[str]()
    for turn in range(times):
        outcome = run(_write_through, obstacle, folder, policy, turn)
        assert outcome.died_of is None, outcome.died_of
        found += outcome.value
        shutil.rmtree(folder / f"{policy}{turn}.lmdb")
    return found


def _write_through(
    obstacle: Callable[[Path], AbstractContextManager[None]],
    folder: Path,
    policy: Literal["block", "drop"],
    turn: int,
) -> Counter[str]:
    path = folder / f"{policy}{turn}.lmdb"
    writer = StoreWriter(path, role="child", policy=policy, queue_bytes=1 << 20)
    put(writer, "first")
    writer.flush()
    sent = [f"{turn}.{number}" for number in range(150)]
    if policy == "block":
        # More than the queue takes would wait for the room that is made below.
        now, later = sent[:50], sent[50:]
    else:
        now, later = sent[:140], sent[140:]
    with obstacle(folder):
        for name in now:
            put(writer, name)
        while not writer.stats.errors:
            time.sleep(0.01)
        # Reading goes on, and nothing is half there; what looks at it must not need the disk.
        with open_store(path) as store:
            assert is_right(store.for_request("first")[0])
            assert store.readers() == []
            views = [store.snapshot() for _ in range(1000)]
            del views
    for name in later:
        put(writer, name)
    writer.close()
    with open_store(path) as store:
        statuses = Counter(entry.status for entry in store.entries())
        assert len(store) == len(sent) + 1
        assert all(is_right(entry) for entry in store.entries() if entry.status == "complete")
        # What was dropped is the only thing that is wrong.
        assert len(verify(store).problems) == statuses["dropped"] == writer.stats.dropped
    assert page_problems(path) == []
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
