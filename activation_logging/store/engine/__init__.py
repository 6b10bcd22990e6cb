"""The LMDB engine below the store: environments, opening, locks, readers, pages."""
