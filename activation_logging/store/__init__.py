"""The store: the only part of the package that imports ``lmdb``."""

from activation_logging.store.entry import Entry
from activation_logging.store.reader import Store, open_store
from activation_logging.store.writer import StoreWriter

__all__ = ["Entry", "Store", "StoreWriter", "open_store"]
