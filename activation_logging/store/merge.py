"""Merges several stores into one.

Two entries are duplicates if their records are equal except for keys and positions. A duplicate is
not added again, so a merge can be repeated, or resumed after a kill. Rows and labels that the
existing entry lacks are added to it, and so are arrays beside it.

Rows whose entry lies in another store (:mod:`.joins`) are joined with it once it is in the target.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from activation_logging.errors import EntryNotFound, RowsMissing, SettingsError, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.records import MAX_NAME_BYTES, Capture, Evaluation, Segment, SegmentSlice
from activation_logging.store import layout, schema
from activation_logging.store.derived import Header, read_header
from activation_logging.store.joins import capture_in, has_entry
from activation_logging.store.live import decode_scores
from activation_logging.store.mutations import shapes_of, slices_of
from activation_logging.store.open import open_each
from activation_logging.store.places import find_stores
from activation_logging.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.places import OnePlace

BATCH_BYTES = 32 << 20
BATCH_ENTRIES = 256

_STORE_SPECIFIC = frozenset({"key", "sequence", "capture"}) | layout.HEAD_ONLY
"""Fields of an entry that may change in another store."""


@dataclass
class Merged:
    """The result of a merge.

    ``duplicates`` were there already, ``completed`` of them without their rows. ``joined`` got
    their rows from another store than their own. ``renumbered`` got another number of repetition.
    ``rows_without_entry`` and ``unreadable`` (by key, with the reason) were left out.
    """

    entries: int = 0
    duplicates: int = 0
    completed: int = 0
    joined: int = 0
    renumbered: int = 0
    labels: int = 0
    arrays: int = 0
    rows_without_entry: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def __iadd__(self, other: Merged) -> Self:
        """Add the counts of another."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unreadable |= other.unreadable
        return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_COUNTS = tuple(one.name for one in fields(Merged) if one.name != "unreadable")


_Segments: TypeAlias = "dict[bytes, dict[int, memoryview]]"


class _Item(NamedTuple):
    """One entry of a source with all that belongs to it; rows and arrays point into its map."""

    key: str
    document: dict[str, Any]
    capture: dict[str, Any] | None
    segments: _Segments
    evaluations: dict[str, Evaluation]
    arrays: list[tuple[str, Header, memoryview]]

    @property
    def nbytes(self) -> int:
        return _nbytes(self.segments) + sum(len(raw) for _, _, raw in self.arrays)


class _Rows(NamedTuple):
    """The rows of a source whose entry lies in another store; they point into its map."""

    name: str
    record: dict[str, Any]
    segments: _Segments

    @property
    def nbytes(self) -> int:
        return _nbytes(self.segments)


def _nbytes(segments: _Segments) -> int:
    return sum(len(rows) for sites in segments.values() for rows in sites.values())


_One = TypeVar("_One", _Item, _Rows)


def merge(
    sources: Sequence[OnePlace],
    target: OnePlace,
    *,
    progress: Progress = silent,
) -> Merged:
    """Add the entries of several stores to another, which is created if it does not exist.

    The sources are copied in order, and each source in its order of writing. An entry keeps its key
    unless the target has this key or a later one for the prompt; then it gets the next number.
    Shared rows stay shared. Servers may continue to write to all of the stores.

    Args:
        sources: folders of stores, which are only read; also folders of such, or patterns. There
            the target is passed over. Exports, too, and their addresses.
        target: folder of the store to add to.
        progress: told after each entry of a source, and how many the source has.

    Raises:
        SettingsError: the target is one of the sources, or a folder of stores.
        StoreNotFound, NotAStore, ...: as :func:`open_store`; then nothing has been written.
    """
    goal = Path(target).expanduser().resolve()
    if any(Path(one).expanduser().resolve() == goal for one in sources):
        raise SettingsError(f"{target} is the target, so it is not a valid source")
    if find_stores(target).several:
        raise SettingsError(f"{target} is a folder of stores; name a store in it as the target")
    found = [store for one in sources for store in open_each(one)]
    opened = [store for store in found if store.path.resolve() != goal]
    with Store(target, writable=True) as store:
        done = Merged()
        for source in opened:
            what = f"merging {source.path.name}"
            keys = track(_keys(source), what, len(source), progress)
            _merge_one(store, _batches(source, keys, partial(_read, source, done)), done)
        for source in opened:
            _join_rows(store, source, done)
        _put_writers(store, opened)
        return done


def _keys(source: Store) -> Iterator[str]:
    """All keys of a store, in the order of writing; where that is damaged, in their own."""
    if not source.snapshot().is_ordered:
        yield from source
        return
    for _, key in source.walk(layout.LOG):
        yield key.decode("ascii", "backslashreplace")


def _merge_one(store: Store, batches: Iterable[list[_Item]], done: Merged) -> None:
    """Add the entries of one source, one transaction per batch."""
    names: dict[bytes, bytes] = {}
    for batch in batches:
        added = store.transact(partial(_add, store, batch, names))
        names = added.names
        done += added.done


def _add(
    store: Store,
    batch: Iterable[_Item],
    names: Mapping[bytes, bytes],
    change: Mutations,
    txn: Any,
) -> _Batch:
    adding = _Batch(store, change, txn, dict(names))
    for item in batch:
        adding.add(item)
    return adding


def _join_rows(store: Store, source: Store, done: Merged) -> None:
    """Add the rows of a source that have no entry there, but one in the target."""
    for batch in _batches(source, source.orphans(), partial(_read_rows, store, done)):
        store.transact(partial(_add_rows, store, batch))
        done.joined += len(batch)


def _read_rows(store: Store, done: Merged, snapshot: Snapshot, name: str) -> _Rows | None:
    """Some rows, unless the target has no use for them."""
    if not has_entry(store, name):
        done.rows_without_entry += 1
        return None
    there = capture_in(store.snapshot(), name)
    if there is not None and not there.get("dropped"):
        return None
    record = capture_in(snapshot, name)
    if record is None or (there is not None and record.get("dropped")):
        return None
    try:
        return _Rows(name, record, _segments(record, snapshot))
    except StoreCorrupt as error:
        done.unreadable[name] = str(error)
        return None


def _add_rows(store: Store, batch: Iterable[_Rows], change: Mutations, txn: Any) -> None:
    adding = _Batch(store, change, txn, {})
    for rows in batch:
        adding.put_capture(*rows)


def _put_writers(store: Store, sources: Iterable[Store]) -> None:
    """Copy the records of the sources' writers, as stopped: none of them writes here."""
    known: dict[str, dict[str, Any]] = {}
    there = store.writers()
    for source in sources:
        for name, record in source.writers().items():
            if record.get("commits", 0) > there.get(name, {}).get("commits", -1):
                known[name] = {"stopped": time.time(), **record}

    def action(change: Mutations, txn: Any) -> None:
        for name, record in known.items():
            change.put_writer(txn, name, record)

    store.transact(action)


def _batches(
    source: Store, names: Iterable[str], read: Callable[[Snapshot, str], _One | None]
) -> Iterator[list[_One]]:
    """What ``read`` gives of each name in a source, in batches of one transaction.

    They point into the source's map, and are valid until the next batch is asked for.
    """
    left = iter(names)
    while some := list(islice(left, BATCH_ENTRIES)):
        while some:
            batch: list[_One] = []
            size = 0
            # One view for all of them: a second beside it would keep the map from growing.
            snapshot = source.snapshot()
            while some and size < BATCH_BYTES:
                one = read(snapshot, some.pop(0))
                if one is not None:
                    batch.append(one)
                    size += one.nbytes
            if batch:
                yield batch
            del snapshot


def _read(source: Store, done: Merged, snapshot: Snapshot, key: str) -> _Item | None:
    """An entry, unless it is gone or cannot be read."""
    try:
        return _item(source.entry_in(snapshot, key), snapshot)
    except EntryNotFound:
        return None
    except (StoreCorrupt, RowsMissing) as error:
        done.unreadable[key] = str(error)
        return None


def _item(entry: Entry, snapshot: Snapshot) -> _Item:
    """Everything of one entry, seen at one moment."""
    capture = entry.capture_record(snapshot)
    segments = {} if capture is None else _segments(capture, snapshot)
    labels = entry.evaluations_in(snapshot)
    if any(len(name.encode()) > MAX_NAME_BYTES for name in labels):
        raise StoreCorrupt("it has a label by an evaluator whose name is too long")
    for label in labels.values():
        if problem := label.outside(entry.response):
            raise StoreCorrupt(problem)
    arrays = list(entry.derived_records(snapshot))
    return _Item(entry.key, entry.document, capture, segments, labels, arrays)


def _segments(capture: Mapping[str, Any], snapshot: Snapshot) -> _Segments:
    """The rows that a capture refers to, by segment and site."""
    segments: _Segments = {}
    for part in slices_of(capture):
        if part.segment not in segments:
            segments[part.segment] = {
                layout.rows_code(key): raw
                for key, raw in snapshot.starting_with(layout.ROWS, part.segment)
                if layout.rows_segment(key) == part.segment
            }
            if not segments[part.segment]:
                raise StoreCorrupt("it lacks rows that it refers to")
    return segments


def answer_digest(document: Mapping[str, Any]) -> str:
    """The same for the same answer, in whatever store its entry lies."""
    return _digest(_body(document))


def _body(document: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record by which two answers are the same, in whatever store."""
    return {name: value for name, value in document.items() if name not in _STORE_SPECIFIC}


def _digest(body: Mapping[str, Any]) -> str:
    # Hash the JSON text: a NaN among the log-probabilities would not equal itself.
    return hashlib.sha256(layout.dump(dict(sorted(body.items())))).hexdigest()


class _Batch:
    """The work of one transaction. It is discarded with the transaction if the map must grow."""

    def __init__(self, store: Store, change: Any, txn: Any, names: dict[bytes, bytes]) -> None:
        self._db = store.environment.database
        self._change = change
        self._txn = txn
        self.names = names
        self.done = Merged()

    def add(self, item: _Item) -> None:
        body = _body(item.document)
        answer, given = _digest(body), item.document["capture"]
        # Capture ids are unique only within one store.
        renamed = f"{given}-{answer[:16]}"
        key = self._find_duplicate(answer, given) or self._find_duplicate(answer, renamed)
        is_known = key is not None
        if key is not None:
            self.done.duplicates += 1
            capture = self._document(key)["capture"]
        else:
            capture = renamed if self._is_taken(given) else given
            self._change.reserve_key(self._txn, item.key)
            key = self._change.put_entry(self._txn, {**body, "capture": capture})
            self.done.entries += 1
            self.done.renumbered += key != item.key
        if item.capture is not None and self._get(layout.CAPTURES, layout.id_key(capture)) is None:
            self.put_capture(capture, item.capture, item.segments)
            self.done.completed += is_known
        for evaluation in item.evaluations.values():
            self._put_label(key, evaluation)
        for name, header, raw in item.arrays:
            self._put_array(key, name, header, raw)

    def _get(self, database: bytes, key: bytes) -> memoryview | None:
        value: memoryview | None = self._txn.get(key, db=self._db(database))
        return value

    def _document(self, key: str) -> dict[str, Any]:
        raw = self._get(layout.MAIN, key.encode())
        return {} if raw is None else schema.entry(raw, f"entry {key}")

    def _is_taken(self, capture: str) -> bool:
        key = layout.id_key(capture)
        return any(self._get(name, key) is not None for name in (layout.CAPTURES, layout.REQUESTS))

    def _find_duplicate(self, answer: str, capture: str) -> str | None:
        """The key of an entry with this capture id and digest; None if there is none."""
        cursor = self._txn.cursor(self._db(layout.REQUESTS))
        if not cursor.set_key(layout.id_key(capture)):
            return None
        for raw in cursor.iternext_dup():
            key = bytes(raw).decode("ascii")
            found = self._document(key)
            if answer_digest(found) == answer:
                return key
        return None

    def put_capture(
        self, name: str, record: Mapping[str, Any], segments: Mapping[bytes, Mapping[int, Any]]
    ) -> None:
        brought = []
        for segment, sites in segments.items():
            if segment not in self.names:
                self.names[segment], is_new = self._name_for(segment, sites)
                if is_new:
                    rows = {code: np.asarray(raw) for code, raw in sites.items()}
                    nbytes = sum(block.nbytes for block in rows.values())
                    brought.append(Segment(self.names[segment], rows, nbytes))
        capture = Capture(
            name,
            record["layers"],
            record["num_layers"],
            record["hidden_size"],
            record["dtype"],
            record["first"],
            [SegmentSlice(self.names[part.segment], *part[1:]) for part in slices_of(record)],
            brought,
            record.get("dropped"),
            record.get("unkept"),
            shapes_of(record),
            decode_scores(record, f"capture {name}"),
            rows_in=record.get("rows_in"),
        )
        self._change.put_capture(self._txn, capture, writer=record.get("writer"))

    def _name_for(self, segment: bytes, sites: Mapping[int, Any]) -> tuple[bytes, bool]:
        """The id of a segment in the target, and whether its rows must be written.

        A segment keeps its id, unless other rows have it. Then the id is derived from its contents.
        """
        if self._get(layout.SEGMENTS, segment) is None:
            return segment, True
        if self._holds(segment, sites):
            return segment, False
        digest = hashlib.sha256()
        for code, raw in sorted(sites.items()):
            digest.update(code.to_bytes(2, "big") + len(raw).to_bytes(8, "big"))
            digest.update(raw)
        other = segment[: layout.WRITER_ID_BYTES] + digest.digest()[:16]
        return other, self._get(layout.SEGMENTS, other) is None

    def _holds(self, segment: bytes, sites: Mapping[int, Any]) -> bool:
        keys = {code: layout.rows_key(segment, code) for code in sites}
        return all(self._get(layout.ROWS, keys[code]) == sites[code] for code in sites)

    def _put_label(self, key: str, evaluation: Evaluation) -> None:
        """Add a label. Of two labels by one evaluator, the later one stays."""
        raw = self._get(layout.EVALUATIONS, layout.beside_key(key, evaluation.name))
        if raw is not None:
            there = schema.label(raw, "a label")
            if (there["created"] or 0) >= (evaluation.created or 0):
                return
        self._change.put_evaluation(self._txn, key, evaluation)
        self.done.labels += 1

    def _put_array(self, key: str, name: str, header: Header, record: memoryview) -> None:
        """Add an array. Of two of one name, the later one stays."""
        raw = self._get(layout.DERIVED, layout.beside_key(key, name))
        if raw is not None and read_header(raw, f"{name} of {key}").created >= header.created:
            return
        self._change.put_derived(self._txn, key, name, record)
        self.done.arrays += 1
