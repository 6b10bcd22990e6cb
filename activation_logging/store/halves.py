"""Halves: what is left when one side of a request never arrived.

An entry comes from vLLM's front end and its rows from the worker. A process that is killed
takes what it had not written yet along, and the other side's half stays. A half is *final*
when its writer has said good-bye or is no longer running; before that it may be completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.store import layout
from activation_logging.store.filters import select
from activation_logging.store.liveness import is_running

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.store.entry import Entry
    from activation_logging.store.reader import Store


class Half(NamedTuple):
    """An entry without rows (``entry``, by key) or rows without an entry (``rows``, by id)."""

    kind: Literal["entry", "rows"]
    id: str
    final: bool


def find_halves(store: Store) -> Iterator[Half]:
    """All halves of a store: entries first."""
    running = {name for name, record in store.writers().items() if is_running(record)}

    def half(kind: Literal["entry", "rows"], name: str, writer: str | None) -> Half:
        # Records of unknown origin may belong to anyone who still runs.
        return Half(kind, name, final=not running if writer is None else writer not in running)

    for key in _candidates(store):
        entry = _pending(store, key)
        if entry is not None:
            yield half("entry", entry.key, entry.document.get("writer"))
    for name in store.orphans():
        raw = store._snapshot().get(layout.CAPTURES, layout.id_key(name))
        if raw is not None:
            yield half("rows", name, _writer_of(raw, name))


def remove_half(store: Store, half: Half) -> bool:
    """Remove a half; False if it is gone or has been completed meanwhile.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """
    if half.kind == "entry":
        return store._transact(lambda change, txn: change.delete_pending(txn, half.id))
    return store._transact(lambda change, txn: change.delete_orphan(txn, half.id))


def _candidates(store: Store) -> Iterable[str]:
    """Keys of the entries that may wait for their rows."""
    if store._snapshot().index is None:
        return store
    return (entry.key for entry in select(store, status="pending", newest_first=False))


def _pending(store: Store, key: str) -> Entry | None:
    """The entry, if it waits for its rows; what cannot be read is no half (``verify`` names it)."""
    try:
        entry = store[key]
        waits = entry.status == "pending"
    except (EntryNotFound, StoreCorrupt):
        return None
    return entry if waits else None


def _writer_of(raw: memoryview, name: str) -> str | None:
    try:
        return layout.load(raw, f"capture {name}").get("writer")
    except StoreCorrupt:
        return None
