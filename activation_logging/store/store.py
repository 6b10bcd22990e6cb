"""The store: reading, labelling and deleting entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import lmdb

from activation_logging.errors import EntryNotFound, StoreError, StoreReadOnly
from activation_logging.locations import expanded
from activation_logging.store import layout, schema
from activation_logging.store.beside import WritesBeside
from activation_logging.store.engine import environment
from activation_logging.store.engine.opening import file_id, unwritable
from activation_logging.store.entry import Entry
from activation_logging.store.index import Index
from activation_logging.store.mutations import Mutations
from activation_logging.store.reading import ReadsRows, RowBatch, RowReader

if TYPE_CHECKING:
    import os
    from pathlib import Path
    from types import TracebackType
    from typing import Literal

    import numpy.typing as npt
    from typing_extensions import Self

    from activation_logging.dataset import Dataset, Tokens
    from activation_logging.sites import AnySite
    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.places import Where

T = TypeVar("T")

_PER_COMMIT = 64
_CHUNK = 256
"""Records per transaction of an iteration, so that none stays open for long."""


class Store(WritesBeside, Mapping[str, Entry]):
    """A mapping of keys to entries that always shows the last commit.

    Iteration is in order of the keys, :meth:`entries` in order of writing. Threads may share a
    store, and it works after a fork. Several processes may read and write at the same time.
    :func:`.open_store` opens one.

    A store and its entries can be pickled. Unpickling opens the store again by its absolute path,
    writable if it was. It must therefore be open when it is pickled, and the other process must be
    able to reach it.
    """

    is_many = is_export = False
    """Whether it is several stores that are read as one, see :class:`.ManyStores`."""
    problems: Mapping[str, str] = MappingProxyType({})
    """Why some of several stores are left out, by name."""

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self._open(expanded(path).absolute(), writable=writable, create=writable)

    def _open(self, path: Path, *, writable: bool, create: bool) -> None:
        self.path = path
        self.writable = writable
        self._environment: Environment | None = environment.acquire(path, create=create)
        self._row_reader = RowReader(self)

    def close(self) -> None:
        """Close the store. Arrays read from it stay valid."""
        self._environment = None

    @classmethod
    def existing(cls, path: Path, *, writable: bool) -> Store:
        """Open a store, and never create it; otherwise as the class itself."""
        store = cls.__new__(cls)
        store.__setstate__((path, writable))
        return store

    def __getstate__(self) -> Any:
        """A store travels to another process as its path, and whether it may be written."""
        return self.environment.path, self.writable

    def __setstate__(self, state: Any) -> None:
        path, writable = state
        # The store existed when it was pickled. If it is missing now, do not create an empty one.
        self._open(path, writable=writable, create=False)
        if writable and not self.environment.writable:
            raise unwritable(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.snapshot().num_entries

    def __iter__(self) -> Iterator[str]:
        for key, _ in self.walk(layout.MAIN, values=False):
            if key >= layout.FIRST_NAME:
                return
            yield key.decode("ascii", "backslashreplace")

    def __getitem__(self, key: str) -> Entry:
        return self.entry_in(self.snapshot(), key)

    def __contains__(self, key: object) -> bool:
        raw = layout.entry_key(key)
        return raw is not None and self.snapshot().get(layout.MAIN, raw) is not None

    def entries(self, *, newest_first: bool = False) -> Iterator[Entry]:
        """Every entry in order of writing.

        Entries that are written meanwhile are included; entries deleted meanwhile are skipped.
        """
        for _, key in self.walk(layout.LOG, reverse=newest_first):
            entry = self._find(self.snapshot(), key.decode("ascii", "replace"))
            if entry is not None:
                yield entry

    def at(self, place: bytes, snapshot: Snapshot | None = None) -> Entry | None:
        """The entry that stands at a place of the index; None if it has been deleted since."""
        snapshot = snapshot or self.snapshot()
        key = snapshot.get(layout.LOG, layout.sequence_key(layout.sequence_of(place)))
        return None if key is None else self._find(snapshot, bytes(key).decode("ascii", "replace"))

    def keys_beginning(self, start: str) -> list[str]:
        """The keys that begin with this text."""
        found = self.snapshot().starting_with(layout.MAIN, start.encode("utf-8", "replace"))
        return [key.decode("ascii", "replace") for key, _ in found if key < layout.FIRST_NAME]

    def for_prompt(self, prompt: str) -> list[Entry]:
        """All answers to exactly this text, oldest first."""
        base = layout.prompt_key(prompt)
        snapshot = self.snapshot()
        there = snapshot.starting_with(layout.MAIN, base.encode())
        keys = [key.decode("ascii", "replace") for key, _ in there]
        found = [entry for key in keys if (entry := self._find(snapshot, key)) is not None]
        return sorted(found, key=lambda entry: int(entry.key.partition("#")[2] or 0))

    def for_request(self, request_id: str) -> list[Entry]:
        """The entries of one request, one per choice, in the order of the answer's choices."""
        snapshot = self.snapshot()
        with snapshot.reading():
            cursor = snapshot.cursor(layout.REQUESTS)
            if not cursor.set_key(layout.id_key(request_id)):
                return []
            keys = [bytes(key).decode("ascii", "replace") for key in cursor.iternext_dup()]
        found = [entry for key in keys if (entry := self._find(snapshot, key)) is not None]
        # This database also holds capture ids.
        mine = [entry for entry in found if entry.request_id == request_id]
        return sorted(mine, key=lambda entry: (entry.choice or 0, entry.sequence))

    @overload
    def read(
        self,
        keys: Iterable[str],
        *,
        layer: int | Literal["last"] = ...,
        site: AnySite | None = ...,
        position: None = ...,
    ) -> RowBatch: ...

    @overload
    def read(
        self,
        keys: Iterable[str],
        *,
        layer: int | Literal["last"] = ...,
        site: AnySite | None = ...,
        position: str | int,
    ) -> npt.NDArray[Any]: ...

    def read(
        self,
        keys: Iterable[str],
        *,
        layer: int | Literal["last"] = "last",
        site: AnySite | None = None,
        position: str | int | None = None,
    ) -> npt.NDArray[Any] | RowBatch:
        """Read one layer or site of many answers into one new array, in the order of ``keys``.

        All rows come from one snapshot. float32 and float16 keep their type. bfloat16 is widened
        to float32, and so are pooled rows and answers of different types.

        Args:
            keys: the answers' keys. A key may occur several times.
            layer: a logged layer of the residual stream, or ``last``.
            site: another site instead, such as ``heads@15``; its rows are flattened.
            position: one row of each answer, or a pool of its rows: one of
                :data:`activation_logging.dataset.NAMED_POSITIONS`, or a position in prompt +
                response (negative: from the last state). None for all rows.

        Returns:
            ``[answers, width]``; without ``position`` a :class:`RowBatch` of ``values``,
            ``[total rows, width]``, and ``offsets``, ``[answers + 1]``.

        Raises:
            EntryNotFound: a key has no entry.
            RowsMissing: an entry lacks the site, or a state at that position.
            StoreError: the rows have different widths and do not fit into one array.
            DatasetError: the position is invalid.
        """
        return self._rows().read(keys, layer if site is None else site, position)

    def _rows(self) -> ReadsRows:
        self.environment  # noqa: B018 - after a fork it also replaces the row reader
        return self._row_reader

    def dataset(self, label: str | None = None, **options: Any) -> Dataset:
        """Features and labels of the answers that one evaluator has judged.

        The options (``layer``, ``position``, ``positive``, ``tags``, ...) are those of
        :func:`activation_logging.dataset.make_dataset`.

        Raises:
            DatasetError: the labelled answers do not make a dataset; the message says why.
        """
        from activation_logging.dataset import make_dataset

        return make_dataset(self, label, **options)

    def tokens(self, label: str | None = None, **options: Any) -> Tokens:
        """The tokens of the claims that one evaluator has judged, with their states, in batches.

        The options (``layer``, ``site``, ``unlabelled``, ...) are those of
        :func:`activation_logging.dataset.make_tokens`.

        Raises:
            DatasetError: the spans do not make a dataset; the message says why.
        """
        from activation_logging.dataset import make_tokens

        return make_tokens(self, label, **options)

    def delete(self, key: str) -> None:
        """Remove an entry with its labels and arrays, and the rows that no other entry shares.

        Raises:
            EntryNotFound: no entry has that key.
            StoreReadOnly: the store was opened for reading.
        """
        self.transact(lambda change, txn: change.delete_entry(txn, key))

    def delete_all(self, keys: Iterable[str]) -> int:
        """Remove entries, many per commit, and return how many. Missing ones are skipped.

        Raises:
            StoreReadOnly: the store was opened for reading.
        """
        left = iter(keys)
        deleted = 0
        while some := list(islice(left, _PER_COMMIT)):
            deleted += self.transact(partial(_delete_some, some))
        return deleted

    def writers(self) -> dict[str, dict[str, Any]]:
        """The records of all writers, with their counters, by writer id."""
        return {
            key.decode("ascii", "backslashreplace"): schema.writer(value, "a writer's record")
            for key, value in self.walk(layout.WRITERS)
        }

    def readers(self) -> list[dict[str, int]]:
        """The open read transactions of all processes: ``pid`` and ``commits_behind``.

        One that is many commits behind makes the file grow.
        """
        env = self.environment
        latest = env.last_commit
        return [
            {"pid": found.pid, "commits_behind": max(latest - found.commit, 0)}
            for found in env.readers()
        ]

    def disk_bytes(self) -> tuple[int, int]:
        """The size of its file, and how much of the disk that takes; the file has holes."""
        status = (self.path / "data.mdb").stat()
        return status.st_size, status.st_blocks * 512

    def orphans(self) -> list[str]:
        """Ids of captures without an entry, which a killed front end leaves behind."""
        keys = (key for key, _ in self.walk(layout.CAPTURES, values=False))
        return [_text(key) for key in keys if self.snapshot().get(layout.REQUESTS, key) is None]

    # --- for the package itself: views, transactions and walks; no part of the contract ----

    @property
    def parts(self) -> tuple[Store, ...]:
        """The stores that it is made of: itself."""
        return (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of the parts."""
        return (self.path.name,)

    @property
    def where(self) -> Where:
        """What :func:`.open_store` takes to open it again."""
        return self.path

    @property
    def is_indexed(self) -> bool:
        """Whether its index lists all of its entries."""
        return Index.of(self.snapshot()) is not None

    def waiting(self) -> tuple[str, ...]:
        """Statuses under which an index lists entries whose rows may lie in another store."""
        return ()

    def joined(self) -> Iterator[tuple[str, Entry]]:
        """Entries whose rows lie in another store, and the status that their own gives them."""
        return iter(())

    def notes(self) -> list[str]:
        """What is to be known of several stores before their answers are counted."""
        return []

    @property
    def replaced(self) -> bool:
        """Whether the path leads to another store by now, or to none."""
        environment = self.environment
        return environment.file != file_id(environment.path)

    @property
    def environment(self) -> Environment:
        """The LMDB environment of this process.

        Raises:
            StoreError: the store has been closed.
        """
        if self._environment is None:
            raise StoreError(f"{self.path} has been closed")
        if self._environment.inherited:
            # LMDB must not be used across a fork, and the parent's environment must not be closed.
            self._environment = environment.acquire(self.path, create=False)
            # Another thread of the parent may have held the old reader's lock.
            self._row_reader = RowReader(self)
        return self._environment

    def snapshot(self) -> Snapshot:
        """A view of what has been committed; see :meth:`.Environment.snapshot`."""
        return self.environment.snapshot()

    def transact(self, action: Callable[[Mutations, Any], T]) -> T:
        """Run ``action`` in one write transaction, given the changes it may make and the handle.

        It may run several times; only its last run is kept.

        Raises:
            StoreReadOnly: the store was opened for reading.
            StoreError: LMDB or the disk refuses.
        """
        if not self.writable:
            raise StoreReadOnly(f"{self.path} is open for reading; open_store(path, writable=True)")
        change = Mutations(self.environment)
        try:
            return change.transact(lambda txn: action(change, txn))
        except (lmdb.Error, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path} cannot be written: {error}") from None

    def entry_in(self, snapshot: Snapshot, key: str) -> Entry:
        """An entry as one view shows it.

        Raises:
            EntryNotFound: no entry has that key.
        """
        entry = self._find(snapshot, key)
        if entry is None:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} in {self.path}")
        return entry

    def walk(
        self, database: bytes, *, values: bool = True, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """All records of one of :data:`.layout.DATABASES` as copies, a chunk per transaction.

        Without ``values``, these are empty.
        """
        chunk: list[tuple[bytes, bytes]] = []
        while True:
            snapshot = self.snapshot()
            if not snapshot.has(database):
                return
            with snapshot.reading():
                cursor = snapshot.cursor(database)
                found = _resume(cursor, chunk[-1][0] if chunk else None, reverse)
                chunk = []
                while found and len(chunk) < _CHUNK:
                    chunk.append((bytes(cursor.key()), bytes(cursor.value()) if values else b""))
                    found = cursor.prev() if reverse else cursor.next()
            del cursor, snapshot
            yield from chunk
            if len(chunk) < _CHUNK:
                return

    def _find(self, snapshot: Snapshot, key: object) -> Entry | None:
        raw = layout.entry_key(key)
        value = None if raw is None else snapshot.get(layout.MAIN, raw)
        return None if value is None else Entry(self, str(key), value)

    def __repr__(self) -> str:
        if self._environment is None:
            return f"Store({str(self.path)!r}, closed)"
        return f"Store({str(self.path)!r}, {len(self)} entries)"


def _delete_some(keys: Iterable[str], change: Mutations, txn: Any) -> int:
    deleted = 0
    for key in keys:
        # A missing entry raises before anything is changed.
        with suppress(EntryNotFound):
            change.delete_entry(txn, key)
            deleted += 1
    return deleted


def _text(key: bytes) -> str:
    """The id in a key of :func:`layout.id_key`; undecodable bytes are escaped."""
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return key.decode("ascii", "backslashreplace")


def _resume(cursor: Any, last: bytes | None, reverse: bool) -> bool:
    """Move a cursor to the record after ``last``, or to the first. Returns False at the end."""
    if last is None:
        return bool(cursor.last() if reverse else cursor.first())
    if reverse:
        return bool(cursor.prev() if cursor.set_range(last) else cursor.last())
    return bool(cursor.set_range(last + b"\0"))
