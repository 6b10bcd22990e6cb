"""One open LMDB environment per path and process.

LMDB has three rules: a process must not open the same file twice, must not use an environment
across a fork, and must not remap it while a transaction is open. This module keeps all three, so
other modules need not know them.
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
from activation_logging.store.engine.reader_table import Reader
from activation_logging.store.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

logger = logging.getLogger(__name__)
T = TypeVar("T")

_GROW_PATIENCE_S = 10.0
_GROW_BYTES = 1 << 20

# The first two report damage. The next two follow if a damaged transaction is used further. py-lmdb
# leaves some of these errors pending although it returns a result; Python then raises SystemError.
_DAMAGE = (
    *(lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.BadTxnError),
    SystemError,
)


class Environment:
    """One open LMDB environment and its databases. :func:`acquire` returns it."""

    def __init__(self, path: Path, *, create: bool, map_size: int) -> None:
        self.path = path
        self.token = object()
        """Identifies this environment without keeping it open."""
        self.inherited = False
        """Whether this process inherited it through a fork and must not use it."""
        self.kept: list[Any] = []
        """Inherited transactions of the parent, which this process must neither use nor end."""
        self._env, self._databases, self.writable = open_store_files(
            path, create=create, map_size=map_size
        )
        self._databases[layout.MAIN] = self._env.open_db(None)
        self.file = file_id(path)
        # Reentrant: garbage collection may end a snapshot, and so lock again, in the same thread.
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._live = 0
        self._remaps = 0
        self._waiting = 0
        if self.writable:
            self.free_dead_readers()

    def database(self, name: bytes) -> Any:
        """The handle of one of :data:`layout.DATABASES`, or of the main one."""
        return self._databases[name]

    @property
    def has_index(self) -> bool:
        """Whether the store has an index. A store of version 1 has none."""
        return layout.INDEX in self._databases

    @property
    def num_databases(self) -> int:
        """Number of named databases. The main database lists them beside the entries."""
        return len(self._databases) - 1

    @property
    def map_size(self) -> int:
        """Size of the memory map, bytes."""
        return self._info("map_size")

    @property
    def last_commit(self) -> int:
        """Number of the latest commit."""
        return self._info("last_txnid")

    def _info(self, what: str) -> int:
        # LMDB reads this from the map, which another thread could be remapping.
        with self._lock:
            return int(self._env.info()[what])

    def readers(self) -> list[Reader]:
        """The open read transactions of the store, of all processes."""
        # A header, then one line per slot: process, thread, and the commit, or "-" for a free slot.
        places = [line.split() for line in self._env.readers().splitlines()[1:]]
        return [
            Reader(int(pid), thread, int(commit))
            for pid, thread, commit in places
            if commit.isdigit()
        ]

    def free_dead_readers(self) -> int:
        """Free the slots of killed processes in the reader table. Returns how many."""
        return int(self._env.reader_check())

    def snapshot(self) -> Snapshot:
        """A read transaction that lives as long as something refers to it.

        It costs a microsecond. An old one keeps LMDB from reusing freed pages, and keeps the map
        from growing. Hold one for a single piece of work, and never two at a time.
        """
        return Snapshot(self)

    @contextmanager
    def write(self) -> Iterator[Any]:
        """One write transaction: committed and synced at the end, or rolled back on an error."""
        if not self.writable:
            raise unwritable(self.path)
        txn = self._begin(write=True)
        try:
            yield txn
        except BaseException:
            txn.abort()
            raise
        else:
            txn.commit()
        finally:
            self._leave()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Convert LMDB's errors of a damaged file into :class:`StoreCorrupt`."""
        try:
            yield
        except lmdb.Error as error:
            raise self.corrupt(error) from None

    def corrupt(self, error: Exception) -> StoreCorrupt:
        """The error to raise if LMDB finds a damaged page."""
        return StoreCorrupt(f"{self.path} is damaged: {error}; see `activation-logging verify`")

    def transact(self, action: Callable[[Any], T]) -> T:
        """Run ``action`` in a write transaction. If the map is full, grow it and run it again.

        ``action`` may run several times. Only its last run is committed.

        Raises:
            StoreCorrupt: LMDB finds the file damaged. StoreReadOnly: the store is read-only.
        """
        while True:
            try:
                with self.write() as txn:
                    return action(txn)
            except lmdb.MapFullError:  # noqa: PERF203 - trying again is the point
                self._grow()
            except _DAMAGE as error:
                raise self.corrupt(error) from None

    def _begin(self, *, write: bool) -> Any:
        """Begin a transaction. The map is not remapped until :meth:`_leave`."""
        while True:
            with self._lock:
                self._live += 1
                remaps = self._remaps
            try:
                return self._env.begin(write=write, buffers=True)
            except lmdb.MapResizedError:
                self._leave()
                # Another process has written past the end of this map.
                self._remap(0, remaps)
            except lmdb.ReadersFullError:
                self._leave()
                if self.free_dead_readers():
                    continue
                raise StoreError(
                    f"{self.path} has {MAX_READERS} open readers; close some"
                ) from None
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        with self._lock:
            self._live -= 1
            if self._waiting:
                self._idle.notify_all()

    def _grow(self) -> None:
        """Enlarge the map for a write that does not fit."""
        self._remap(_GROW_BYTES, self._remaps)
        logger.info("the memory map of %s has %d MiB now", self.path, self.map_size >> 20)

    def _remap(self, more: int, remaps: int) -> None:
        """Enlarge the map by at least ``more`` bytes, and to at least the file's used size.

        It becomes far larger if there is address space for that.

        This waits until no transaction of this process is open. It returns early if another thread
        has remapped meanwhile: ``remaps`` is the count from before the caller's error.

        Raises:
            StoreError: transactions stayed open, or a limit on address space leaves no room.
        """
        with self._lock:
            self._waiting += 1
            self._idle.wait_for(
                lambda: not self._live or self._remaps != remaps, timeout=_GROW_PATIENCE_S
            )
            self._waiting -= 1
            if self._remaps != remaps:
                return
            if self._live:
                raise StoreError(
                    f"{self.path} needs a larger memory map, but {self._live} transactions of this "
                    f"process have stayed open for {_GROW_PATIENCE_S:g} s"
                )
            info = self._env.info()
            have = info["map_size"]
            used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
            try:
                size = fitting_map_size(max(used, have + more), have=have)
            except StoreError as error:
                raise StoreError(f"the memory map of {self.path} cannot grow: {error}") from None
            self._env.set_mapsize(size)
            self._remaps += 1
            self._idle.notify_all()


class Snapshot:
    """A read transaction. It ends when nothing refers to it any more.

    One thread may use it at a time. Its values are memory of the map: copy them before it ends.
    """

    __slots__ = ("__weakref__", "_environment", "_txn")

    def __init__(self, environment: Environment) -> None:
        self._txn = environment._begin(write=False)
        self._environment = environment

    @property
    def commit(self) -> tuple[object, ...]:
        """Equal for two snapshots in which every value has the same address."""
        environment = self._environment
        return environment.token, self._txn.id(), environment._remaps

    def get(self, database: bytes, key: bytes) -> memoryview | None:
        """The value of a key; valid as long as this snapshot lives."""
        try:
            value: memoryview | None = self._txn.get(key, db=self._environment.database(database))
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
        """Convert LMDB's errors of a damaged file into :class:`StoreCorrupt`."""
        return self._environment.reading()

    def cursor(self, database: bytes) -> Any:
        """An LMDB cursor. Use it inside :meth:`reading`, and only while this snapshot lives."""
        return self._txn.cursor(self._environment.database(database))

    @property
    def used_bytes(self) -> int:
        """Bytes of all used pages. The rest of the file is free space."""
        stats = [self._stat(name) for name in self._environment._databases]
        pages = sum(
            found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"] for found in stats
        )
        return pages * stats[0]["psize"]

    @property
    def is_ordered(self) -> bool:
        """Whether the log lists as many entries as there are."""
        return self.count(layout.LOG) == self.num_entries

    @property
    def num_entries(self) -> int:
        """Number of entries."""
        return self.count(layout.MAIN) - self._environment.num_databases

    @property
    def index(self) -> Index | None:
        """The index; None if there is none, or if it is incomplete."""
        if not self._environment.has_index:
            return None
        raw = self.get(layout.META, layout.FORMAT_KEY)
        is_whole = raw is not None and layout.load(raw, "the format record").get("indexed")
        return Index(self) if is_whole else None

    def count(self, database: bytes) -> int:
        """Number of records of a database. The main database also counts the named databases."""
        return self._stat(database)["entries"]

    def _stat(self, database: bytes) -> dict[str, int]:
        try:
            found: dict[str, int] = self._txn.stat(self._environment.database(database))
        except lmdb.Error as error:
            raise self._environment.corrupt(error) from None
        return found

    def __del__(self) -> None:
        # This also runs at interpreter shutdown, when modules may be gone: use no globals.
        environment = getattr(self, "_environment", None)
        if environment is None:
            return
        if environment.inherited:
            # Ending it here would free the parent's slot in the reader table.
            environment.kept.append(self._txn)
            return
        self._txn.abort()
        environment._leave()


_open_environments: weakref.WeakValueDictionary[Path, Environment] = weakref.WeakValueDictionary()
_inherited: list[Environment] = []
_registry_lock = threading.Lock()


def acquire(path: str | os.PathLike[str], *, create: bool, map_size: int = MAP_SIZE) -> Environment:
    """The environment at ``path``, opened at most once in this process.

    Args:
        path: the store's folder; with ``create`` it is created if it does not exist.
        create: create the store if it does not exist, and require write access.
        map_size: preferred size of the memory map, bytes. The map is smaller if address space is
            limited, and grows by itself.

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
        # Not open yet, or the folder has been deleted or replaced.
        opened = Environment(resolved, create=create, map_size=map_size)
        _open_environments[resolved] = opened
        return opened


def is_open_here(path: Path) -> bool:
    """Whether this process has the store at a resolved path open."""
    with _registry_lock:
        return path in _open_environments


@contextmanager
def closed_here(path: Path) -> Iterator[None]:
    """Keep this process from opening any store while the block runs.

    Raises:
        StoreInUse: this process has the store at ``path`` open.
    """
    with _registry_lock:
        if path in _open_environments:
            raise StoreInUse(f"{path} is open in this process; close it first")
        yield


def _forget_after_fork() -> None:
    """In a forked child: neither use nor close the parent's environments."""
    global _registry_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _registry_lock = threading.Lock()
    for environment in _open_environments.values():
        environment.inherited = True
        _inherited.append(environment)
    _open_environments.clear()
    # The child inherits py-lmdb 3's list of open files, and py-lmdb would refuse to open one again.
    # Closing it instead would free the parent's slot in the reader table. The list identifies files
    # by the result of this function, so the child gets different results.
    envid: Any = sys.modules.get("lmdb._envid")
    if envid is not None:
        inherited_keys, pid = envid.env_keys, os.getpid()
        envid.env_keys = lambda path, subdir: tuple(
            (pid, *key) for key in inherited_keys(path, subdir)
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
