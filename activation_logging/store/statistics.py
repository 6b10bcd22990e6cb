"""What a store holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.store import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging.store.entry import Entry
    from activation_logging.store.reader import Store


@dataclass
class Statistics:
    """Counts of entries, and bytes on disk.

    ``rows`` counts those of each entry; ``layer_bytes`` what lies in the store, where entries
    share the rows of a common prompt.
    """

    entries: int = 0
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    layer_bytes: Counter[int] = field(default_factory=Counter)
    file_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    """Of the file: what deleted entries have left; new ones use it, `compact` gives it back."""
    readers: list[dict[str, int]] = field(default_factory=list)
    """Who has a view of the store open, and how many commits old it is."""
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows_bytes(self) -> int:
        """Bytes of all rows of all layers."""
        return sum(self.layer_bytes.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "rows_bytes": self.rows_bytes}


def statistics(store: Store, keys: Iterable[str] | None = None) -> Statistics:
    """Go through a whole store and count; what cannot be read has the status ``unreadable``.

    Args:
        store: the store.
        keys: its keys, perhaps wrapped in something that shows how far it is.
    """
    found = Statistics(writers=store.writers())
    for key in store if keys is None else keys:
        try:
            _count(found, store[key])
        except EntryNotFound:  # noqa: PERF203 - one bad record must not hide the others
            continue
        except StoreCorrupt:
            found.entries += 1
            found.statuses["unreadable"] += 1
    snapshot = store._snapshot()
    for raw_key, value in snapshot.starting_with(layout.ROWS, b""):
        # The length is known without touching the rows themselves.
        found.layer_bytes[layout.rows_layer(raw_key)] += len(value)
    status = (store.path / "data.mdb").stat()
    found.file_bytes, found.disk_bytes = status.st_size, status.st_blocks * 512
    found.free_bytes = max(found.file_bytes - snapshot.used_bytes, 0)
    del snapshot
    found.readers = store.readers()
    return found


def _count(found: Statistics, entry: Entry) -> None:
    status = entry.status
    rows = len(entry.positions) if status == "complete" else 0
    evaluations = entry.evaluations
    found.entries += 1
    found.rows += rows
    found.statuses[status] += 1
    found.models[entry.model] += 1
    for name, evaluation in evaluations.items():
        found.labels.setdefault(name, Counter())[evaluation.label] += 1
