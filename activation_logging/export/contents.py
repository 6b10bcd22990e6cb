"""An export's records as the databases that :mod:`activation_logging.store.layout` describes."""

from __future__ import annotations

import base64
import bisect
import json
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.errors import StoreCorrupt
from activation_logging.store import layout, schema
from activation_logging.store.rows import sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from activation_logging.export.reading import Opened

_FIELDS = {layout.EVALUATIONS: "labels", layout.DERIVED: "arrays"}


class Table(NamedTuple):
    """The keys of a database, sorted, and what gives the values of one of them."""

    keys: Sequence[bytes]
    values: Callable[[bytes], list[bytes]]

    def find(self, key: bytes) -> list[bytes]:
        """The values of a key; none if it is not there."""
        at = bisect.bisect_left(self.keys, key)
        return self.values(key) if at < len(self.keys) and self.keys[at] == key else []


_EMPTY = Table((), lambda _: [])


class Records:
    """What a :class:`.Snapshot` offers, from an export. The rows that it gives out live with it."""

    has_index = False
    is_ordered = True

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._given: list[npt.NDArray[Any]] = []

    @property
    def commit(self) -> object:
        """Equal to no other's: rows have no lasting address."""
        return object()

    @property
    def num_entries(self) -> int:
        """Number of entries."""
        return self.count(layout.MAIN)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return self._opened.nbytes

    def has(self, database: bytes) -> bool:
        """Whether the export has such records at all."""
        return database in self._opened.tables or database in {*_FIELDS, layout.ROWS}

    def count(self, database: bytes) -> int:
        """Number of keys of a database but for rows, labels and arrays."""
        return len(self._table(database).keys)

    def reading(self) -> AbstractContextManager[None]:
        """Nothing to convert: files are checked before they are read."""
        return nullcontext()

    def get(self, database: bytes, key: bytes) -> memoryview | None:
        """The value of a key; rows are valid as long as this lives."""
        if database == layout.ROWS:
            return self._rows(key)
        if database in _FIELDS:
            found = self._beside(database, key).get(key)
            return None if found is None else memoryview(found)
        values = self._table(database).find(key)
        return memoryview(values[0]) if values else None

    def starting_with(self, database: bytes, prefix: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """The records whose keys begin with ``prefix``, in order."""
        if database in _FIELDS:
            owners = [prefix] if prefix else self._table(layout.MAIN).keys
            for owner in owners:
                for key, value in sorted(self._beside(database, owner).items()):
                    if key.startswith(prefix):
                        yield key, memoryview(value)
            return
        if database == layout.ROWS:
            yield from self._segment(prefix)
            return
        table = self._table(database)
        for number in range(bisect.bisect_left(table.keys, prefix), len(table.keys)):
            key = table.keys[number]
            if not key.startswith(prefix):
                return
            yield key, memoryview(table.values(key)[0])

    def cursor(self, database: bytes) -> Cursor:
        """A cursor over a database but for rows, labels and arrays."""
        return Cursor(self._table(database))

    def _table(self, database: bytes) -> Table:
        return self._opened.tables.get(database, _EMPTY)

    def _segment(self, segment: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """All rows of an entry, by site."""
        if self._table(layout.MAIN).find(segment):
            key = segment.decode()
            record = schema.capture(self._opened.text(key, "capture"), f"capture of {key}")
            for site in sites_of(record):
                place = layout.rows_key(segment, site.code)
                yield place, self._rows(place)

    def _rows(self, key: bytes) -> memoryview:
        """A segment is named after the entry that alone has its rows (:mod:`.records`)."""
        owner = layout.rows_segment(key).decode("ascii", "replace")
        rows = self._opened.rows(owner, schema.site(layout.rows_code(key)))
        self._given.append(rows)
        return rows.view(np.uint8).reshape(-1).data

    def _beside(self, database: bytes, prefix: bytes) -> dict[bytes, bytes]:
        """The labels or arrays of the entry that a key begins with, by key."""
        owner = prefix.partition(b"\0")[0]
        if not self._table(layout.MAIN).find(owner):
            return {}
        key = owner.decode()
        try:
            found = json.loads(self._opened.text(key, _FIELDS[database]))
            return {
                layout.beside_key(key, name): base64.b64decode(value, validate=True)
                if database == layout.DERIVED
                else layout.dump(value)
                for name, value in found.items()
            }
        except (ValueError, AttributeError, TypeError):
            raise StoreCorrupt(f"what stands beside entry {key} cannot be read") from None


class Cursor:
    """The part of an LMDB cursor that reads."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._at = -1

    def first(self) -> bool:
        """Move to the first key; False if there is none, as for every move."""
        return self._move(0)

    def last(self) -> bool:
        """Move to the last key."""
        return self._move(len(self._table.keys) - 1)

    def next(self) -> bool:
        """Move to the key after this one."""
        return self._move(self._at + 1)

    def prev(self) -> bool:
        """Move to the key before this one."""
        return self._move(self._at - 1)

    def set_range(self, key: bytes) -> bool:
        """Move to the first key that is not less."""
        return self._move(bisect.bisect_left(self._table.keys, key))

    def set_key(self, key: bytes) -> bool:
        """Move to exactly this key."""
        return self.set_range(key) and self.key() == key

    def key(self) -> bytes:
        """The key that it stands at."""
        return self._table.keys[self._at]

    def value(self) -> bytes:
        """Its first value."""
        return self._table.values(self.key())[0]

    def iternext_dup(self) -> Iterator[bytes]:
        """All of its values."""
        return iter(self._table.values(self.key()))

    def _move(self, to: int) -> bool:
        self._at = to
        return 0 <= to < len(self._table.keys)
