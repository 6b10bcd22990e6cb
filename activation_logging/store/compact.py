"""Compaction: shrinks a store's file by the space of deleted entries."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lmdb

from activation_logging.errors import StoreCorrupt, StoreError, StoreReadOnly
from activation_logging.files import sync_folder
from activation_logging.store import layout
from activation_logging.store.engine.locks import exclusive
from activation_logging.store.engine.opening import open_file, open_store_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.store.engine.opening import Opened

COPY = "data.mdb.compacting"
"""File name of the copy, in the store's own folder. A kill can leave it there; it is not used."""

_POLL_S = 0.1
_DAMAGE = (lmdb.CorruptedError, lmdb.IncompatibleError, lmdb.PageNotFoundError)
"""LMDB's errors of damage. It raises the second one for unreachable pages."""


class Compaction(NamedTuple):
    """Size of the data file before and after, bytes."""

    before: int
    after: int


def compact(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] = lambda *_: None
) -> Compaction:
    """Copy a store's file without its free pages, and replace the file by the copy.

    The copy is complete and synced before it atomically replaces the old file. A kill or a power
    cut at any moment leaves one of the two. No process may have the store open, including this
    one. A process that opens it meanwhile waits.

    Args:
        path: the store's folder. Its disk must have space for the copy.
        progress: called from time to time with the bytes written and the bytes expected.

    Raises:
        StoreInUse: a process has the store open. StoreReadOnly: it belongs to another user.
        StoreCorrupt: its pages contradict each other. StoreError: the disk is full.
    """
    folder = Path(path).expanduser().resolve()
    data, copy = folder / "data.mdb", folder / COPY
    with exclusive(folder):
        opened = open_store_files(folder, create=False, alone=True)
        try:
            before = data.stat().st_size
            _copy(opened, data, copy, progress)
            copy.replace(data)
            sync_folder(folder)
        except _DAMAGE as error:
            raise StoreCorrupt(f"{folder} cannot be copied: {error}") from None
        except (lmdb.Error, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{folder} cannot be copied, which needs up to {before} bytes: {error}"
            ) from None
        finally:
            opened.env.close()
            copy.unlink(missing_ok=True)
        return Compaction(before, data.stat().st_size)


def _copy(opened: Opened, data: Path, copy: Path, progress: Callable[[int, int], None]) -> None:
    """Write a synced copy with the same owner and mode, and check its numbers of records."""
    copy.unlink(missing_ok=True)
    status = data.stat()
    expected = _used_bytes(opened)
    descriptor = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchown(descriptor, status.st_uid, status.st_gid)
        except PermissionError:
            raise StoreReadOnly(
                f"{data} belongs to another user, who alone can compact it"
            ) from None
        os.fchmod(descriptor, status.st_mode & 0o7777)
        with ThreadPoolExecutor(1, "compacting") as pool:
            copying = pool.submit(opened.env.copyfd, descriptor, compact=True)
            while wait((copying,), _POLL_S).not_done:
                progress(min(os.fstat(descriptor).st_size, expected), expected)
            copying.result()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _compare(opened, copy)


def _compare(opened: Opened, copy: Path) -> None:
    found = open_file(copy)
    try:
        if _counts(opened) != _counts(found):
            raise StoreCorrupt(f"the copy of {copy.parent} has other numbers of records")
    finally:
        found.env.close()


def _counts(opened: Opened) -> dict[bytes, int]:
    with opened.env.begin() as txn:
        named = {name: txn.stat(db)["entries"] for name, db in opened.databases.items()}
        return {layout.MAIN: txn.stat()["entries"], **named}


def _used_bytes(opened: Opened) -> int:
    with opened.env.begin() as txn:
        stats = [txn.stat(), *(txn.stat(database) for database in opened.databases.values())]
    kinds = ("branch_pages", "leaf_pages", "overflow_pages")
    return int(sum(found[kind] for found in stats for kind in kinds) * stats[0]["psize"])
