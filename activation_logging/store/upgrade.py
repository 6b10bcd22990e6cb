"""Upgrades a store to the current version: adds the index and the totals of :mod:`.indexing`.

One transaction turns a store of version 1 into one of version 2. It needs exclusive access, because
other processes would go on writing without the index. The entries are then indexed step by step.
Until all are indexed, the store is marked as incomplete and searched without the index. Indexing
resumes after a kill, and servers may write meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import StoreCorrupt
from activation_logging.store import layout
from activation_logging.store.engine.locks import exclusive
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.index import EVERY, Index
from activation_logging.store.indexing import Indexing, Totals, bytes_by_layer
from activation_logging.store.store import Store, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

_PER_COMMIT = 1000


class Upgraded(NamedTuple):
    """The version that a store had, and the number of indexed entries."""

    version: int
    entries: int


def upgrade(
    path: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Upgraded:
    """Upgrade a store to the current version, or finish an interrupted upgrade.

    Args:
        path: the store's folder.
        rebuild: rebuild an existing index.
        progress: called from time to time with the numbers of indexed entries and of all entries.

    Raises:
        StoreInUse: the store has version 1, and a process has it open.
        StoreReadOnly: this user may not write to it. StoreNotFound, NotAStore, StoreCorrupt.
    """
    folder = Path(path).expanduser().resolve()
    with open_store(folder) as store:
        has_index = store._live_environment().has_index
        version = layout.FORMAT_VERSION if has_index else layout.WITHOUT_INDEX
    del store
    if version == layout.WITHOUT_INDEX:
        with exclusive(folder):
            _add_index(folder)
    with open_store(folder, writable=True) as store:
        if rebuild and version != layout.WITHOUT_INDEX:
            store._transact(lambda change, txn: change.forget_index(txn))
        return Upgraded(version, _list_all(store, progress))


def index_problems(store: Store) -> Iterator[tuple[str, str]]:
    """Contradictions between the index and the entries: a key, and a sentence."""
    if store._snapshot().index is None:
        return
    indexing = Indexing(store._live_environment())
    for key in store:
        snapshot = store._snapshot()
        # Unreadable entries have been reported already.
        with suppress(StoreCorrupt), snapshot.reading():
            for term in indexing.missing(snapshot._txn, key)[:1]:
                yield key, f"the index does not list it under {_readable(term)}"
        del snapshot
    snapshot = store._snapshot()
    index = Index(snapshot)
    counts = {
        "entries": (index.count(EVERY), snapshot.num_entries),
        "statuses": (_listed(index, "status"), snapshot.num_entries),
        "models": (_listed(index, "model"), snapshot.num_entries),
        "labels": (_listed(index, "label"), snapshot.count(layout.EVALUATIONS)),
    }
    for what, (listed, there) in counts.items():
        if listed != there:
            yield "~index", f"it lists {listed} {what}, but there are {there}"
    sizes = bytes_by_layer(snapshot.starting_with(layout.ROWS, b""))
    totals = Totals.load(snapshot.get(layout.META, layout.TOTALS_KEY))
    if +totals.layers != +sizes:
        yield "~meta", "the total bytes of rows are wrong"


def _readable(term: bytes) -> str:
    return term.decode("ascii", "backslashreplace").replace("\0", " ")


def _listed(index: Index, kind: str) -> int:
    return sum(count for _, count in index.terms(kind))


def _add_index(folder: Path) -> None:
    """Turn a store of version 1 into one of version 2 with an empty index, in one transaction."""
    with open_alone(folder) as opened, opened.env.begin(write=True) as txn:
        opened.env.open_db(layout.INDEX, txn=txn, dupsort=True)
        rows = opened.databases[layout.ROWS]
        totals = Totals(layers=bytes_by_layer(txn.cursor(rows)))
        meta = opened.databases[layout.META]
        txn.put(layout.TOTALS_KEY, totals.dump(), db=meta)
        record = layout.load(txn.get(layout.FORMAT_KEY, db=meta), "the format record")
        record |= {"version": layout.FORMAT_VERSION, "indexed": False}
        txn.put(layout.FORMAT_KEY, layout.dump(record), db=meta)


def _list_all(store: Store, progress: Callable[[int, int], None]) -> int:
    listed = 0
    while True:
        number = store._transact(lambda change, txn: change.index_some(txn, _PER_COMMIT))
        listed += number
        progress(listed, len(store))
        if number < _PER_COMMIT:
            return listed
