"""Every change to a store, as methods that work in one open write transaction.

The background writer, ``put_evaluation`` and the repair tools all use these methods, so the
databases of :mod:`.layout` never contradict each other.
"""

from __future__ import annotations

import operator
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from activation_logging.errors import EntryNotFound, LabelError, StoreCorrupt
from activation_logging.records import Capture, Evaluation, SegmentSlice
from activation_logging.sites import RowShape
from activation_logging.store import layout, schema
from activation_logging.store.indexing import Indexing, Totals, bytes_by_code
from activation_logging.store.live import encode_scores
from activation_logging.store.segments import Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from activation_logging.store.engine.environment import Environment


T = TypeVar("T")


class Mutations:
    """Changes to one environment. Every method takes a transaction of :meth:`transact`.

    One thread may use it at a time.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._db = environment.database
        self._index = Indexing(environment)
        self.segments = Segments(environment, self._index)

    def transact(self, action: Callable[[Any], T], *, within_limit: bool = False) -> T:
        """Run ``action`` in a write transaction; see :meth:`Environment.transact`."""

        def run(txn: Any) -> T:
            self._index.begin()
            self.segments.begin()
            result = action(txn)
            self._index.end(txn)
            return result

        return self._environment.transact(run, within_limit=within_limit)

    def put_entry(self, txn: Any, document: Mapping[str, Any]) -> str:
        """Add an entry under the next free key of its prompt, and return that key."""
        base = layout.prompt_key(document["prompt"])
        number = self._repeats(txn, base)
        key = f"{base}#{number}" if number else base
        txn.put(base.encode(), b"%d" % (number + 1), db=self._db(layout.REPEATS))

        sequence = self._next_sequence(txn)
        record = {**layout.with_head(document, sequence), "key": key}
        txn.put(key.encode(), layout.dump(record), db=self._db(layout.MAIN))
        txn.put(layout.sequence_key(sequence), key.encode(), db=self._db(layout.LOG), append=True)
        for name in {document["request_id"], document["capture"]}:
            txn.put(layout.id_key(name), key.encode(), db=self._db(layout.REQUESTS))
        self._index.entry_added(txn, record)
        return key

    def reserve_key(self, txn: Any, key: str) -> None:
        """Reserve a key for the prompt's next answer, unless this or a later key is taken."""
        base, _, number = key.partition("#")
        if int(number or 0) > self._repeats(txn, base):
            txn.put(base.encode(), number.encode(), db=self._db(layout.REPEATS))

    def _repeats(self, txn: Any, base: str) -> int:
        """The number of the next answer to a prompt."""
        raw = txn.get(base.encode(), db=self._db(layout.REPEATS))
        return 0 if raw is None else schema.number(raw, f"the number of answers to {base}")

    def put_capture(self, txn: Any, capture: Capture, *, writer: str | None = None) -> None:
        """Add a request's rows. If a segment that it refers to is gone, it is stored as dropped.

        A second capture of the same id replaces the first, unless it has no rows. ``writer`` is the
        id of the writer.
        """
        if capture.dropped and self._has_capture(txn, capture.id):
            return
        used = dict.fromkeys(part.segment for part in capture.slices)
        brought = {segment.id: segment for segment in capture.segments}
        dropped = capture.dropped
        if any(name not in brought and self.segments.uses(txn, name) is None for name in used):
            dropped = dropped or "rows that it shares with another entry are no longer there"
        record: dict[str, Any] = {
            "layers": list(capture.layers),
            "num_layers": capture.num_layers,
            "hidden_size": capture.hidden_size,
            "dtype": capture.dtype,
            "first": capture.first,
            "slices": [[part.segment.hex(), part.start, part.rows] for part in capture.slices],
            "writer": writer,
        }
        if capture.sites:
            record["sites"] = {str(code): kind._asdict() for code, kind in capture.sites.items()}
        if capture.scores:
            record["scores"] = encode_scores(capture.scores)
        if dropped:
            used, record["slices"], record["dropped"] = {}, [], dropped
        elif capture.unkept:
            record["unkept"] = capture.unkept
        if capture.rows_in:
            record["rows_in"] = capture.rows_in
        if capture.entry_in:
            record["entry_in"] = capture.entry_in
        for name in used:
            if name in brought:
                self.segments.put(txn, brought[name])
            self.segments.add_use(txn, name)
        # Delete the old capture last: it may hold the only other references to these segments.
        self.delete_capture(txn, capture.id)
        txn.put(layout.id_key(capture.id), layout.dump(record), db=self._db(layout.CAPTURES))
        self._index.capture_added(txn, capture.id, record)

    def _has_capture(self, txn: Any, capture_id: str) -> bool:
        return self._capture_record(txn, capture_id) is not None

    def _capture_record(self, txn: Any, capture_id: str) -> memoryview | None:
        raw: memoryview | None = txn.get(layout.id_key(capture_id), db=self._db(layout.CAPTURES))
        return raw

    def put_evaluation(self, txn: Any, key: str, evaluation: Evaluation) -> None:
        """Add or replace one evaluator's label of an entry. Other evaluators' labels stay.

        Raises:
            EntryNotFound: no entry has that key.
            LabelError: a span lies outside the entry's response.
        """
        raw_key = layout.entry_key(key)
        entry = None if raw_key is None else txn.get(raw_key, db=self._db(layout.MAIN))
        if raw_key is None or entry is None:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} to label")
        if evaluation.spans:
            response = schema.entry(entry, f"entry {key}")["response"]
            if problem := evaluation.outside(response):
                raise LabelError(f"entry {key}: {problem}")
        record = evaluation.as_json()
        if evaluation.created is None:
            record["created"] = time.time()
        place = layout.beside_key(key, evaluation.name)
        raw = txn.get(place, db=self._db(layout.EVALUATIONS))
        before = None if raw is None else layout.load(raw, "a label")
        txn.put(place, layout.dump(record), db=self._db(layout.EVALUATIONS))
        self._index.label_changed(txn, raw_key, evaluation.name, before, record)

    def delete_evaluation(self, txn: Any, key: str, name: str) -> bool:
        """Remove one evaluator's label of an entry. Returns False if there is none."""
        raw_key = layout.entry_key(key)
        place = layout.beside_key(key, name)
        raw = None if raw_key is None else txn.pop(place, db=self._db(layout.EVALUATIONS))
        if raw_key is None or raw is None:
            return False
        before = layout.load(raw, "a label")
        self._index.label_changed(txn, raw_key, name, before, None)
        return True

    def put_derived(self, txn: Any, key: str, name: str, record: bytes | memoryview) -> None:
        """Add or replace an array beside an entry; see :func:`.derived.encode`.

        Raises:
            EntryNotFound: no entry has that key.
        """
        raw_key = layout.entry_key(key)
        if raw_key is None or txn.get(raw_key, db=self._db(layout.MAIN)) is None:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} to put {name} beside")
        txn.put(layout.beside_key(key, name), record, db=self._db(layout.DERIVED))
        self._index.array_changed(txn, raw_key)

    def delete_stray(self, txn: Any, place: bytes) -> bool:
        """Remove an array without an entry. Returns False if it is gone or has an entry."""
        key = place.partition(b"\0")[0]
        if txn.get(key, db=self._db(layout.MAIN)) is not None:
            return False
        return bool(txn.delete(place, db=self._db(layout.DERIVED)))

    def delete_entry(self, txn: Any, key: str) -> None:
        """Remove an entry, its labels and arrays, and its rows unless another entry uses them.

        Raises:
            EntryNotFound: no entry has that key.
        """
        raw_key = layout.entry_key(key)
        raw = None if raw_key is None else txn.pop(raw_key, db=self._db(layout.MAIN))
        if raw is None:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} to delete")
        document = schema.entry(raw, f"entry {key}")
        self._index.entry_removed(txn, document)
        txn.delete(layout.sequence_key(document["sequence"]), db=self._db(layout.LOG))
        for name in {document["request_id"], document["capture"]}:
            txn.delete(layout.id_key(name), raw_key, db=self._db(layout.REQUESTS))
        for database in filter(self._environment.has, (layout.EVALUATIONS, layout.DERIVED)):
            self._delete_prefix(txn, database, layout.beside_key(key, ""))
        base = key.partition("#")[0].encode()
        cursor = txn.cursor(self._db(layout.MAIN))
        if not (cursor.set_range(base) and bytes(cursor.key()).startswith(base)):
            txn.delete(base, db=self._db(layout.REPEATS))
        self.delete_capture(txn, document["capture"])

    def delete_pending(self, txn: Any, key: str) -> bool:
        """Remove an entry without rows. Returns False if it is gone or its rows have arrived."""
        raw_key = layout.entry_key(key)
        raw = None if raw_key is None else txn.get(raw_key, db=self._db(layout.MAIN))
        if raw is None:
            return False
        document = schema.entry(raw, f"entry {key}")
        if self._has_capture(txn, document["capture"]):
            return False
        self.delete_entry(txn, key)
        return True

    def delete_orphan(self, txn: Any, capture_id: str) -> bool:
        """Remove a capture without an entry. Returns False if it is gone or has an entry."""
        key = layout.id_key(capture_id)
        if txn.get(key, db=self._db(layout.REQUESTS)) is not None:
            return False
        return self.delete_capture(txn, capture_id)

    def delete_capture(self, txn: Any, capture_id: str) -> bool:
        """Remove a capture, if it exists, and its rows unless another capture uses them.

        Unused rows stay while their writer runs: vLLM may still hold their prompt in its prefix
        cache, and the next request with this prompt will refer to them. They are listed under
        :data:`.layout.UNUSED`, and the writer removes them (:mod:`.upkeep`).
        """
        raw = txn.pop(layout.id_key(capture_id), db=self._db(layout.CAPTURES))
        if raw is None:
            return False
        record = layout.load(raw, f"capture {capture_id}")
        slices = slices_of(record)
        self._index.capture_removed(txn, capture_id, sum(part.rows for part in slices))
        self.segments.release(txn, slices)
        return True

    def unkeep(
        self, txn: Any, key: str, reason: str, *, unless_labelled: bool = False
    ) -> int | None:
        """Remove the rows of an entry, and leave all else.

        Rows that another capture uses stay, and for a while so do those whose writer runs, see
        :meth:`delete_capture`.

        Args:
            txn: the transaction.
            key: the entry's key.
            reason: why, a sentence.
            unless_labelled: leave an entry alone that anybody has judged.

        Returns:
            Bytes of the rows that nobody uses any more. None if nothing was done: the entry is
            gone, has no rows, or is labelled.
        """
        raw_key = layout.entry_key(key)
        head = None if raw_key is None else self._index.head(txn, raw_key)
        raw = None if head is None else self._capture_record(txn, head.capture)
        if head is None or raw is None or (unless_labelled and self.is_labelled(txn, key)):
            return None
        record = layout.load(raw, f"capture {head.capture}")
        slices = slices_of(record)
        if not slices:
            return None
        record |= {"slices": [], "unkept": reason}
        txn.put(layout.id_key(head.capture), layout.dump(record), db=self._db(layout.CAPTURES))
        rows = sum(part.rows for part in slices)
        self._index.capture_emptied(txn, head.capture, rows, record)
        return self.segments.release(txn, slices)

    def discard(self, txn: Any, key: str) -> int | None:
        """Remove an entry without rows and labels, whole.

        Returns:
            About the bytes that come free. None if nothing was done: the entry is gone, has rows or
            a label, or waits for its rows.
        """
        raw_key = layout.entry_key(key)
        head = None if raw_key is None else self._index.head(txn, raw_key)
        if raw_key is None or head is None or self.is_labelled(txn, key):
            return None
        size = len(txn.get(raw_key, db=self._db(layout.MAIN)))
        capture = self._capture_record(txn, head.capture)
        if capture is None or slices_of(layout.load(capture, f"capture of {key}")):
            return None
        self.delete_entry(txn, key)
        return size

    def is_labelled(self, txn: Any, key: str) -> bool:
        """Whether an evaluator has judged an entry."""
        prefix = layout.beside_key(key, "")
        cursor = txn.cursor(self._db(layout.EVALUATIONS))
        return bool(cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix))

    def delete_unreferenced(self, txn: Any, segments: Iterable[bytes]) -> int:
        """Remove segments that no capture refers to and whose writer is gone. Returns how many.

        A segment that has been referred to meanwhile stays.
        """
        gone = [name for name in segments if not self.segments.may_be_shared(txn, name)]
        if any(self.segments.uses(txn, name) for name in gone):
            # Only another program can have written that: look for captures that refer to them.
            used = references(bytes(raw) for _, raw in txn.cursor(self._db(layout.CAPTURES)))
            gone = [name for name in gone if not used[name]]
        for name in gone:
            self.segments.delete(txn, name)
        return len(gone)

    def forget_index(self, txn: Any) -> None:
        """Empty the index. :meth:`index_some` rebuilds it."""
        txn.drop(self._db(layout.INDEX), delete=False)
        totals = Totals(sizes=bytes_by_code(txn.cursor(self._db(layout.ROWS))))
        txn.put(layout.TOTALS_KEY, totals.dump(), db=self._db(layout.META))
        self._put_progress(txn, 0)

    def index_some(self, txn: Any, number: int) -> int:
        """Add the next entries to an incomplete index, and return how many were added.

        Fewer than ``number`` means that the index is complete.
        """
        raw = txn.get(layout.FORMAT_KEY, db=self._db(layout.META))
        record = layout.load(raw, "the format record")
        if record.get("indexed"):
            return 0
        cursor = txn.cursor(self._db(layout.LOG))
        found = cursor.set_range(layout.sequence_key(record.get("next", 0)))
        some = [
            (bytes(place), bytes(key).decode("ascii", "replace"))
            for place, key in islice(cursor.iternext() if found else (), number)
        ]
        for _, key in some:
            self._index.catch_up(txn, key)
        is_last = len(some) < number
        after = None if is_last else layout.sequence_number(some[-1][0]) + 1
        self._put_progress(txn, after)
        return len(some)

    def _put_progress(self, txn: Any, following: int | None) -> None:
        """Store the number of the next entry to index; None if the index is complete."""
        meta = self._db(layout.META)
        record = layout.load(txn.get(layout.FORMAT_KEY, db=meta), "the format record")
        record.pop("next", None)
        record["indexed"] = following is None
        if following is not None:
            record["next"] = following
        txn.put(layout.FORMAT_KEY, layout.dump(record), db=meta)

    def put_writer(self, txn: Any, writer: str, record: Mapping[str, Any]) -> None:
        """Write a writer's record, with its counters so far."""
        txn.put(writer.encode(), layout.dump(record), db=self._db(layout.WRITERS))

    def _next_sequence(self, txn: Any) -> int:
        cursor = txn.cursor(self._db(layout.LOG))
        return layout.sequence_number(bytes(cursor.key())) + 1 if cursor.last() else 0

    def _delete_prefix(self, txn: Any, database: bytes, prefix: bytes) -> None:
        """Delete the records whose keys begin with ``prefix``."""
        cursor = txn.cursor(self._db(database))
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            found = cursor.delete()  # moves on to the next record


def references(captures: Iterable[bytes | memoryview]) -> Counter[bytes]:
    """Number of references to each segment. Unreadable capture records are skipped."""
    found: Counter[bytes] = Counter()
    for raw in captures:
        try:
            parts = slices_of(layout.load(raw, "a capture"))
        except StoreCorrupt:
            continue
        found.update({part.segment for part in parts})
    return found


def slices_of(record: Mapping[str, Any]) -> list[SegmentSlice]:
    """The slices of a capture record, as written by :meth:`Mutations.put_capture`.

    Raises:
        StoreCorrupt: a slice is invalid.
    """
    try:
        return [
            SegmentSlice(bytes.fromhex(name), operator.index(start), operator.index(rows))
            for name, start, rows in record["slices"]
        ]
    except (KeyError, TypeError, ValueError):
        raise StoreCorrupt("a capture refers to rows by an invalid id") from None


def shapes_of(record: Mapping[str, Any]) -> dict[int, RowShape]:
    """The sites of a checked capture record but for the residual stream: codes, and their rows."""
    return {
        int(code): RowShape(tuple(found["shape"]), found["dtype"])
        for code, found in record.get("sites", {}).items()
    }
