"""Opening an LMDB environment, once per path and process, and keeping it usable.

LMDB forbids opening the same file twice in one process, forbids using it across a fork,
and leaves it to the caller never to remap it while a transaction lives. All three rules
are kept here, so that nothing else has to know them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from activation_logging.errors import (
    NotAStore,
    StoreError,
    StoreNotFound,
    StoreReadOnly,
    StoreVersionError,
)
from activation_logging.store import layout

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAP_SIZE = 1 << 40
"""Initial size of the memory map, bytes. Address space only: the file grows as it is written."""

MAX_READERS = 2048
_GROW_PATIENCE_S = 10.0

# py-lmdb 3 bundles a second engine, whose files the first cannot read: stay with the first.
_ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}


class Environment:
    """One open LMDB environment and its databases; obtained by :func:`acquire`."""

    def __init__(self, path: Path, *, create: bool, map_size: int) -> None:
        self.path = path
        self.pid = os.getpid()
        self._live = 0
        self._lock = threading.Condition()
        self._env = _open(path, create=create, map_size=map_size)
        self.writable = _writable(path)
        self._databases: dict[bytes, Any] = {layout.MAIN: self._env.open_db(None)}
        self._check_format(create)
        for name in layout.DATABASES:
            self._databases[name] = self._env.open_db(
                name, dupsort=name in layout.DUPLICATES, create=create and self.writable
            )
        if self.writable:
            self._env.reader_check()

    def database(self, name: bytes) -> Any:
        return self._databases[name]

    @property
    def last_transaction(self) -> int:
        return int(self._env.info()["last_txnid"])

    @property
    def map_size(self) -> int:
        return int(self._env.info()["map_size"])

    def snapshot(self) -> Snapshot:
        """A read transaction that lives as long as something refers to it."""
        return Snapshot(self)

    @contextmanager
    def write(self) -> Iterator[Any]:
        """One write transaction: committed and synced to disk at the end, or rolled back."""
        if not self.writable:
            raise StoreReadOnly(f"{self.path} cannot be written by this user")
        with self._enter(write=True) as txn:
            yield txn

    def transact(self, action: Callable[[Any], T]) -> T:
        """Run ``action`` in a write transaction, growing the map as often as it is full.

        ``action`` may run several times; only its last run is kept.
        """
        while True:
            try:
                with self.write() as txn:
                    return action(txn)
            except lmdb.MapFullError:
                self.grow()

    def grow(self) -> None:
        """Double the map. Waits until no read transaction of this process is open.

        Raises:
            StoreError: arrays that point into the map were held all that time.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: self._live == 0, timeout=_GROW_PATIENCE_S):
                raise StoreError(
                    f"{self.path} needs a larger memory map, but {self._live} arrays or readers of "
                    "this process still point into the old one; release them (or copy the arrays)"
                )
            size = max(2 * self.map_size, 1 << 20)
            self._env.set_mapsize(size)
            logger.info("grew the memory map of %s to %d MiB", self.path, size >> 20)

    @contextmanager
    def _enter(self, *, write: bool) -> Iterator[Any]:
        txn = self._begin(write=write)
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        else:
            txn.commit()
        finally:
            self._leave()

    def _begin(self, *, write: bool) -> Any:
        """Begin a transaction; while it lives, the map stays where it is."""
        with self._lock:
            self._live += 1
        try:
            while True:
                try:
                    return self._env.begin(write=write, buffers=True)
                except lmdb.MapResizedError:
                    self._adopt_map_size()
                except lmdb.ReadersFullError:
                    raise StoreError(
                        f"{self.path} has {MAX_READERS} open readers; close some, or drop arrays "
                        "that still point into the store"
                    ) from None
        except BaseException:
            self._leave()
            raise

    def _adopt_map_size(self) -> None:
        """Another process has grown the map: follow it."""
        with self._lock:
            # Our own place in the count is not a transaction yet.
            if not self._lock.wait_for(lambda: self._live <= 1, timeout=_GROW_PATIENCE_S):
                raise StoreError(
                    f"{self.path} was grown by another process, but arrays of this process still "
                    "point into the old map; release them (or copy the arrays)"
                )
            self._env.set_mapsize(0)

    def _leave(self) -> None:
        with self._lock:
            self._live -= 1
            self._lock.notify_all()

    def _check_format(self, create: bool) -> None:
        with self._env.begin() as txn:
            names = [bytes(key) for key in txn.cursor().iternext(values=False)]
        if layout.META not in names:
            if names:
                raise NotAStore(f"{self.path} is an LMDB environment of something else")
            if not (create and self.writable):
                raise NotAStore(f"{self.path} is an empty LMDB environment, not a store")
            self._write_format()
            return
        meta = self._env.open_db(layout.META, create=False)
        with self._env.begin() as txn:
            raw = txn.get(layout.FORMAT_KEY, db=meta)
        if raw is None:
            raise NotAStore(f"{self.path} is an LMDB environment of something else")
        found = layout.load(raw, f"the format record of {self.path}")
        if found.get("format") != layout.FORMAT_NAME:
            raise NotAStore(f"{self.path} is an LMDB environment of something else")
        if found.get("version") != layout.FORMAT_VERSION:
            raise StoreVersionError(
                f"{self.path} has format version {found.get('version')}, this package reads and "
                f"writes version {layout.FORMAT_VERSION}; use a matching release of it"
            )

    def _write_format(self) -> None:
        meta = self._env.open_db(layout.META, create=True)
        record = {
            "format": layout.FORMAT_NAME,
            "version": layout.FORMAT_VERSION,
            "created": time.time(),
        }
        with self._env.begin(write=True) as txn:
            txn.put(layout.FORMAT_KEY, layout.dump(record), db=meta, overwrite=False)


class Snapshot:
    """A read transaction. Arrays that point into it keep it alive; nothing else closes it."""

    __slots__ = ("__weakref__", "_environment", "txn")

    def __init__(self, environment: Environment) -> None:
        self.txn = environment._begin(write=False)
        self._environment = environment

    @property
    def id(self) -> int:
        return int(self.txn.id())

    def get(self, database: bytes, key: bytes) -> memoryview | None:
        value: memoryview | None = self.txn.get(key, db=self._environment.database(database))
        return value

    def cursor(self, database: bytes) -> Any:
        return self.txn.cursor(self._environment.database(database))

    def count(self, database: bytes) -> int:
        """Number of records; those of the main database count the named databases too."""
        return int(self.txn.stat(self._environment.database(database))["entries"])

    def __del__(self) -> None:
        if hasattr(self, "_environment"):
            self.txn.abort()
            self._environment._leave()


_open_environments: weakref.WeakValueDictionary[Path, Environment] = weakref.WeakValueDictionary()
_inherited: list[Environment] = []
_registry_lock = threading.Lock()


def acquire(path: str | os.PathLike[str], *, create: bool, map_size: int = MAP_SIZE) -> Environment:
    """The environment at ``path``, opened at most once in this process.

    Args:
        path: the store's folder; with ``create`` it is made if it is not there.
        create: make the store if it does not exist.
        map_size: initial size of the memory map in bytes; it grows by itself.

    Raises:
        StoreNotFound, NotAStore, StoreVersionError, StoreReadOnly: see :mod:`..errors`.
    """
    resolved = Path(path).expanduser().resolve()
    with _registry_lock:
        known = _open_environments.get(resolved)
        if known is not None and known.pid != os.getpid():
            # Inherited through a fork: LMDB must neither use nor close it here.
            _inherited.append(known)
            known = None
        if known is None or not resolved.exists():
            known = Environment(resolved, create=create, map_size=map_size)
            _open_environments[resolved] = known
        return known


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path / "data.mdb", os.W_OK)


def _open(path: Path, *, create: bool, map_size: int) -> Any:
    data = path / "data.mdb"
    if path.exists() and not path.is_dir():
        raise NotAStore(f"{path} is a file; a store is a folder with data.mdb inside")
    if not data.exists():
        if not create:
            if path.exists() and any(path.iterdir()):
                raise NotAStore(f"{path} is a folder without a store (no data.mdb inside)")
            raise StoreNotFound(f"there is no store at {path}")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreReadOnly(f"cannot make the folder {path}: {error.strerror}") from None
        if not os.access(path, os.W_OK):
            raise StoreReadOnly(f"{path} cannot be written by this user")
    elif create and not _writable(path):
        raise StoreReadOnly(f"{path} cannot be written by this user")
    # An existing file knows its own size; 0 adopts it.
    size = 0 if data.exists() else map_size
    try:
        return lmdb.open(
            str(path),
            map_size=size,
            max_dbs=len(layout.DATABASES),
            max_readers=MAX_READERS,
            readonly=data.exists() and not _writable(path),
            create=create,
            lock=True,
            **_ENGINE,
        )
    except lmdb.InvalidError:
        raise NotAStore(f"{path} holds a data.mdb that is not an LMDB file") from None
    except (lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise NotAStore(f"{path} was not written by this LMDB: {error}") from None
    except lmdb.ReadonlyError as error:
        raise StoreReadOnly(f"{path} cannot be opened: {error}") from None
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"{path} cannot be opened: {error}") from None
