"""Reading a store, labelling it, and removing from it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from activation_logging.errors import EntryNotFound, StoreError, StoreReadOnly
from activation_logging.records import Evaluation, Label
from activation_logging.store import environment, layout, schema
from activation_logging.store.entry import Entry
from activation_logging.store.mutations import Mutations

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from activation_logging.dataset import Dataset
    from activation_logging.store.environment import Environment, Snapshot

T = TypeVar("T")

_PER_COMMIT = 64
_CHUNK = 256
"""Records read per transaction while iterating: no iteration holds an old one for long."""


def open_store(path: str | os.PathLike[str], *, writable: bool = False) -> Store:
    """Open a store, for reading unless asked otherwise.

    Args:
        path: the store's folder (the ``ACTIVATION_LMDB_PATH`` of the server).
        writable: also allow labels and deletions; the store is made if it does not exist.

    Raises:
        StoreNotFound: nothing is there. NotAStore, StoreVersionError: something else is.
        StoreCorrupt: the file has been cut off.
        StoreReadOnly: ``writable`` was asked for without the permission.
    """
    return Store(path, writable=writable)


class Store(Mapping[str, Entry]):
    """A mapping of keys to entries, always showing what was last committed.

    Iteration goes in order of the keys; :meth:`entries` goes in order of writing. It may be
    shared among threads and used after a fork; several processes may read and write at once.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = Path(path)
        self.writable = writable
        self._environment: Environment | None = environment.acquire(path, create=writable)
        self._pinned = threading.local()

    def close(self) -> None:
        """Stop using the store. Arrays read from it stay valid."""
        self._environment = None

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
        return self._snapshot().count(layout.MAIN) - len(layout.DATABASES)

    def __iter__(self) -> Iterator[str]:
        for key, _ in self._walk(layout.MAIN, values=False):
            if key >= layout.FIRST_NAME:
                return
            yield key.decode("ascii", "backslashreplace")

    def __getitem__(self, key: str) -> Entry:
        entry = self._find(self._snapshot(), key)
        if entry is None:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} in {self.path}")
        return entry

    def __contains__(self, key: object) -> bool:
        raw = layout.entry_key(key)
        return raw is not None and self._snapshot().get(layout.MAIN, raw) is not None

    def entries(self, *, newest_first: bool = False) -> Iterator[Entry]:
        """Every entry in order of writing, those included that are written meanwhile.

        Those deleted meanwhile are left out.
        """
        for _, key in self._walk(layout.LOG, reverse=newest_first):
            entry = self._find(self._snapshot(), key.decode("ascii", "replace"))
            if entry is not None:
                yield entry

    def for_prompt(self, prompt: str) -> list[Entry]:
        """All answers to exactly this text, oldest first."""
        base = layout.prompt_key(prompt)
        snapshot = self._snapshot()
        keys = [key.decode() for key, _ in snapshot.starting_with(layout.MAIN, base.encode())]
        found = [entry for key in keys if (entry := self._find(snapshot, key)) is not None]
        return sorted(found, key=lambda entry: int(entry.key.partition("#")[2] or 0))

    def for_request(self, request_id: str) -> list[Entry]:
        """The entries of one request, one per choice, in the order of the answer's choices."""
        snapshot = self._snapshot()
        with self._live_environment().reading():
            cursor = snapshot.cursor(layout.REQUESTS)
            if not cursor.set_key(layout.id_key(request_id)):
                return []
            keys = [bytes(key).decode("ascii", "replace") for key in cursor.iternext_dup()]
        found = [entry for key in keys if (entry := self._find(snapshot, key)) is not None]
        # The same index holds the ids that captures go by.
        mine = [entry for entry in found if entry.request_id == request_id]
        return sorted(mine, key=lambda entry: (entry.choice or 0, entry.document["sequence"]))

    def put_evaluation(
        self,
        key: str,
        *,
        name: str,
        label: Label,
        score: float | None = None,
        judge: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one evaluator's label beside an entry, replacing only its own earlier one.

        Raises:
            EntryNotFound: no entry has that key.
            StoreReadOnly: the store was opened for reading.
            LabelError: a part of it cannot be; see :meth:`.Evaluation.checked`.
        """
        evaluation = Evaluation.checked(name, label, score, judge, details)
        self._transact(lambda change, txn: change.put_evaluation(txn, key, evaluation))

    def dataset(self, label: str | None = None, **options: Any) -> Dataset:
        """Features and labels of the answers that one evaluator has judged.

        The options (``layer``, ``position``, ``positive``, ``tags``, ...) are those of
        :func:`activation_logging.dataset.make_dataset`.

        Raises:
            DatasetError: the labelled answers cannot be learned from; the message says why.
        """
        from activation_logging.dataset import make_dataset

        return make_dataset(self, label, **options)

    def delete(self, key: str) -> None:
        """Remove an entry with its labels, and the rows that no other entry shares.

        Raises:
            EntryNotFound: no entry has that key.
            StoreReadOnly: the store was opened for reading.
        """
        self._transact(lambda change, txn: change.delete_entry(txn, key))

    def delete_all(self, keys: Iterable[str]) -> int:
        """Remove entries, many per commit, and say how many; those that are gone are left out.

        Raises:
            StoreReadOnly: the store was opened for reading.
        """
        left = iter(keys)
        deleted = 0
        while some := list(islice(left, _PER_COMMIT)):
            deleted += self._transact(partial(_delete_some, some))
        return deleted

    def writers(self) -> dict[str, dict[str, Any]]:
        """Who has written to this store, with their counters, by writer id."""
        return {
            key.decode("ascii", "backslashreplace"): schema.writer(
                layout.load(value, "a writer's record"), "a writer's record"
            )
            for key, value in self._walk(layout.WRITERS)
        }

    def readers(self) -> list[dict[str, int]]:
        """The views of this store that are open in any process: ``pid``, ``commits_behind``.

        A view is an array that nobody has let go of. One that is far behind makes the file grow.
        """
        env = self._live_environment()
        latest = env.last_commit
        return [
            {"pid": found.pid, "commits_behind": max(latest - found.commit, 0)}
            for found in env.readers()
        ]

    def orphans(self) -> list[str]:
        """Ids of captures whose entry never came: what a killed front end leaves behind."""
        keys = (key for key, _ in self._walk(layout.CAPTURES, values=False))
        return [_text(key) for key in keys if self._snapshot().get(layout.REQUESTS, key) is None]

    def _transact(self, action: Callable[[Mutations, Any], T]) -> T:
        if not self.writable:
            raise StoreReadOnly(f"{self.path} is open for reading; open_store(path, writable=True)")
        env = self._live_environment()
        change = Mutations(env)
        try:
            return env.transact(lambda txn: action(change, txn))
        except (lmdb.Error, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.path} cannot be written: {error}") from None

    def _live_environment(self) -> Environment:
        if self._environment is None:
            raise StoreError(f"{self.path} has been closed")
        if self._environment.pid != os.getpid():
            # LMDB must not be used across a fork; what the parent has open is not ours to close.
            self._pinned = threading.local()
            self._environment = environment.acquire(self.path, create=False)
        return self._environment

    def _snapshot(self) -> Snapshot:
        return self._live_environment().snapshot()

    def _find(self, snapshot: Snapshot, key: object) -> Entry | None:
        raw = layout.entry_key(key)
        value = None if raw is None else snapshot.get(layout.MAIN, raw)
        return None if value is None else Entry(self, str(key), value)

    def _rows(self, key: bytes, fresh: Snapshot) -> tuple[memoryview | None, Snapshot]:
        """A block of rows, and the transaction that keeps it where it is.

        Rows never change, so the transaction that earlier arrays of this thread keep open will
        do where it knows these rows: a list of many arrays takes one place among the readers.
        """
        pinned: Snapshot | None = getattr(self._pinned, "latest", lambda: None)()
        if pinned is not None and (raw := pinned.get(layout.ROWS, key)) is not None:
            return raw, pinned
        self._pinned.latest = weakref.ref(fresh)
        return fresh.get(layout.ROWS, key), fresh

    def _walk(
        self, database: bytes, *, values: bool = True, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """All records of a database as copies, a chunk per transaction."""
        chunk: list[tuple[bytes, bytes]] = []
        while True:
            snapshot = self._snapshot()
            with self._live_environment().reading():
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

    def __repr__(self) -> str:
        if self._environment is None:
            return f"Store({str(self.path)!r}, closed)"
        return f"Store({str(self.path)!r}, {len(self)} entries)"


def _delete_some(keys: Iterable[str], change: Mutations, txn: Any) -> int:
    deleted = 0
    for key in keys:
        # What is gone raises before anything is changed.
        with suppress(EntryNotFound):
            change.delete_entry(txn, key)
            deleted += 1
    return deleted


def _text(key: bytes) -> str:
    """An identifier of :func:`layout.id_key`; of a damaged one, what can be shown."""
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return key.decode("ascii", "backslashreplace")


def _resume(cursor: Any, last: bytes | None, reverse: bool) -> bool:
    """Move a cursor to the record behind ``last``, or to the first; False if there is none."""
    if last is None:
        return bool(cursor.last() if reverse else cursor.first())
    if reverse:
        return bool(cursor.prev() if cursor.set_range(last) else cursor.last())
    return bool(cursor.set_range(last + b"\0"))
