"""The store: the only part of the package that imports ``lmdb``."""

from activation_logging.store.derived import Derived
from activation_logging.store.entry import Entry
from activation_logging.store.many import ManyStores
from activation_logging.store.open import open_store
from activation_logging.store.reading import RowBatch
from activation_logging.store.store import Store
from activation_logging.store.writer import GATHER_S, StoreWriter

__all__ = [
    "GATHER_S",
    "Derived",
    "Entry",
    "ManyStores",
    "RowBatch",
    "Store",
    "StoreWriter",
    "open_store",
]
