"""Opening a store, or several as one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.errors import StoreReadOnly
from activation_logging.locations import located, refuse_address
from activation_logging.store import layout
from activation_logging.store.many import ManyStores
from activation_logging.store.places import find_stores
from activation_logging.store.store import Store

if TYPE_CHECKING:
    from activation_logging.store.places import OnePlace, Where


def open_store(path: Where, *, writable: bool = False) -> Store:
    """Open a store, by default read-only; or several that are read and labelled as one.

    Args:
        path: the store's folder (the server's ``ACTIVATION_LMDB_PATH``); or a folder of stores, a
            pattern such as ``data/*.lmdb``, or several of these, see :class:`.ManyStores`; or the
            folder or address of an export, such as ``s3://bucket/folder``.
        writable: also allow labels and deletions. A single store is created if it does not exist.

    Raises:
        StoreNotFound: the path does not exist, or a pattern matches no store.
        NotAStore, StoreVersionError: the path holds something else.
        StoreCorrupt: the file is truncated or damaged.
        StoreReadOnly: ``writable`` is set, but this user may not write to the store, or it is an
            export.
        AddressError: an address cannot be reached, or ``writable`` is set.
        SettingsError: a path is empty, or there is none.
        TypeError: it is nothing of these.
    """
    given = [path] if isinstance(path, (str, os.PathLike)) else _listed(path)
    if len(given) == 1 and _is_export(given[0], writable=writable):
        from activation_logging.export.reading import ExportStore

        return ExportStore(given[0])
    places = find_stores(given)
    if places.several:
        return ManyStores(places, writable=writable)
    return Store(places.title, writable=writable)


def open_each(path: OnePlace) -> list[Store]:
    """Open the stores that a path means, each by itself; or the export that it is, as one."""
    if _is_export(path, writable=False):
        return [open_store(path)]
    return [Store(folder) for folder in find_stores(path).folders]


def _listed(paths: Any) -> list[OnePlace]:
    """Several paths as a list, also those of a generator such as ``Path.glob``."""
    found = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, bytes) else [paths]
    for path in found:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"a store is named by a path, not by a {type(path).__name__}")
    return found


def _is_export(path: str | os.PathLike[str], *, writable: bool) -> bool:
    if writable:
        refuse_address(path, "a store")
    where = located(path)
    found = True
    if isinstance(where, Path):
        try:
            found = (where / layout.EXPORT).is_file() and not (where / "data.mdb").exists()
        except OSError:  # which is told when it is opened as a store
            found = False
    if found and writable:
        raise StoreReadOnly(
            f"{where} is an export, which is only read: write to the store that it was made of"
        )
    return found
