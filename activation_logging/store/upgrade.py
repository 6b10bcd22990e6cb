"""Upgrades a store to the current version: adds the index and the totals of :mod:`.indexing`.

A store of version 1 becomes one of version 2 in one transaction. No other process may have it open
then, because that process would go on writing without an index. Until every entry is listed, the
format record says so, and searches walk through the store. Listing continues where a kill has ended
it, and servers may write meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import StoreCorrupt
from activation_logging.locations import expanded
from activation_logging.progress import Progress, silent
from activation_logging.store import layout
from activation_logging.store.engine.locks import exclusive
from activation_logging.store.engine.opening import open_alone
from activation_logging.store.index import EVERY, Index
from activation_logging.store.indexing import Indexing, Totals, bytes_by_code
from activation_logging.store.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

_PER_COMMIT = 1000


class Upgraded(NamedTuple):
    """The version that a store had, and the number of indexed entries."""

    version: int
    entries: int


def upgrade(
    path: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    progress: Progress = silent,
) -> Upgraded:
    """Upgrade a store to the current version, or finish an interrupted upgrade.

    Args:
        path: the store's folder.
        rebuild: make the index anew where there is one already.
        progress: told now and then how many entries are listed, and how many there are.

    Raises:
        StoreInUse: a process has a store of version 1 open.
        StoreReadOnly: it is not this user's. StoreNotFound, NotAStore, StoreCorrupt.
    """
    folder = expanded(path).resolve()
    with Store(folder) as store:
        has_index = store.environment.has_index
        version = layout.FORMAT_VERSION if has_index else layout.WITHOUT_INDEX
    del store
    if version == layout.WITHOUT_INDEX:
        with exclusive(folder):
            _add_index(folder)
    with Store(folder, writable=True) as store:
        if rebuild and version != layout.WITHOUT_INDEX:
            store.transact(lambda change, txn: change.forget_index(txn))
        return Upgraded(version, _list_all(store, progress))


def index_problems(store: Store) -> Iterator[tuple[str, str]]:
    """Where the index disagrees with the entries: a key, and a sentence."""
    if Index.of(store.snapshot()) is None:
        return
    indexing = Indexing(store.environment)
    for key in store:
        snapshot = store.snapshot()
        # What cannot be read has been named already.
        with suppress(StoreCorrupt), snapshot.reading():
            for term in indexing.missing(snapshot.txn, key)[:1]:
                yield key, f"the index does not list it under {_readable(term)}"
        del snapshot
    snapshot = store.snapshot()
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
    sizes = bytes_by_code(snapshot.starting_with(layout.ROWS, b""))
    totals = Totals.load(snapshot.get(layout.META, layout.TOTALS_KEY))
    if +totals.sizes != +sizes:
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
        totals = Totals(sizes=bytes_by_code(txn.cursor(rows)))
        meta = opened.databases[layout.META]
        txn.put(layout.TOTALS_KEY, totals.dump(), db=meta)
        record = layout.load(txn.get(layout.FORMAT_KEY, db=meta), "the format record")
        record |= {"version": layout.FORMAT_VERSION, "indexed": False}
        txn.put(layout.FORMAT_KEY, layout.dump(record), db=meta)


def _list_all(store: Store, progress: Progress) -> int:
    listed = 0
    while True:
        number = store.transact(lambda change, txn: change.index_some(txn, _PER_COMMIT))
        listed += number
        progress("listing", listed, len(store))
        if number < _PER_COMMIT:
            return listed
