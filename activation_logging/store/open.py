"""Opening a store, or several as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.store.many import ManyStores
from activation_logging.store.places import find_stores
from activation_logging.store.store import Store

if TYPE_CHECKING:
    from activation_logging.store.places import Where


def open_store(path: Where, *, writable: bool = False) -> Store:
    """Open a store, by default read-only; or several that are read and labelled as one.

    Args:
        path: the store's folder (the server's ``ACTIVATION_LMDB_PATH``); or a folder of stores, a
            pattern such as ``data/*.lmdb``, or a list of these, see :class:`.ManyStores`.
        writable: also allow labels and deletions. A single store is created if it does not exist.

    Raises:
        StoreNotFound: the path does not exist, or a pattern matches no store.
        NotAStore, StoreVersionError: the path holds something else.
        StoreCorrupt: the file is truncated or damaged.
        StoreReadOnly: ``writable`` is set, but this user may not write to the store.
    """
    places = find_stores(path)
    if places.several:
        return ManyStores(places, writable=writable)
    return Store(places.title, writable=writable)
