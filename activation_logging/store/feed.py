"""What follows a store, such as the search index of the page: what is there, and what has changed.

Numbers are those of :attr:`.Entry.sequence`, which :meth:`.Store.at` finds an entry by. A *mark*
says how far somebody has read the changes. It is a JSON value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.locations import Address
from activation_logging.store import layout
from activation_logging.store.index import Change, Index

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.store.store import Store


class Changed(NamedTuple):
    """Numbers of entries that have changed, and the mark after that."""

    sequences: list[int]
    mark: Any


class Feed:
    """The entries of a store, or of several that are read as one, and their changes.

    Args:
        store: the store; it must be indexed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def identity(self) -> Any:
        """Tells this store from one that was put in its place; a JSON value."""
        made = [_created(part) for part in self._store.parts]
        named = [list(pair) for pair in zip(self._store.names, made, strict=True)]
        return named if self._store.is_many else made[0]

    def mode(self) -> int:
        """The rights that the files of all stores give, as in :func:`os.stat`."""
        found = 0o666
        for part in self._store.parts:
            found &= _mode(part.path)
        return found

    def written(self, start: int, limit: int) -> list[int]:
        """The next numbers in the order of writing, from ``start`` on; fewer only at the end."""
        first, sequence = layout.part_of(start)
        found: list[int] = []
        for number in range(first, len(self._store.parts)):
            found += self._written_in(number, sequence, limit - len(found))
            sequence = 0
            if len(found) == limit:
                break
        return found

    def _written_in(self, number: int, start: int, limit: int) -> list[int]:
        snapshot = self._store.parts[number].snapshot()
        sequences: list[int] = []
        with snapshot.reading():
            cursor = snapshot.cursor(layout.LOG)
            there = cursor.set_range(layout.sequence_key(start))
            while there and len(sequences) < limit:
                sequences.append(layout.sequence_number(bytes(cursor.key())))
                there = cursor.next()
        return [layout.part_sequence(number, sequence) for sequence in sequences]

    def last(self) -> Any:
        """The mark after the latest change."""
        marks = [_mark(Index(part.snapshot()).last_change()) for part in self._store.parts]
        return marks if self._store.is_many else marks[0]

    def changed(self, mark: Any, limit: int) -> Changed | None:
        """What has changed after a mark; ``limit`` changes at most.

        Returns:
            None if the mark is not of this store, or its index was rebuilt.
        """
        marks = mark if self._store.is_many else [mark]
        if not isinstance(marks, list) or len(marks) != len(self._store.parts):
            return None
        after = []
        found: list[int] = []
        for number, part in enumerate(self._store.parts):
            changes: list[Change] | None = []
            if len(found) < limit:
                index, last = Index(part.snapshot()), marks[number]
                changes = index.changes(_change(last), limit - len(found))
            if changes is None:
                return None
            found += [layout.part_sequence(number, one.sequence) for one in changes]
            after.append(_mark(changes[-1]) if changes else marks[number])
        return Changed(found, after if self._store.is_many else after[0])


def _mode(path: Path | Address) -> int:
    if isinstance(path, Address):
        return 0o600
    file = path / "data.mdb"
    return (file if file.exists() else path / layout.EXPORT).stat().st_mode


def _created(store: Store) -> float | str | None:
    raw = store.snapshot().get(layout.META, layout.FORMAT_KEY)
    return None if raw is None else layout.load(raw, "the format record").get("created")


def _mark(change: Change | None) -> list[int] | None:
    return None if change is None else list(change)


def _change(mark: list[int] | None) -> Change | None:
    return None if mark is None else Change(*mark)
