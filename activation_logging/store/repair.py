"""Finds and removes what a killed process leaves in a store.

- *Unmatched records*. vLLM's front end writes an entry, the worker writes its rows. A killed
  process loses the records that it had not written yet, and the matching records of the other
  process stay alone. An unmatched record is *final* once its writer has stopped or is no longer
  running. Before that it may still be completed. Its other half may also lie in another store
  (:mod:`.joins`), where a server ran on several hosts. Rows that say so are
  left, unless a front end's store lies beside them and lacks the entry.
- *Unreferenced segments*. While a worker runs, rows of deleted entries stay, because vLLM may still
  hold their prompt in its prefix cache and refer to them again. The worker removes them when it
  stops. A killed worker leaves them behind.
- *Stray arrays*, derived from an entry that another program has deleted.
- *Damaged pages* of the file.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.locations import expanded
from activation_logging.store import layout, schema
from activation_logging.store.engine import environment
from activation_logging.store.engine.liveness import is_running
from activation_logging.store.engine.locks import holder
from activation_logging.store.engine.opening import file_id
from activation_logging.store.engine.pages import walk
from activation_logging.store.index import Index
from activation_logging.store.joins import has_entry, is_headless, rows_alone
from activation_logging.store.mutations import references
from activation_logging.store.query import select

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from activation_logging.store.entry import Entry
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.store import Store

_PER_COMMIT = 256
T = TypeVar("T")


class Unmatched(NamedTuple):
    """An entry without rows (``entry``, by key) or rows without an entry (``rows``, by id)."""

    kind: Literal["entry", "rows"]
    id: str
    final: bool


def find_unmatched(store: Store, beside: Sequence[Store] = ()) -> Iterator[Unmatched]:
    """All unmatched records of a store, entries first.

    Args:
        store: one store.
        beside: stores that may have the other halves, which are then no unmatched records.
    """
    running = _running(store)
    # Rows that a host without a front end computes belong to entries of another host's store.
    headless, heads = is_headless(store), [other for other in beside if not is_headless(other)]
    far = headless and not heads
    partners = beside if headless else [other for other in beside if other not in heads]
    others = {name for other in partners for name in _running(other)}

    def found(kind: Literal["entry", "rows"], name: str, writer: str | None) -> Unmatched:
        # A record without a writer's id may belong to any running writer.
        own = running if writer is None else running & {writer}
        return Unmatched(kind, name, final=not (own or others or (kind == "rows" and far)))

    for key in _candidates(store):
        entry = _pending(store, key)
        if entry is not None:
            capture = entry.document["capture"]
            if not any(rows_alone(other, capture) is not None for other in beside):
                yield found("entry", entry.key, entry.document.get("writer"))
    for name in store.orphans():
        raw = store.snapshot().get(layout.CAPTURES, layout.id_key(name))
        record = None if raw is None else _record(raw, name)
        del raw
        if record is None or (record.get("entry_in") and not heads):
            continue
        if not any(has_entry(other, name) for other in beside):
            yield found("rows", name, record.get("writer"))


def _running(store: Store) -> set[str]:
    return {name for name, record in store.writers().items() if is_running(record)}


def remove_unmatched(store: Store, unmatched: Iterable[Unmatched]) -> int:
    """Remove unmatched records, and return how many. Completed ones stay.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """
    return _in_parts(store, unmatched, _remove_some_unmatched)


class UnreferencedSegment(NamedTuple):
    """A segment that no capture refers to: its id, and the size of its rows in bytes."""

    segment: bytes
    nbytes: int


class Miscount(NamedTuple):
    """A segment whose reference count (``counted``) is not its number of references (``found``)."""

    segment: bytes
    counted: int
    found: int


class SegmentCheck(NamedTuple):
    """The result of :func:`check_segments`."""

    unreferenced: list[UnreferencedSegment]
    miscounts: list[Miscount]


def check_segments(store: Store) -> SegmentCheck:
    """Compare the segments of a store with the captures that refer to them.

    Segments of running writers are skipped, because their references may still change.

    Raises:
        StoreCorrupt: the file is damaged.
    """
    running = _running(store)
    # One view for all three, so that none can be ahead of another.
    snapshot = store.snapshot()
    used = references(raw for _, raw in snapshot.starting_with(layout.CAPTURES, b""))
    sizes: Counter[bytes] = Counter()
    for key, rows in snapshot.starting_with(layout.ROWS, b""):
        sizes[layout.rows_segment(key)] += len(rows)
    counts = {name: _number(raw) for name, raw in snapshot.starting_with(layout.SEGMENTS, b"")}
    known = [
        name
        for name in sizes.keys() | counts.keys()
        if name[: layout.WRITER_ID_BYTES].hex() not in running
    ]
    return SegmentCheck(
        sorted(UnreferencedSegment(name, sizes[name]) for name in known if not used[name]),
        sorted(
            Miscount(name, counts.get(name, 0), used[name])
            for name in known
            if used[name] and counts.get(name, 0) != used[name]
        ),
    )


def _number(raw: memoryview) -> int:
    try:
        return schema.number(raw, "a reference count")
    except StoreCorrupt:
        return -1


def remove_unreferenced(store: Store, segments: Iterable[bytes]) -> int:
    """Remove unreferenced segments, and return how many. Referenced ones stay.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """
    return _in_parts(store, segments, _remove_some_unreferenced)


def stray_arrays(store: Store) -> Iterator[bytes]:
    """Keys of the arrays whose entry is gone, see :func:`.layout.beside_key`.

    Raises:
        StoreCorrupt: the file is damaged.
    """
    for place, _ in store.walk(layout.DERIVED, values=False):
        if store.snapshot().get(layout.MAIN, place.partition(b"\0")[0]) is None:
            yield place


def remove_strays(store: Store, places: Iterable[bytes]) -> int:
    """Remove stray arrays, and return how many. Those whose entry has come stay.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """
    return _in_parts(store, places, _remove_some_strays)


def _in_parts(
    store: Store, what: Iterable[T], remove: Callable[[list[T], Mutations, Any], int]
) -> int:
    """Remove these, some in each transaction, and return how many."""
    left, removed = iter(what), 0
    while some := list(islice(left, _PER_COMMIT)):
        removed += store.transact(partial(remove, some))
    return removed


def _remove_some_unmatched(records: list[Unmatched], change: Mutations, txn: Any) -> int:
    return sum(
        change.delete_pending(txn, one.id)
        if one.kind == "entry"
        else change.delete_orphan(txn, one.id)
        for one in records
    )


def _remove_some_unreferenced(segments: list[bytes], change: Mutations, txn: Any) -> int:
    return change.delete_unreferenced(txn, segments)


def _remove_some_strays(places: list[bytes], change: Mutations, txn: Any) -> int:
    return sum(change.delete_stray(txn, place) for place in places)


def page_problems(path: str | os.PathLike[str]) -> list[str] | None:
    """The problems of the pages of the store at ``path``, a sentence each.

    Returns:
        None if the installed lmdb cannot check pages (see :mod:`.engine.pages`), or there is no
        file.
    """
    folder = expanded(path).resolve()
    if file_id(folder) is None or not (folder / "data.mdb").is_file():
        return None
    # If another process has the store open, a read transaction keeps it from reusing pages during
    # the check. Opening the file is safe then: LMDB in that process has opened it without a crash.
    view = None if holder(folder) is None else environment.acquire(folder, create=False).snapshot()
    try:
        return walk(folder / "data.mdb")
    finally:
        del view


def _candidates(store: Store) -> Iterable[str]:
    """Keys of the entries that may wait for their rows."""
    if Index.of(store.snapshot()) is None:
        return store
    return (entry.key for entry in select(store, status="pending", newest_first=False))


def _pending(store: Store, key: str) -> Entry | None:
    """The entry, if it is pending. Unreadable entries are left to ``verify``."""
    try:
        entry = store[key]
        waits = entry.status == "pending"
    except (EntryNotFound, StoreCorrupt):
        return None
    return entry if waits else None


def _record(raw: memoryview, name: str) -> dict[str, Any]:
    """The record of rows, as far as it is readable."""
    try:
        return layout.load(raw, f"capture {name}")
    except StoreCorrupt:
        return {}
