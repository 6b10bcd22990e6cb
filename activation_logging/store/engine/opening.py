"""Opens the LMDB file at a path, or raises an error that says why not.

This code runs once per environment. :mod:`.environment` handles open environments.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb

from activation_logging.errors import (
    NotAStore,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    StoreReadOnly,
    StoreVersionError,
)
from activation_logging.files import sync_folder
from activation_logging.store import layout
from activation_logging.store.engine.address_space import MAP_SIZE, fitting_map_size
from activation_logging.store.engine.filesystem import network_type, reserve
from activation_logging.store.engine.pages import walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(f"vllm.{__name__}")

MAX_READERS = 2048
LOCK_FILE_BYTES = 64 * (MAX_READERS - 1) + 192
"""Size of LMDB's lock file for that many readers."""

# py-lmdb 3 bundles two engines, which cannot read each other's files. Stay with the first.
_ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}

_ALREADY_OPEN = "already open"
_CLOSING_S = 1.0
"""How long a thread may take to close an environment, seconds."""
_CREATION_S = 1.0
"""How long the maker of a store may take from the empty file to the first record, seconds."""
_NEW_MAP = 1 << 20
"""Smallest map for a new store, bytes."""
_UNWRITTEN_PAGES = 256
"""Number of pages at the end of the file that LMDB may have counted but not written."""


class Opened(NamedTuple):
    """An open LMDB environment that has been checked to be a store."""

    env: Any
    databases: dict[bytes, Any]
    writable: bool


class FileId(NamedTuple):
    """Identity of a file, whatever its path."""

    device: int
    inode: int


def file_id(path: Path) -> FileId | None:
    """Identity of the data file of the store at ``path``; None if there is none."""
    try:
        status = (path / "data.mdb").stat()
    except OSError:
        return None
    return FileId(status.st_dev, status.st_ino)


def open_store_files(
    path: Path, *, create: bool, map_size: int = MAP_SIZE, alone: bool = False
) -> Opened:
    """Open the environment at ``path`` and its databases. With ``create``, create what is missing.

    With ``alone`` it is read without locks, by a process that keeps all others out. The memory map
    gets ``map_size`` bytes, or what there is address space for.

    Raises:
        StoreNotFound, NotAStore, StoreVersionError, StoreReadOnly, StoreCorrupt.
        StoreError: there is not enough address space.
    """
    check_files(path, create=create)
    existed = (path / "data.mdb").exists()
    least = (path / "data.mdb").stat().st_size if existed else _NEW_MAP
    try:
        map_size = fitting_map_size(least, wanted=map_size)
    except StoreError as error:
        raise StoreError(f"{path} cannot be opened: {error}") from None
    writable = not existed or (not alone and _writable(path))
    can_lock = not existed or (not alone and _can_lock(path))
    if not alone:
        _prepare_locks(path, can_lock=can_lock)
    try:
        env = _open(
            path,
            map_size=map_size,
            max_readers=MAX_READERS,
            readonly=not writable,
            create=create,
            lock=can_lock,
            mode=0o644,
        )
    except lmdb.InvalidError:
        raise NotAStore(f"{path} holds a data.mdb that is not an LMDB file") from None
    except (lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise NotAStore(f"{path} was not written by this LMDB: {error}") from None
    except lmdb.ReadonlyError as error:
        raise StoreReadOnly(f"{path} cannot be opened: {error}") from None
    except (lmdb.Error, OSError) as error:
        remedy = "; open it with activation_logging alone, and with lmdb >= 3 after a fork"
        suffix = remedy if _ALREADY_OPEN in str(error) else ""
        raise StoreError(f"{path} cannot be opened: {error}{suffix}") from None
    try:
        _check_length(path, env)
        if create:
            _create_format(env)
        if not existed:
            for folder in (path, *path.parents[:2]):
                sync_folder(folder)
        return Opened(env, _open_databases(path, env), writable)
    except lmdb.MapResizedError:
        # Another process has just enlarged the map. The file records the new size.
        env.close()
        return open_store_files(path, create=create, map_size=map_size, alone=alone)
    except lmdb.Error as error:
        env.close()
        raise StoreCorrupt(f"{path} cannot be read: {error}") from None
    except BaseException:
        env.close()
        raise


def _open(path: Path, **options: Any) -> Any:
    """LMDB's environment, as soon as another thread has closed the one that it no longer needs.

    A thread that drops the last reference to an environment is still closing it when others no
    longer find it.
    """
    deadline = time.monotonic() + _CLOSING_S
    while True:
        try:
            return lmdb.open(str(path), max_dbs=len(layout.DATABASES), **options, **_ENGINE)
        except lmdb.Error as error:
            if _ALREADY_OPEN not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.001)


@contextmanager
def open_alone(path: Path) -> Iterator[Opened]:
    """Open a store for writing without LMDB's locks, in a process that keeps all others out.

    Raises:
        NotAStore, StoreVersionError, StoreCorrupt.
    """
    size = fitting_map_size((path / "data.mdb").stat().st_size)
    env = _open(path, map_size=size, lock=False)
    try:
        _check_length(path, env)
        yield Opened(env, _open_databases(path, env), writable=True)
    finally:
        env.close()


def open_file(file: Path) -> Opened:
    """Open a data file that no other process uses yet, for reading and without locks.

    Raises:
        lmdb.Error: LMDB cannot read it. NotAStore, StoreVersionError, StoreCorrupt.
    """
    env = _open(file, subdir=False, readonly=True, lock=False)
    try:
        return Opened(env, _open_databases(file, env), writable=False)
    except BaseException:
        env.close()
        raise


def _can_lock(path: Path) -> bool:
    lock = path / "lock.mdb"
    return os.access(lock if lock.exists() else path, os.W_OK)


def _writable(path: Path) -> bool:
    return os.access(path / "data.mdb", os.W_OK) and _can_lock(path)


def unwritable(path: Path) -> StoreReadOnly:
    """The error to raise if a store may be read but not written."""
    if hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY:
        return StoreReadOnly(f"{path} is on a disk that is mounted read-only")
    return StoreReadOnly(f"{path} cannot be written by this user")


def _prepare_locks(path: Path, *, can_lock: bool) -> None:
    """Warn if locks do not work; else allocate space for the lock file."""
    kind = network_type(path)
    if kind is not None:
        logger.warning(
            "%s is on a network file system (%s): its memory map and locks hold within one "
            "machine only. Let no other machine open it, or keep it on a local disk",
            *(path, kind),
        )
    if not can_lock:
        logger.warning(
            "%s cannot be locked from here; what is read is only reliable while no process writes",
            path,
        )
        return
    try:
        reserve(path / "lock.mdb", LOCK_FILE_BYTES)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: its lock file: {error.strerror}") from None


def check_files(path: Path, *, create: bool) -> None:
    data = path / "data.mdb"
    try:
        if path.exists() and not path.is_dir():
            raise NotAStore(f"{path} is a file; a store is a folder with data.mdb inside")
        if data.exists():
            if create and not _writable(path):
                raise unwritable(path)
            if not create and not data.stat().st_size:
                raise NotAStore(f"{path} holds an empty data.mdb, not a store")
        elif create and not (path / layout.EXPORT).is_file():
            path.mkdir(parents=True, exist_ok=True)
            # One here would hide those inside from whoever reads the folder.
            if any((inside / "data.mdb").exists() for inside in path.iterdir()):
                raise NotAStore(f"{path} is a folder of stores; name a store in it")
            if not os.access(path, os.W_OK):
                raise unwritable(path)
        elif path.exists() and any(path.iterdir()):
            is_export = (path / layout.EXPORT).is_file()
            raise NotAStore(
                f"{path} is an export, which is read by itself and never written to"
                if is_export
                else f"{path} is a folder without a store (no data.mdb inside)"
            )
        else:
            raise StoreNotFound(f"there is no store at {path}")
    except (NotADirectoryError, FileExistsError):
        raise NotAStore(f"{path} is below a file; a store is a folder") from None
    except StoreError:
        raise
    except OSError as error:
        raise StoreReadOnly(f"{path} cannot be used: {error.strerror}") from None


def _check_length(path: Path, env: Any) -> None:
    """Refuse a truncated file: reading past its end would kill the process (SIGBUS).

    LMDB may count pages past the end that one commit allocated and freed again. Only a check of all
    pages distinguishes these from lost ones, if the installed lmdb has that check.
    """
    file, size = path / "data.mdb", env.stat()["psize"]
    # While this transaction lives, other processes do not overwrite the pages that it sees.
    with env.begin():
        needed = (env.info()["last_pgno"] + 1) * size
        found = file.stat().st_size
        if found >= needed:
            return
        problems = walk(file)
    if problems or found < needed - _UNWRITTEN_PAGES * size:
        raise StoreCorrupt(
            f"{path} has been cut off: its data.mdb has {found} bytes instead of {needed}; "
            "copy it again from where it came"
        )


def _create_format(env: Any) -> None:
    """Turn an empty environment into a store, in one transaction. Other ones stay unchanged."""
    with env.begin(write=True) as txn:
        if txn.stat()["entries"]:
            return
        for name in layout.DATABASES:
            database = env.open_db(name, txn=txn, dupsort=name in layout.DUPLICATES)
            if name == layout.META:
                record = {
                    "format": layout.FORMAT_NAME,
                    "version": layout.FORMAT_VERSION,
                    "created": time.time(),
                    "indexed": True,
                }
                txn.put(layout.FORMAT_KEY, layout.dump(record), db=database)


def _open_databases(path: Path, env: Any) -> dict[bytes, Any]:
    foreign = NotAStore(f"{path} is an LMDB environment of something else")
    deadline = time.monotonic() + _CREATION_S
    while not _num_entries(env):
        if time.monotonic() > deadline:
            raise NotAStore(f"{path} is an empty LMDB environment, not a store")
        time.sleep(0.01)
    with env.begin() as txn:
        if txn.get(layout.META) is None:
            raise foreign
    try:
        handles = _handles(env, (layout.META,))
        with env.begin() as txn:
            raw = txn.get(layout.FORMAT_KEY, db=handles[layout.META])
        found = {} if raw is None else layout.load(raw, f"the format record of {path}")
        if found.get("format") != layout.FORMAT_NAME:
            raise foreign
        version = found.get("version")
        if version not in (layout.WITHOUT_INDEX, layout.FORMAT_VERSION):
            raise StoreVersionError(
                f"{path} has format version {version}, this package reads and writes versions "
                f"{layout.WITHOUT_INDEX} and {layout.FORMAT_VERSION}; use a matching release of it"
            )
        with env.begin() as txn:
            has_derived = txn.get(layout.DERIVED) is not None
        optional = (layout.DERIVED,) if has_derived else ()
        return handles | _handles(env, (*layout.databases(version), *optional))
    except (lmdb.NotFoundError, lmdb.IncompatibleError):
        raise foreign from None


def _num_entries(env: Any) -> int:
    with env.begin() as txn:
        return int(txn.stat()["entries"])


def _handles(env: Any, names: Iterable[bytes]) -> dict[bytes, Any]:
    """Handles of existing databases.

    LMDB gives out permanent handles only in a write transaction or a read-only environment. So this
    may wait once for another process's commit.
    """

    def handle(name: bytes, txn: Any = None) -> Any:
        return env.open_db(name, txn=txn, create=False, dupsort=name in layout.DUPLICATES)

    if env.flags()["readonly"]:
        return {name: handle(name) for name in names}
    with env.begin(write=True) as txn:
        return {name: handle(name, txn) for name in names}
