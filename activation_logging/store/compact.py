"""Making a store's file as small as its content, after entries have been deleted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

import lmdb

from activation_logging.errors import StoreCorrupt, StoreError, StoreReadOnly
from activation_logging.files import sync_folder
from activation_logging.locations import expanded
from activation_logging.progress import Progress, silent
from activation_logging.store import layout
from activation_logging.store.engine.locks import exclusive
from activation_logging.store.engine.opening import open_file, open_store_files
from activation_logging.store.engine.pages import used_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.store.engine.opening import Opened

COPY = "data.mdb.compacting"
"""The copy's name in the store's folder. A copy that a kill leaves there is never opened."""

_POLL_S = 0.1
_DAMAGE = (lmdb.CorruptedError, lmdb.IncompatibleError, lmdb.PageNotFoundError)
"""LMDB raises the second for pages that are neither used nor free."""


class Compaction(NamedTuple):
    """Size of the data file before and after, bytes."""

    before: int
    after: int


def compact(path: str | os.PathLike[str], *, progress: Progress = silent) -> Compaction:
    """Write a store's file anew without what is free in it, and put it in the old one's place.

    The copy is whole and synced before it replaces the old file in one step: a kill or a power cut
    leaves either the old file or the new one. No process, this one included, may have the store
    open. A process that opens it meanwhile waits.

    Args:
        path: the store's folder; it must have room for the copy.
        progress: told now and then how many bytes are written, and how many are expected.

    Raises:
        StoreInUse: a process has the store open. StoreReadOnly: it is not this user's.
        StoreCorrupt: its pages contradict each other. StoreError: there is no room.
    """
    folder = expanded(path).resolve()
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


def _copy(opened: Opened, data: Path, copy: Path, progress: Progress) -> None:
    """A synced copy with the same owner and rights, proved to hold as much as the original."""
    copy.unlink(missing_ok=True)
    status = data.stat()
    with opened.env.begin() as txn:
        databases = opened.databases.values()
        expected = used_bytes([txn.stat(), *(txn.stat(database) for database in databases)])
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
                progress("copying", min(os.fstat(descriptor).st_size, expected), expected)
            copying.result()
            progress("copying", expected, expected)
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
