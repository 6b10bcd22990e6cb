"""Files that appear whole or not at all, their checksums, and locks of folders."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """A folder that no other process of this machine has locked meanwhile.

    Raises:
        BlockingIOError: another one has it; not if ``wait`` is set.
        OSError: the folder cannot be opened, or its disk has no locks, as some network disks.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(opened)


@contextmanager
def locked_where_possible(folder: Path, *, wait: bool) -> Iterator[None]:
    """As :func:`locked`, and without a lock where there can be none, as on some network disks."""
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(locked(folder, wait=wait))
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: nobody ever sees a part of it.

    Raises:
        OSError: the folder is missing or cannot be written to; nothing is left behind.
    """
    writer = f"{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f".{path.name}.{writer}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a renamed file keeps its new name after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    if not path.stat().st_size:  # which cannot be mapped
        return hashlib.sha256().hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()
