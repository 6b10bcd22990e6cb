"""Statistics of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.store import layout
from activation_logging.store.index import Bounds, Index, term, words_of
from activation_logging.store.indexing import Totals, bytes_by_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.store.engine.environment import Snapshot
    from activation_logging.store.store import Store

C = TypeVar("C", bound="Counts")


@dataclass
class Counts:
    """Numbers of entries: in total, by status, by model, and by label of each evaluator.

    ``judges`` has the number of labels by judge, for each evaluator. None is an unnamed judge.
    """

    entries: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    judges: dict[str, Counter[str | None]] = field(default_factory=dict)


@dataclass
class Statistics(Counts):
    """Counts of entries, and bytes on disk.

    ``rows`` counts the rows of each entry. ``layer_bytes`` counts stored bytes; there, entries
    share the rows of a common prompt.
    """

    rows: int = 0
    layer_bytes: Counter[int] = field(default_factory=Counter)
    file_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    """Free bytes of deleted entries. New entries use them, and `compact` removes them."""
    readers: list[dict[str, int]] = field(default_factory=list)
    """Processes with an open read transaction, and its age in commits."""
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows_bytes(self) -> int:
        """Bytes of all rows of all layers."""
        return sum(self.layer_bytes.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kept = {name: value for name, value in vars(self).items() if name != "judges"}
        return {**kept, "rows_bytes": self.rows_bytes}


def counts(store: Store, keys: Iterable[str] | None = None) -> Counts:
    """Count a store's entries, as :func:`statistics` does, but not its bytes."""
    return _counts(store, keys, Counts())


def statistics(store: Store, keys: Iterable[str] | None = None) -> Statistics:
    """Count a store's entries and bytes.

    With the store's index this takes milliseconds. A store of version 1 that has not been upgraded
    is read entry by entry; unreadable entries are counted under the status ``unreadable``.

    Args:
        store: the store.
        keys: its keys, for example wrapped to show progress.
    """
    found = _counts(store, keys, Statistics(writers=store.writers()))
    snapshot = store._snapshot()
    if snapshot.index is not None:
        totals = Totals.load(snapshot.get(layout.META, layout.TOTALS_KEY))
        found.rows, found.layer_bytes = totals.rows, totals.layers
    else:
        found.layer_bytes = bytes_by_layer(snapshot.starting_with(layout.ROWS, b""))
    status = (store.path / "data.mdb").stat()
    found.file_bytes, found.disk_bytes = status.st_size, status.st_blocks * 512
    found.free_bytes = max(found.file_bytes - snapshot.used_bytes, 0)
    del snapshot
    found.readers = store.readers()
    return found


def _counts(store: Store, keys: Iterable[str] | None, found: C) -> C:
    snapshot = store._snapshot()
    if snapshot.index is None:
        del snapshot
        for key in store if keys is None else keys:
            _count(found, store, key)
        return found
    found.entries = snapshot.num_entries
    for kind, counter in (("status", found.statuses), ("model", found.models)):
        counter.update({words[0]: number for words, number in _listed(store, snapshot, kind)})
    for kind, by_name in (("label", found.labels), ("judge", found.judges)):
        for (name, word), number in _listed(store, snapshot, kind):
            by_name.setdefault(name, Counter())[word] += number
    return found


def _listed(store: Store, snapshot: Snapshot, kind: str) -> Iterator[tuple[list[Any], int]]:
    """The words of each term of a kind, and its number of entries."""
    for key, number in Index(snapshot).terms(kind):
        words = words_of(key)
        if words is None:
            words = _look_up(store, snapshot, kind, key)
        yield words, number


def _look_up(store: Store, snapshot: Snapshot, kind: str, key: bytes) -> list[Any]:
    """The words of a hashed term, from an entry that the term is true of."""
    bounds = Bounds.of(None, None)
    (place,) = Index(snapshot).walk([[key]], bounds, after=None, reverse=False, limit=1)
    entry = store._at(snapshot, place)
    if entry is not None:
        labels = entry._read_evaluations(snapshot)
        own: dict[str, list[list[Any]]] = {
            "model": [[entry.model]],
            "label": [[name, found.label] for name, found in labels.items()],
            "judge": [[name, found.judge] for name, found in labels.items()],
        }
        for words in own[kind]:
            if term(kind, *words) == key:
                return words
    raise StoreCorrupt("the index has a term that does not match its entries")


def _count(found: Counts, store: Store, key: str) -> None:
    try:
        entry = store[key]
        status = entry.status
        rows = len(entry.positions) if status == "complete" else 0
        evaluations = entry.evaluations
        model = entry.model
    except EntryNotFound:
        return
    except StoreCorrupt:
        found.entries += 1
        found.statuses["unreadable"] += 1
        return
    found.entries += 1
    found.statuses[status] += 1
    found.models[model] += 1
    if isinstance(found, Statistics):
        found.rows += rows
    for name, evaluation in evaluations.items():
        found.labels.setdefault(name, Counter())[evaluation.label] += 1
        found.judges.setdefault(name, Counter())[evaluation.judge] += 1
