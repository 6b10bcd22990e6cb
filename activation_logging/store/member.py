"""An entry of one of several stores that are read as one."""

from __future__ import annotations

from operator import getitem
from typing import TYPE_CHECKING, Any

from activation_logging.store import layout
from activation_logging.store.entry import Entry

if TYPE_CHECKING:
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.many import ManyStores


class Member(Entry):
    """An entry of one of several stores; its rows may lie in another of them.

    Args:
        many: the stores.
        part: number of the store that the entry lies in.
        key: the entry's key in that store.
        raw: its record.
    """

    def __init__(self, many: ManyStores, part: int, key: str, raw: memoryview) -> None:
        super().__init__(many.parts[part], key, raw)
        self._many = many
        self._rows_part: int | None = None
        self.part = part

    @property
    def key(self) -> str:
        """The name of its store, a colon, and its key there."""
        return f"{self._many.names[self.part]}:{self._key}"

    @property
    def sequence(self) -> int:
        """Its place in the order of the stores and, within one, in the order of writing."""
        return layout.part_sequence(self.part, super().sequence)

    @property
    def capture(self) -> str:
        """The id of its rows, which both stores know."""
        return self._head.capture

    @property
    def rows_part(self) -> int:
        """The number of the store that holds its rows; its own if none does."""
        if self._rows_part is None or self._found_capture is None:
            found = self._many.rows_of(self.part, self._head.capture)
            self._rows_part, self._found_capture = found.part, found.record
        return self._rows_part

    def capture_record(self, snapshot: Snapshot | None = None) -> dict[str, Any] | None:
        """The record of its rows; without a view, from whatever store has them."""
        if snapshot is not None:
            return super().capture_record(snapshot)
        if self._found_capture is None:
            self.rows_part  # noqa: B018 - finds the record
        return self._found_capture

    def _rows_snapshot(self) -> Snapshot:
        return self._many.parts[self.rows_part].snapshot()

    def __reduce__(self) -> tuple[Any, ...]:
        return getitem, (self._many, self.key)
