"""Rows that lie in a store without any capture that refers to them.

While a worker runs, rows whose entries were deleted stay: vLLM may still hold their prompt in its
prefix cache, and refer to them again. The worker removes them when it stops. One that is killed
cannot, and nobody will ever ask for them.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.store import layout
from activation_logging.store.liveness import is_running
from activation_logging.store.mutations import references

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging.store.mutations import Mutations
    from activation_logging.store.reader import Store

_PER_COMMIT = 256


class Leftover(NamedTuple):
    """A segment that no capture refers to: its id, and the size of its rows in bytes."""

    segment: bytes
    nbytes: int


class Miscount(NamedTuple):
    """A segment with another number of captures that refer to it than it says."""

    segment: bytes
    counted: int
    found: int


class RowsFound(NamedTuple):
    """What :func:`look_at_rows` finds."""

    leftovers: list[Leftover]
    miscounts: list[Miscount]


def look_at_rows(store: Store) -> RowsFound:
    """Compare the segments of a store with the captures that refer to them.

    What belongs to a writer that still runs is left out, for it may change its mind.

    Raises:
        StoreCorrupt: the file is damaged.
    """
    running = {name for name, record in store.writers().items() if is_running(record)}
    # One view for all three, so that none can be ahead of another.
    snapshot = store._snapshot()
    used = references(raw for _, raw in snapshot.starting_with(layout.CAPTURES, b""))
    sizes: Counter[bytes] = Counter()
    for key, rows in snapshot.starting_with(layout.ROWS, b""):
        sizes[key[:-2]] += len(rows)
    counts = {
        name: int(bytes(raw)) if bytes(raw).isdigit() else -1
        for name, raw in snapshot.starting_with(layout.SEGMENTS, b"")
    }
    known = [
        name
        for name in sizes.keys() | counts.keys()
        if name[: layout.WRITER_ID_BYTES].hex() not in running
    ]
    return RowsFound(
        sorted(Leftover(name, sizes[name]) for name in known if not used[name]),
        sorted(
            Miscount(name, counts.get(name, 0), used[name])
            for name in known
            if used[name] and counts.get(name, 0) != used[name]
        ),
    )


def remove_leftovers(store: Store, segments: Iterable[bytes]) -> int:
    """Remove segments that nobody refers to, and say how many; used ones are left alone.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """
    left = iter(segments)
    some: list[bytes] = []

    def action(change: Mutations, txn: Any) -> int:
        return change.delete_leftovers(txn, some)

    removed = 0
    while some := list(islice(left, _PER_COMMIT)):
        removed += store._transact(action)
    return removed
