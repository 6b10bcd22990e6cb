"""Keeping the index and the totals true, whatever changes in a store.

Every method is part of the transaction that changes what is listed or counted, so that neither a
kill nor another process ever sees them apart. A store of version 1 has no index, and all of this
does nothing there.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from activation_logging.errors import StoreCorrupt
from activation_logging.records import STATUSES, Status
from activation_logging.store import layout, schema
from activation_logging.store.index import term, terms_of, terms_of_label
from activation_logging.store.status import rows_stored, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.layout import Head

# Most entries were pending before they became something else.
_STATUS_TERMS: dict[Status, bytes] = {
    status: term("status", status) for status in ("pending", *STATUSES)
}


@dataclass
class Totals:
    """What a store holds in all: rows of complete entries, and bytes of rows by layer."""

    rows: int = 0
    layers: Counter[int] = field(default_factory=Counter)

    @classmethod
    def load(cls, raw: bytes | memoryview | None) -> Totals:
        """From the record in the store.

        Raises:
            StoreCorrupt: it is no such record.
        """
        if raw is None:
            return cls()
        try:
            record = layout.load(raw, "the record of totals")
            layers = Counter({int(layer): int(size) for layer, size in record["bytes"].items()})
            return cls(int(record["rows"]), layers)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise StoreCorrupt("the record of totals cannot be") from None

    def dump(self) -> bytes:
        """The record in the store."""
        sizes = {str(layer): size for layer, size in sorted(self.layers.items()) if size}
        return layout.dump({"rows": self.rows, "bytes": sizes})


def bytes_by_layer(rows: Iterable[tuple[bytes, memoryview]]) -> Counter[int]:
    """Bytes of all rows, by layer, from the records of their database."""
    sizes: Counter[int] = Counter()
    for key, block in rows:
        # The length is known without touching the rows themselves.
        sizes[layout.rows_layer(key)] += len(block)
    return sizes


class Indexing:
    """The changes to one store's index and totals that follow from its other changes.

    Totals are added up within a transaction, between :meth:`begin` and :meth:`end`.
    """

    def __init__(self, environment: Environment) -> None:
        self._database = environment.database
        self._enabled = environment.has_index
        self._change = Totals()
        self._came: dict[str, Mapping[str, Any]] = {}

    def begin(self) -> None:
        """A transaction begins, perhaps in place of one that came to nothing."""
        self._change = Totals()
        # Captures of this transaction: their entries mostly come with them.
        self._came = {}

    def end(self, txn: Any) -> None:
        """It is about to be committed."""
        if not (self._change.rows or self._change.layers):
            return
        database = self._database(layout.META)
        totals = Totals.load(txn.get(layout.TOTALS_KEY, db=database))
        totals.rows += self._change.rows
        totals.layers.update(self._change.layers)
        txn.put(layout.TOTALS_KEY, totals.dump(), db=database)

    def entry_came(self, txn: Any, record: Mapping[str, Any]) -> None:
        """An entry has been written."""
        if not self._enabled:
            return
        head = layout.head_of(record)
        self._add(txn, terms_of(record), head.place)
        self._put_status(txn, head, self._capture(txn, head.capture))

    def entry_goes(self, txn: Any, record: Mapping[str, Any]) -> None:
        """An entry is about to be removed, with its labels and rows."""
        if not self._enabled:
            return
        head = layout.head_of(record)
        self._remove(txn, terms_of(record) + self._label_terms(txn, record["key"]), head.place)
        self._forget_status(txn, head, rows_stored(self._capture(txn, head.capture)))

    def capture_came(self, txn: Any, name: str, record: Mapping[str, Any]) -> None:
        """Rows have come: the entries that name them have a new status."""
        self._came[name] = record
        self._capture_changed(txn, name, 0, record)

    def capture_went(self, txn: Any, name: str, rows: int) -> None:
        """A capture of so many rows has been removed."""
        self._came.pop(name, None)
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
            head = self._head(txn, key)
            # The same index holds the ids of requests.
            if head is not None and head.capture == name:
                self._set_status(txn, head, rows_before, after)

    def label_changed(
        self,
        txn: Any,
        key: bytes,
        name: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any],
    ) -> None:
        """An evaluator has labelled an entry, perhaps anew."""
        head = self._head(txn, key) if self._enabled else None
        if head is not None:
            if before is not None:
                self._remove(txn, terms_of_label(name, before), head.place)
            self._add(txn, terms_of_label(name, after), head.place)

    def bytes_changed(self, layers: Mapping[int, int]) -> None:
        """So many bytes of rows have come, or gone, by layer."""
        if self._enabled:
            self._change.layers.update(layers)

    def catch_up(self, txn: Any, key: str) -> None:
        """List an entry that is there already, and give its record the head of this version.

        Doing it twice changes nothing. One that cannot be read is left out: ``verify`` names it.
        """
        with suppress(StoreCorrupt):
            found = self._all_of(txn, key)
            if found is not None:
                record, terms, capture = found
                head = layout.head_of(record)
                if not record.keys() >= layout.HEAD_ONLY:
                    record = layout.with_head(record, record["sequence"])
                    txn.put(key.encode(), layout.dump(record), db=self._database(layout.MAIN))
                self._add(txn, terms, head.place)
                self._set_status(txn, head, rows_stored(capture), capture)

    def missing(self, txn: Any, key: str) -> list[bytes]:
        """Terms that are true of an entry, and do not list it.

        Raises:
            StoreCorrupt: the entry cannot be read.
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
        """An entry's record, its terms but for the status, and its capture; None if it is gone."""
        raw = txn.get(key.encode(), db=self._database(layout.MAIN))
        if raw is None:
            return None
        record = schema.entry(layout.load(raw, f"entry {key}"), f"entry {key}")
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

    def _head(self, txn: Any, key: bytes) -> Head | None:
        """The head of an entry, with its place; None if it is gone."""
        raw = txn.get(key, db=self._database(layout.MAIN))
        if raw is None:
            return None
        head = layout.read_head(raw)
        if head is None:
            what = f"entry {key.decode('ascii', 'replace')}"
            head = layout.head_of(schema.entry(layout.load(raw, what), what))
        return head

    def _capture(self, txn: Any, name: str) -> Mapping[str, Any] | None:
        """The record of some rows, if it is there and can be read."""
        if name in self._came:
            return self._came[name]
        raw = txn.get(layout.id_key(name), db=self._database(layout.CAPTURES))
        with suppress(StoreCorrupt):
            return None if raw is None else schema.capture(layout.load(raw, name), name)
        return None

    def _label_terms(self, txn: Any, key: str) -> list[bytes]:
        """What is true of an entry because of its labels; one that cannot be read says nothing."""
        prefix = layout.evaluation_key(key, "")
        cursor = txn.cursor(self._database(layout.EVALUATIONS))
        terms = []
        found = cursor.set_range(prefix)
        while found and (place := bytes(cursor.key())).startswith(prefix):
            with suppress(StoreCorrupt):
                name = place[len(prefix) :].decode("utf-8", "backslashreplace")
                terms += terms_of_label(
                    name, schema.label(layout.load(cursor.value(), "a label"), "a label")
                )
            found = cursor.next()
        return terms
