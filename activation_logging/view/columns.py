"""What is known of every answer in one number each, as columns in memory and chunks in SQLite.

An answer has a *slot*, from 0 in the order in which the index met it. A column holds one number for
each slot: a time, the code of a label, the number of a word, a score. Filtering, counting and
sorting a million answers are then a few operations of NumPy, of about a millisecond each. Columns
are kept in chunks, so that a change of one answer writes a few kilobytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

CHUNK = 1 << 14
"""Slots in one chunk."""

MOST = 100
"""Columns of one kind. A client that sends endless names of tags must not fill the memory."""

_TYPES = {
    "sequence": "<i8",
    "created": "<f8",
    "status": "|i1",
    "model": "<i4",
    "tag": "<i4",
    "label": "|i1",
    "judged": "<f4",
    "score": "<f4",
}
"""Types of columns by kind. 0 is what is not there, of numbers with a fraction NaN."""

SCHEMA = """
CREATE TABLE columns (
  name TEXT, chunk INTEGER, revision INTEGER, data BLOB, PRIMARY KEY (name, chunk)
) WITHOUT ROWID;
"""


class Columns:
    """Named columns of the same length.

    A name is a kind, or a kind, a slash and any text: ``created``, ``tag/dataset``.
    """

    def __init__(self) -> None:
        self.size = 0
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._dirty: set[tuple[str, int]] = set()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A column, ``[size]``; a view that later changes show in."""
        return self._arrays[name][: self.size]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def names(self, kind: str) -> list[str]:
        """What the columns of a kind are of, sorted: without the kind and the slash."""
        start = f"{kind}/"
        return sorted(name[len(start) :] for name in self._arrays if name.startswith(start))

    def put(self, slot: int, values: Mapping[str, float]) -> list[str]:
        """Set what is known of one slot; all that ``values`` does not name becomes absent.

        Returns:
            Names for which there was no more room, see :data:`MOST`.
        """
        self._reach(slot + 1)
        refused = [name for name in values if name not in self._arrays and not self._add(name)]
        chunk = slot // CHUNK
        for name, column in self._arrays.items():
            value = values.get(name, _absent(name))
            # NaN is never equal to itself; here it is.
            if column[slot] != value and not (np.isnan(value) and np.isnan(column[slot])):
                column[slot] = value
                self._dirty.add((name, chunk))
        return refused

    def _add(self, name: str) -> bool:
        kind = name.partition("/")[0]
        if len(self.names(kind)) >= MOST:
            return False
        self._arrays[name] = self._empty(name, max(len(self._capacity), CHUNK))
        return True

    def _reach(self, size: int) -> None:
        self.size = max(self.size, size)
        room = len(self._capacity)
        if size <= room:
            return
        more = max(-(-size // CHUNK) * CHUNK, 2 * room)
        for name, old in self._arrays.items():
            self._arrays[name] = self._empty(name, more)
            self._arrays[name][:room] = old

    @property
    def _capacity(self) -> range:
        return range(len(next(iter(self._arrays.values()), ())))

    @staticmethod
    def _empty(name: str, size: int) -> npt.NDArray[Any]:
        return np.full(size, _absent(name), _TYPES[name.partition("/")[0]])

    # --- SQLite ----------------------------------------------------------------------

    def save(self, connection: sqlite3.Connection, revision: int) -> None:
        """Write the chunks that have changed."""
        connection.executemany(
            "INSERT OR REPLACE INTO columns VALUES (?, ?, ?, ?)",
            [
                (name, chunk, revision, self._arrays[name][_within(chunk)].tobytes())
                for name, chunk in sorted(self._dirty)
            ],
        )
        self._dirty.clear()

    def load(self, connection: sqlite3.Connection, size: int, after: int) -> None:
        """Read the chunks of revisions after this one, of an index with ``size`` slots."""
        self._dirty.clear()
        found = connection.execute(
            "SELECT name, chunk, data FROM columns WHERE revision > ?", (after,)
        ).fetchall()
        self._reach(max(size, 1))
        self.size = size
        for name, chunk, data in found:
            if name not in self._arrays:
                self._add(name)
            self._reach_chunk(chunk)
            self._arrays[name][_within(chunk)] = np.frombuffer(data, self._arrays[name].dtype)

    def _reach_chunk(self, chunk: int) -> None:
        size = self.size
        self._reach((chunk + 1) * CHUNK)
        self.size = size


def _within(chunk: int) -> slice:
    return slice(chunk * CHUNK, (chunk + 1) * CHUNK)


def _absent(name: str) -> float:
    return float("nan") if _TYPES[name.partition("/")[0]] == "<f4" else 0
