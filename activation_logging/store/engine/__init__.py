"""What living with LMDB takes: one environment per process, opening, locks, readers, pages."""
