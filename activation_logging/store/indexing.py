"""Updates the index and the totals with every change of a store.

Every method runs in the transaction of the change itself, so a kill or another process never sees
one without the other. A store of version 1 has no index; there these methods do nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from activation_logging.errors import StoreCorrupt
from activation_logging.records import STATUSES, Status
from activation_logging.store import layout, schema
from activation_logging.store.index import CHANGED, FORGOTTEN, term, terms_of, terms_of_label
from activation_logging.store.status import rows_stored, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.layout import Head

MOST_CHANGES = 100_000
"""So many changes are listed, or as many as there are entries where these are more."""
PER_FORGETTING = 1000
"""So many older ones wait, to be removed together: their pages are not those of new ones."""

# Searched in this order. Most entries were pending before they got another status.
_STATUS_TERMS: dict[Status, bytes] = {
    status: term("status", status) for status in ("pending", *STATUSES)
}


@dataclass
class Totals:
    """Totals of a store: rows of complete entries, and bytes of rows by the code of their site."""

    rows: int = 0
    sizes: Counter[int] = field(default_factory=Counter)

    @classmethod
    def load(cls, raw: bytes | memoryview | None) -> Totals:
        """Parse the stored record.

        Raises:
            StoreCorrupt: the record is invalid.
        """
        if raw is None:
            return cls()
        try:
            record = layout.load(raw, "the record of totals")
            sizes = Counter({int(code): int(size) for code, size in record["bytes"].items()})
            return cls(int(record["rows"]), sizes)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise StoreCorrupt("the record of totals is invalid") from None

    def dump(self) -> bytes:
        """The record to store."""
        sizes = {str(code): size for code, size in sorted(self.sizes.items()) if size}
        return layout.dump({"rows": self.rows, "bytes": sizes})


def bytes_by_code(rows: Iterable[tuple[bytes, memoryview]]) -> Counter[int]:
    """Bytes of rows by the code of their site, from the records of the rows' database."""
    sizes: Counter[int] = Counter()
    for key, block in rows:
        # len() does not read the rows themselves.
        sizes[layout.rows_code(key)] += len(block)
    return sizes


class Indexing:
    """Updates of one store's index and totals.

    Changes of the totals are summed between :meth:`begin` and :meth:`end` of a transaction.
    """

    def __init__(self, environment: Environment) -> None:
        self._database = environment.database
        self._enabled = environment.has_index
        self._change = Totals()
        self._added: dict[str, Mapping[str, Any]] = {}
        self._changed: dict[int, None] = {}

    def begin(self) -> None:
        """Begin a transaction, or begin it again after it failed."""
        self._change = Totals()
        # Captures of this transaction. Most of their entries are part of it, too.
        self._added = {}
        self._changed = {}

    def end(self, txn: Any) -> None:
        """Store the totals and the changes, before the transaction is committed."""
        self._list_changes(txn)
        if not (self._change.rows or self._change.sizes):
            return
        database = self._database(layout.META)
        totals = Totals.load(txn.get(layout.TOTALS_KEY, db=database))
        totals.rows += self._change.rows
        totals.sizes.update(self._change.sizes)
        txn.put(layout.TOTALS_KEY, totals.dump(), db=database)

    def _list_changes(self, txn: Any) -> None:
        """List each entry that this transaction has changed once, in the order of its changes."""
        if not self._changed:
            return
        database = self._database(layout.INDEX)
        cursor = txn.cursor(database)
        number = max(time.time_ns() // 1000, 1)
        if cursor.set_key(CHANGED) and cursor.last_dup():
            # The clock may have been set back.
            number = max(number, layout.change_of(bytes(cursor.value()))[0] + 1)
        for sequence in self._changed:
            txn.put(CHANGED, layout.change(number, sequence), db=database)
            number += 1
        self._forget_changes(txn, cursor)

    def _forget_changes(self, txn: Any, cursor: Any) -> None:
        """Remove the oldest changes where there are more than entries.

        Who has not seen them reads all entries again, which is less than to read each change.
        """
        cursor.set_key(CHANGED)
        entries = txn.stat(self._database(layout.LOG))["entries"]
        excess = int(cursor.count()) - max(MOST_CHANGES, int(entries))
        if excess < PER_FORGETTING:
            return
        cursor.put(CHANGED, layout.change(*FORGOTTEN))
        cursor.set_key(CHANGED)
        cursor.next_dup()
        for _ in range(min(excess, 8 * PER_FORGETTING)):
            cursor.delete()

    def _touch(self, head: Head) -> None:
        sequence = layout.sequence_of(head.place)
        self._changed.pop(sequence, None)
        self._changed[sequence] = None

    def entry_added(self, txn: Any, record: Mapping[str, Any]) -> None:
        """Index an entry that has been written."""
        if not self._enabled:
            return
        head = layout.head_of(record)
        self._touch(head)
        self._add(txn, terms_of(record), head.place)
        self._put_status(txn, head, self._capture(txn, head.capture))

    def entry_removed(self, txn: Any, record: Mapping[str, Any]) -> None:
        """Remove an entry from the index, before its labels and rows are removed."""
        if not self._enabled:
            return
        head = layout.head_of(record)
        self._touch(head)
        self._remove(txn, terms_of(record) + self._label_terms(txn, record["key"]), head.place)
        self._forget_status(txn, head, rows_stored(self._capture(txn, head.capture)))

    def capture_added(self, txn: Any, name: str, record: Mapping[str, Any]) -> None:
        """Update the status of the entries of a capture that has been written."""
        self._added[name] = record
        self._capture_changed(txn, name, 0, record)

    def capture_emptied(
        self, txn: Any, name: str, rows_before: int, record: Mapping[str, Any]
    ) -> None:
        """Update the status of the entries of a capture that has lost its rows."""
        self._added[name] = record
        self._capture_changed(txn, name, rows_before, record)

    def capture_removed(self, txn: Any, name: str, rows: int) -> None:
        """Update the status of the entries of a removed capture, which had ``rows`` rows."""
        self._added.pop(name, None)
        self._capture_changed(txn, name, rows, None)

    def _capture_changed(
        self, txn: Any, name: str, rows_before: int, after: Mapping[str, Any] | None
    ) -> None:
        if not self._enabled:
            return
        cursor = txn.cursor(self._database(layout.REQUESTS))
        if not cursor.set_key(layout.id_key(name)):
            return
        for key in [bytes(raw) for raw in cursor.iternext_dup()]:
            head = self.head(txn, key)
            # This database also holds request ids.
            if head is not None and head.capture == name:
                self._touch(head)
                self._set_status(txn, head, rows_before, after)

    def label_changed(
        self,
        txn: Any,
        key: bytes,
        name: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        """Index an evaluator's new label, in place of its label ``before``; None: without one."""
        head = self.head(txn, key) if self._enabled else None
        if head is not None:
            self._touch(head)
            if before is not None:
                self._remove(txn, terms_of_label(name, before), head.place)
            if after is not None:
                self._add(txn, terms_of_label(name, after), head.place)

    def array_changed(self, txn: Any, key: bytes) -> None:
        """Note that an array beside an entry has been written."""
        head = self.head(txn, key) if self._enabled else None
        if head is not None:
            self._touch(head)

    def bytes_changed(self, sizes: Mapping[int, int]) -> None:
        """Add to the totals the change in bytes of rows, by the code of their site."""
        if self._enabled:
            self._change.sizes.update(sizes)

    def catch_up(self, txn: Any, key: str) -> None:
        """Index an existing entry, and give its record the head of this version.

        A second call changes nothing. An unreadable entry is skipped; ``verify`` reports it.
        """
        with suppress(StoreCorrupt):
            found = self._all_of(txn, key)
            if found is not None:
                record, terms, capture = found
                head = layout.head_of(record)
                self._touch(head)
                if not record.keys() >= layout.HEAD_ONLY:
                    record = layout.with_head(record, record["sequence"])
                    txn.put(key.encode(), layout.dump(record), db=self._database(layout.MAIN))
                self._add(txn, terms, head.place)
                self._set_status(txn, head, rows_stored(capture), capture)

    def missing(self, txn: Any, key: str) -> list[bytes]:
        """Terms of an entry whose lists lack the entry.

        Raises:
            StoreCorrupt: the entry is unreadable.
        """
        found = self._all_of(txn, key)
        if found is None:
            return []
        record, terms, capture = found
        head = layout.head_of(record)
        cursor = txn.cursor(self._database(layout.INDEX))
        terms.append(_STATUS_TERMS[status_of(head, capture)])
        return [one for one in terms if not cursor.set_key_dup(one, head.place)]

    def _all_of(
        self, txn: Any, key: str
    ) -> tuple[dict[str, Any], list[bytes], Mapping[str, Any] | None] | None:
        """An entry's record, its terms without the status, and its capture; None if it is gone."""
        raw = txn.get(key.encode(), db=self._database(layout.MAIN))
        if raw is None:
            return None
        record = schema.entry(raw, f"entry {key}")
        terms = terms_of(record) + self._label_terms(txn, key)
        return record, terms, self._capture(txn, record["capture"])

    def _add(self, txn: Any, terms: Iterable[bytes], place: bytes) -> None:
        for one in terms:
            txn.put(one, place, db=self._database(layout.INDEX), dupdata=False)

    def _remove(self, txn: Any, terms: Iterable[bytes], place: bytes) -> None:
        for one in terms:
            txn.delete(one, place, db=self._database(layout.INDEX))

    def _set_status(
        self,
        txn: Any,
        head: Head,
        rows_before: int,
        capture: Mapping[str, Any] | None,
    ) -> None:
        self._forget_status(txn, head, rows_before)
        self._put_status(txn, head, capture)

    def _put_status(self, txn: Any, head: Head, capture: Mapping[str, Any] | None) -> None:
        status = status_of(head, capture)
        txn.put(_STATUS_TERMS[status], head.place, db=self._database(layout.INDEX), dupdata=False)
        if status == "complete":
            self._change.rows += min(rows_stored(capture), head.rows)

    def _forget_status(self, txn: Any, head: Head, rows_before: int) -> None:
        index = self._database(layout.INDEX)
        for status, key in _STATUS_TERMS.items():
            if txn.delete(key, head.place, db=index):
                if status == "complete":
                    self._change.rows -= min(rows_before, head.rows)
                return

    def head(self, txn: Any, key: bytes) -> Head | None:
        """The head of an entry; None if the entry is gone."""
        raw = txn.get(key, db=self._database(layout.MAIN))
        if raw is None:
            return None
        head = layout.read_head(raw)
        if head is None:
            what = f"entry {key.decode('ascii', 'replace')}"
            head = layout.head_of(schema.entry(raw, what))
        return head

    def _capture(self, txn: Any, name: str) -> Mapping[str, Any] | None:
        """A capture's record; None if it is missing or unreadable."""
        if name in self._added:
            return self._added[name]
        raw = txn.get(layout.id_key(name), db=self._database(layout.CAPTURES))
        with suppress(StoreCorrupt):
            return None if raw is None else schema.capture(raw, name)
        return None

    def _label_terms(self, txn: Any, key: str) -> list[bytes]:
        """The terms of an entry's labels. Unreadable labels are skipped."""
        prefix = layout.beside_key(key, "")
        cursor = txn.cursor(self._database(layout.EVALUATIONS))
        terms = []
        found = cursor.set_range(prefix)
        while found and (place := bytes(cursor.key())).startswith(prefix):
            with suppress(StoreCorrupt):
                name = place[len(prefix) :].decode("utf-8", "backslashreplace")
                terms += terms_of_label(name, schema.label(cursor.value(), "a label"))
            found = cursor.next()
        return terms
