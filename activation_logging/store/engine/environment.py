"""One open LMDB environment per path and process.

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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import lmdb

from activation_logging.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreVersionError,
)
from activation_logging.locations import expanded
from activation_logging.store import layout
from activation_logging.store.engine.address_space import MAP_SIZE, fitting_map_size
from activation_logging.store.engine.opening import (
    MAX_READERS,
    file_id,
    open_store_files,
    unwritable,
)
from activation_logging.store.engine.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


class Reader(NamedTuple):
    """An open read transaction: its process and thread, and the commit that it sees."""

    pid: int
    thread: str
    commit: int


class DatabaseMissing(Exception):
    """A transaction needs a database that the store does not have yet."""

    def __init__(self, name: bytes) -> None:
        super().__init__(name)
        self.name = name


class Environment:
    """One open LMDB environment and its databases. :func:`acquire` returns it."""

    def __init__(self, path: Path, *, create: bool, map_size: int) -> None:
        self.path = path
        self.token = object()
        """Identifies this environment without keeping it open."""
        self.inherited = False
        """Whether this process inherited it through a fork and must not use it."""
        self.kept: list[Any] = []
        """Transactions of the parent, neither to be used nor ended here."""
        self._env, self.databases, self.writable = open_store_files(
            path, create=create, map_size=map_size
        )
        self.databases[layout.MAIN] = self._env.open_db(None)
        """Handles of :data:`layout.DATABASES` and of the main one, by name."""
        self.file = file_id(path)
        # Reentrant: garbage collection may end a snapshot, and so lock again, in the same thread.
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._live = 0
        self._opening = threading.Lock()
        self.remaps = 0
        """How often the map has moved."""
        self._waiting = 0
        self.limit: int | None = None
        """How large what is written within the limit may make the file, bytes."""
        if self.writable:
            self.free_dead_readers()

    def database(self, name: bytes) -> Any:
        """The handle of one of :data:`layout.DATABASES`, or of the main one.

        Raises:
            DatabaseMissing: the store has no such database yet; :meth:`transact` makes it.
        """
        try:
            return self.databases[name]
        except KeyError:
            raise DatabaseMissing(name) from None

    def has(self, name: bytes) -> bool:
        """Whether the store has this database, as the latest transaction has seen it."""
        return name in self.databases

    @property
    def has_index(self) -> bool:
        """Whether what is written is also to be indexed; stores of version 1 have no index."""
        return layout.INDEX in self.databases

    @property
    def map_size(self) -> int:
        """Size of the memory map, bytes."""
        return self._info("map_size")

    @property
    def last_commit(self) -> int:
        """Number of the latest commit."""
        return self._info("last_txnid")

    @property
    def file_bytes(self) -> int:
        """Size of the file up to its last page that was ever used, bytes."""
        return (self._info("last_pgno") + 1) * int(self._env.stat()["psize"])

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
        """Convert LMDB's errors of a damaged file into :class:`StoreCorrupt`."""
        try:
            yield
        except lmdb.Error as error:
            raise self.corrupt(error) from None

    def corrupt(self, error: Exception) -> StoreCorrupt:
        """The error to raise if LMDB finds a damaged page."""
        return StoreCorrupt(f"{self.path} is damaged: {error}; see `activation-logging verify`")

    def limit_to(self, nbytes: int) -> None:
        """Keep what is written within the limit from making the file larger than so many bytes.

        LMDB itself refuses what does not fit into its map, so the map becomes that small. A file
        that is larger already stays as it is, and grows no more.

        Raises:
            StoreError: transactions stayed open.
        """
        self.limit = nbytes - nbytes % self._env.stat()["psize"]
        self._remap(0, self.remaps)

    def transact(self, action: Callable[[Any], T], *, within_limit: bool = False) -> T:
        """Run ``action`` in a write transaction. If the map is full, grow it and run it again.

        ``action`` may run several times. Only its last run is committed.

        Raises:
            StoreCorrupt: LMDB finds the file damaged. StoreReadOnly: the store is read-only.
            StoreFull: with ``within_limit``: the file would become larger than the limit.
        """
        while True:
            try:
                with self.write() as txn:
                    return action(txn)
            except lmdb.MapFullError:  # noqa: PERF203 - trying again is the point
                if within_limit and self.limit is not None:
                    raise StoreFull(f"{self.path} may not become larger") from None
                self._grow()
            except DatabaseMissing as missing:
                self._make_database(missing.name)
            except _DAMAGE as error:
                raise self.corrupt(error) from None

    def begin(self, *, write: bool) -> Any:
        """Begin a transaction; until :meth:`leave`, the map stays where it is."""
        while True:
            with self._lock:
                self._live += 1
                remaps = self.remaps
                is_known = layout.DERIVED in self.databases
            try:
                txn = self._env.begin(write=write, buffers=True)
                if is_known or not self.sees_derived(txn):
                    return txn
                # Somebody has made it since. A transaction knows the handles from before it began.
                txn.abort()
                self._open_derived(create=False)
                self.leave()
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

    def sees_derived(self, txn: Any) -> bool:
        """Whether a transaction shows the database of arrays beside entries."""
        try:
            return txn.get(layout.DERIVED) is not None
        except lmdb.Error as error:
            raise self.corrupt(error) from None

    def _open_derived(self, *, create: bool) -> None:
        with self._opening:
            if layout.DERIVED not in self.databases:
                made = self._env.open_db(layout.DERIVED, create=create)
                # Another thread may be going through the old ones.
                self.databases = {**self.databases, layout.DERIVED: made}

    def _make_database(self, name: bytes) -> None:
        """Add the database of arrays to a store that was made before there were any.

        Raises:
            StoreVersionError: the store is of version 1, whose readers would count it as an entry.
        """
        if name != layout.DERIVED or not self.has_index:
            raise StoreVersionError(
                f"{self.path} has format version {layout.WITHOUT_INDEX}, which holds no arrays "
                "beside entries; `activation-logging upgrade PATH` makes it one that does"
            )
        while True:
            # This transaction keeps the map where it is, and must not be older than the database.
            with self._lock:
                self._live += 1
                remaps = self.remaps
            try:
                self._open_derived(create=True)
            except lmdb.MapFullError:
                self.leave()
                self._grow()
            except lmdb.MapResizedError:
                self.leave()
                self._remap(0, remaps)
            except BaseException:
                self.leave()
                raise
            else:
                self.leave()
                return

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
        """Enlarge the map by at least ``more`` bytes, and to at least the file's used size.

        Without a limit on the file it becomes far larger, if there is address space for that.

        This waits until no transaction of this process is open. It returns early if another thread
        has remapped meanwhile: ``remaps`` is the count from before the caller's error.

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
                    f"{self.path} needs a larger memory map, but {self._live} transactions of this "
                    f"process have stayed open for {_GROW_PATIENCE_S:g} s"
                )
            info = self._env.info()
            have = info["map_size"]
            used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
            least, wanted = max(used, have + more), MAP_SIZE
            if self.limit is not None:
                least = least if more else used
                wanted = max(least, self.limit)
            try:
                size = fitting_map_size(least, wanted=wanted, have=have)
            except StoreError as error:
                raise StoreError(f"the memory map of {self.path} cannot grow: {error}") from None
            # Only a limit may keep it from growing: without one, more than MAP_SIZE is doubled.
            self._env.set_mapsize(size if self.limit is None else min(size, wanted))
            self.remaps += 1
            self._idle.notify_all()


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
    resolved = expanded(path).resolve()
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
