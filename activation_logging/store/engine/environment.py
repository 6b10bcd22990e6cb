"""One open LMDB environment per path and process, and what it takes to live with it.

LMDB forbids opening the same file twice in one process, using it across a fork, and remapping it
while a transaction lives. This module keeps the three rules, so that no other has to know them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from activation_logging.errors import StoreCorrupt, StoreError, StoreInUse
from activation_logging.store import layout
from activation_logging.store.engine.address_space import MAP_SIZE, fitting_map_size
from activation_logging.store.engine.opening import (
    MAX_READERS,
    file_id,
    open_store_files,
    unwritable,
)
from activation_logging.store.engine.pages import used_bytes
from activation_logging.store.engine.reader_table import Reader
from activation_logging.store.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

logger = logging.getLogger(f"vllm.{__name__}")
T = TypeVar("T")

_GROW_PATIENCE_S = 10.0
_GROW_BYTES = 1 << 20

# After one of the first two errors, a further use of the transaction raises one of the next two.
# py-lmdb sometimes returns a result with such an error pending, and Python raises SystemError.
_DAMAGE = (
    *(lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.BadTxnError),
    SystemError,
)


class Environment:
    """One open LMDB environment and its databases; obtained by :func:`acquire`."""

    def __init__(self, path: Path, *, create: bool, map_size: int) -> None:
        self.path = path
        self.token = object()
        """Tells this environment from any other, without keeping it open."""
        self.inherited = False
        """Whether a fork has brought it into this process, where it is of no use."""
        self.kept: list[Any] = []
        """Transactions of the parent, neither to be used nor ended here."""
        self._env, self.databases, self.writable = open_store_files(
            path, create=create, map_size=map_size
        )
        self.databases[layout.MAIN] = self._env.open_db(None)
        """Handles of :data:`layout.DATABASES` and of the main one, by name."""
        self.file = file_id(path)
        # Taken again by its holder where a snapshot happens to be collected meanwhile.
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._live = 0
        self.remaps = 0
        """How often the map has moved."""
        self._waiting = 0
        if self.writable:
            self.free_dead_readers()

    def database(self, name: bytes) -> Any:
        """The handle of one of :data:`layout.DATABASES`, or of the main one."""
        return self.databases[name]

    @property
    def has_index(self) -> bool:
        """Whether what is written is also to be indexed; stores of version 1 have no index."""
        return layout.INDEX in self.databases

    @property
    def num_databases(self) -> int:
        """Number of named databases, which the main one lists beside the entries."""
        return len(self.databases) - 1

    @property
    def map_size(self) -> int:
        """Size of the memory map, bytes."""
        return self._info("map_size")

    @property
    def last_commit(self) -> int:
        """Number of the latest commit."""
        return self._info("last_txnid")

    def _info(self, what: str) -> int:
        # LMDB reads it in the map, which another thread may be about to move.
        with self._lock:
            return int(self._env.info()[what])

    def readers(self) -> list[Reader]:
        """The read transactions that are open on the store, in whatever process."""
        # A header, then a line each: process, thread, and the commit or "-" for an idle place.
        places = [line.split() for line in self._env.readers().splitlines()[1:]]
        return [
            Reader(int(pid), thread, int(commit))
            for pid, thread, commit in places
            if commit.isdigit()
        ]

    def free_dead_readers(self) -> int:
        """Free what killed processes have left in the table of readers; returns how many."""
        return int(self._env.reader_check())

    def snapshot(self) -> Snapshot:
        """A read transaction that lives as long as something refers to it.

        It costs a microsecond. An old one keeps LMDB from using freed pages again, and the map
        from growing: hold one for as long as one piece of work takes, and no second beside it.
        """
        return Snapshot(self)

    @contextmanager
    def write(self) -> Iterator[Any]:
        """One write transaction: committed and synced to disk at the end, or rolled back."""
        if not self.writable:
            raise unwritable(self.path)
        txn = self.begin(write=True)
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        else:
            txn.commit()
        finally:
            self.leave()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what LMDB says of a damaged file into :class:`StoreCorrupt`."""
        try:
            yield
        except lmdb.Error as error:
            raise self.corrupt(error) from None

    def corrupt(self, error: Exception) -> StoreCorrupt:
        """What to raise where LMDB stumbles over a page."""
        return StoreCorrupt(f"{self.path} is damaged: {error}; see `activation-logging verify`")

    def transact(self, action: Callable[[Any], T]) -> T:
        """Run ``action`` in a write transaction, growing the map as often as it is full.

        ``action`` may run several times; only its last run is kept.

        Raises:
            StoreCorrupt: LMDB finds the file damaged. StoreReadOnly: it may not be written.
        """
        while True:
            try:
                with self.write() as txn:
                    return action(txn)
            except lmdb.MapFullError:  # noqa: PERF203 - trying again is the point
                self._grow()
            except _DAMAGE as error:
                raise self.corrupt(error) from None

    def begin(self, *, write: bool) -> Any:
        """Begin a transaction; until :meth:`leave`, the map stays where it is."""
        while True:
            with self._lock:
                self._live += 1
                remaps = self.remaps
            try:
                return self._env.begin(write=write, buffers=True)
            except lmdb.MapResizedError:
                self.leave()
                # Another process has written behind the end of the map.
                self._remap(0, remaps)
            except lmdb.ReadersFullError:
                self.leave()
                if self.free_dead_readers():
                    continue
                raise StoreError(
                    f"{self.path} has {MAX_READERS} open readers; close some"
                ) from None
            except BaseException:
                self.leave()
                raise

    def leave(self) -> None:
        """Say that a transaction of :meth:`begin` has ended."""
        with self._lock:
            self._live -= 1
            if self._waiting:
                self._idle.notify_all()

    def _grow(self) -> None:
        """Enlarge the map, because what is to be written does not fit."""
        self._remap(_GROW_BYTES, self.remaps)
        logger.info("the memory map of %s has %d MiB now", self.path, self.map_size >> 20)

    def _remap(self, more: int, remaps: int) -> None:
        """Make the map larger by so many bytes, and at least as large as what it holds.

        It gets far more where there is address space for it.

        Waits until no transaction of this process is open, unless another thread has remapped
        meanwhile: ``remaps`` is the count that the caller's trouble was met with.

        Raises:
            StoreError: transactions stayed open, or a limit on address space leaves no room.
        """
        with self._lock:
            self._waiting += 1
            self._idle.wait_for(
                lambda: not self._live or self.remaps != remaps, timeout=_GROW_PATIENCE_S
            )
            self._waiting -= 1
            if self.remaps != remaps:
                return
            if self._live:
                raise StoreError(
                    f"{self.path} needs a larger memory map, but {self._live} threads of this "
                    f"process have been reading from the old one for {_GROW_PATIENCE_S:g} s"
                )
            info = self._env.info()
            have = info["map_size"]
            used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
            try:
                size = fitting_map_size(max(used, have + more), have=have)
            except StoreError as error:
                raise StoreError(f"the memory map of {self.path} cannot grow: {error}") from None
            self._env.set_mapsize(size)
            self.remaps += 1
            self._idle.notify_all()


class Snapshot:
    """A read transaction, which ends when nothing refers to it any more.

    To be used by one thread at a time. What it gives out is memory of the map: to be copied
    before it ends.
    """

    __slots__ = ("__weakref__", "_environment", "txn")

    def __init__(self, environment: Environment) -> None:
        self.txn = environment.begin(write=False)
        """LMDB's own handle."""
        self._environment = environment

    @property
    def commit(self) -> tuple[object, ...]:
        """Equal for two snapshots in which every record has the same address."""
        environment = self._environment
        return environment.token, self.txn.id(), environment.remaps

    def get(self, database: bytes, key: bytes) -> memoryview | None:
        """The value of a key; valid as long as this snapshot lives."""
        try:
            value: memoryview | None = self.txn.get(key, db=self._environment.database(database))
        except lmdb.Error as error:
            raise self._environment.corrupt(error) from None
        return value

    def starting_with(self, database: bytes, prefix: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """The records whose keys begin with ``prefix``, in order.

        Raises:
            StoreCorrupt: LMDB finds the file damaged.
        """
        with self._environment.reading():
            cursor = self.cursor(database)
            found = cursor.set_range(prefix) if prefix else cursor.first()
            while found and (key := bytes(cursor.key())).startswith(prefix):
                yield key, cursor.value()
                found = cursor.next()

    def reading(self) -> AbstractContextManager[None]:
        """Turn what LMDB says of a damaged file into :class:`StoreCorrupt`."""
        return self._environment.reading()

    def cursor(self, database: bytes) -> Any:
        """An LMDB cursor, for use inside :meth:`reading` and while this lives."""
        return self.txn.cursor(self._environment.database(database))

    @property
    def used_bytes(self) -> int:
        """Bytes of all pages that hold something; the rest of the file is free to be used."""
        return used_bytes(self._stat(name) for name in self._environment.databases)

    @property
    def is_ordered(self) -> bool:
        """Whether the order of writing names as many entries as there are."""
        return self.count(layout.LOG) == self.num_entries

    @property
    def num_entries(self) -> int:
        """How many entries there are."""
        return self.count(layout.MAIN) - self._environment.num_databases

    @property
    def index(self) -> Index | None:
        """The index, if there is one that lists all entries."""
        if not self._environment.has_index:
            return None
        raw = self.get(layout.META, layout.FORMAT_KEY)
        is_whole = raw is not None and layout.load(raw, "the format record").get("indexed")
        return Index(self) if is_whole else None

    def count(self, database: bytes) -> int:
        """Number of records; those of the main database count the named databases too."""
        return self._stat(database)["entries"]

    def _stat(self, database: bytes) -> dict[str, int]:
        try:
            found: dict[str, int] = self.txn.stat(self._environment.database(database))
        except lmdb.Error as error:
            raise self._environment.corrupt(error) from None
        return found

    def __del__(self) -> None:
        # Also runs while the interpreter ends, when modules may be gone: nothing global here.
        environment = getattr(self, "_environment", None)
        if environment is None:
            return
        if environment.inherited:
            # Ending it here would free the parent's place among the readers.
            environment.kept.append(self.txn)
            return
        self.txn.abort()
        environment.leave()


_open_environments: weakref.WeakValueDictionary[Path, Environment] = weakref.WeakValueDictionary()
_inherited: list[Environment] = []
_registry_lock = threading.Lock()


def acquire(path: str | os.PathLike[str], *, create: bool, map_size: int = MAP_SIZE) -> Environment:
    """The environment at ``path``, opened at most once in this process.

    Args:
        path: the store's folder; with ``create`` it is made if it is not there.
        create: make the store if it does not exist, and insist on being able to write.
        map_size: size of the memory map in bytes, if there is address space for it; it grows
            by itself.

    Raises:
        StoreNotFound, NotAStore, StoreVersionError, StoreReadOnly, StoreCorrupt: see
            :mod:`activation_logging.errors`.
    """
    resolved = Path(path).expanduser().resolve()
    with _registry_lock:
        known = _open_environments.get(resolved)
        if known is not None and known.file == file_id(resolved):
            if create and not known.writable:
                raise unwritable(resolved)
            return known
        # Not open yet, or the folder was deleted or replaced since.
        opened = Environment(resolved, create=create, map_size=map_size)
        _open_environments[resolved] = opened
        return opened


def is_open_here(path: Path) -> bool:
    """Whether this process has the store at a resolved path open."""
    with _registry_lock:
        return path in _open_environments


@contextmanager
def closed_here(path: Path) -> Iterator[None]:
    """Keep this process from opening any store meanwhile.

    Raises:
        StoreInUse: it has the store at ``path`` open.
    """
    with _registry_lock:
        if path in _open_environments:
            raise StoreInUse(f"{path} is open in this process; close it first")
        yield


def _forget_after_fork() -> None:
    """In a forked child: neither use nor close what the parent has open."""
    global _registry_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _registry_lock = threading.Lock()
    for environment in _open_environments.values():
        environment.inherited = True
        _inherited.append(environment)
    _open_environments.clear()
    # py-lmdb 3 inherits its list of open files, and would refuse to open one of them again.
    # Closing it instead would free the parent's place among the readers. Files are known to that
    # list by what this function returns.
    envid: Any = sys.modules.get("lmdb._envid")
    if envid is not None:
        inherited_keys, pid = envid.env_keys, os.getpid()
        envid.env_keys = lambda path, subdir: tuple(
            (pid, *key) for key in inherited_keys(path, subdir)
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
