"""Exclusive access to a store: no other process has it open, or opens it meanwhile.

Every open LMDB environment holds a lock on the first byte of ``lock.mdb``. It is a shared lock,
except while the first process sets the file up. A process that gets the exclusive lock is therefore
alone. Processes that open the store later wait in LMDB until the lock is released.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import StoreError, StoreInUse, StoreReadOnly
from activation_logging.store.engine import environment
from activation_logging.store.engine.filesystem import reserve
from activation_logging.store.engine.opening import LOCK_FILE_BYTES, check_files, open_store_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Flock(NamedTuple):
    """The C library's ``struct flock``."""

    kind: int
    whence: int
    start: int
    length: int
    pid: int

    def pack(self) -> bytes:
        if sys.platform == "darwin":
            return struct.pack("qqihh", self.start, self.length, self.pid, self.kind, self.whence)
        return struct.pack("hhqqi4x", *self)

    @classmethod
    def unpack(cls, raw: bytes) -> _Flock:
        if sys.platform == "darwin":
            start, length, pid, kind, whence = struct.unpack("qqihh", raw)
            return cls(kind, whence, start, length, pid)
        return cls(*struct.unpack("hhqqi4x", raw))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep all other processes out. Inside, open the store only with ``alone=True``.

    Args:
        path: the store's folder, resolved.

    Raises:
        StoreInUse: a process has the store open; the message names it.
        StoreReadOnly: this user may not write to it. StoreNotFound, NotAStore: there is no store.
    """
    check_files(path, create=False)
    with environment.closed_here(path):
        try:
            reserve(path / "lock.mdb", LOCK_FILE_BYTES)
            lock = os.open(path / "lock.mdb", os.O_RDWR)
        except OSError as error:
            raise StoreReadOnly(f"{path} cannot be locked: {error.strerror}") from None
        try:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except OSError:
                raise StoreInUse(f"{path} is {_opened_by(_pid(lock))}; stop it first") from None
            try:
                # The lock file describes the state of the data file. If this process were killed
                # here, processes that wait in LMDB would go on with the outdated description.
                # Without its first bytes they refuse it, and the next process that is alone writes
                # a new one.
                os.pwrite(lock, bytes(8), 0)
                yield
            finally:
                _reset_lock_file(path)
        finally:
            os.close(lock)


def holder(path: Path) -> int | None:
    """The pid of a process that has the store open; 0 if the pid is unknown; None if there is none.

    Args:
        path: the store's folder, resolved.
    """
    if environment.is_open_here(path):
        return os.getpid()
    try:
        lock = os.open(path / "lock.mdb", os.O_RDONLY)
    except OSError:
        return None
    try:
        return _pid(lock)
    finally:
        os.close(lock)


def _pid(lock: int) -> int | None:
    asked = _Flock(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    found = _Flock.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked.pack()))
    return None if found.kind == fcntl.F_UNLCK else max(found.pid, 0)


def _opened_by(pid: int | None) -> str:
    # A process of another container has no pid here.
    return f"open in process {pid}" if pid else "open in another process"


def _reset_lock_file(path: Path) -> None:
    """Let LMDB rewrite ``lock.mdb`` for the current data file, and make the lock a shared one.

    LMDB does that for a process that is alone, as this one is.
    """
    # An error of the store has been reported already, or will be when it is next opened.
    with suppress(StoreError):
        open_store_files(path, create=True).env.close()
