"""A view of what had been committed at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmdb

from activation_logging.store import layout
from activation_logging.store.engine.pages import used_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from activation_logging.store.engine.environment import Environment


class Snapshot:
    """A read transaction. It ends when nothing refers to it any more.

    One thread may use it at a time. Its values are memory of the map: copy them before it ends.
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
        if not self.has(database):
            return None
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
        if not self.has(database):
            return
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
        """An LMDB cursor, for use inside :meth:`reading` and while this lives."""
        return self.txn.cursor(self._environment.database(database))

    @property
    def used_bytes(self) -> int:
        """Bytes of all pages that hold something; the rest of the file is free to be used."""
        return used_bytes(
            self._stat(name) for name in self._environment.databases if self.has(name)
        )

    @property
    def is_ordered(self) -> bool:
        """Whether the log lists as many entries as there are."""
        return self.count(layout.LOG) == self.num_entries

    @property
    def num_entries(self) -> int:
        """Number of entries."""
        # The main database lists the named ones beside the entries.
        return self.count(layout.MAIN) - sum(map(self.has, self._environment.databases)) + 1

    @property
    def has_index(self) -> bool:
        """Whether the store has an index, which may be incomplete."""
        return self._environment.has_index

    def has(self, database: bytes) -> bool:
        """Whether this view shows a database: that of arrays may be younger than the view."""
        return database != layout.DERIVED or self._environment.sees_derived(self.txn)

    def count(self, database: bytes) -> int:
        """Number of records of a database. The main database also counts the named databases."""
        return self._stat(database)["entries"] if self.has(database) else 0

    def _stat(self, database: bytes) -> dict[str, int]:
        try:
            found: dict[str, int] = self.txn.stat(self._environment.database(database))
        except lmdb.Error as error:
            raise self._environment.corrupt(error) from None
        return found

    def __del__(self) -> None:
        # This also runs at interpreter shutdown, when modules may be gone: use no globals.
        environment = getattr(self, "_environment", None)
        if environment is None:
            return
        if environment.inherited:
            # Ending it here would free the parent's place among the readers.
            environment.kept.append(self.txn)
            return
        self.txn.abort()
        environment.leave()
