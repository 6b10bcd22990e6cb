"""Reads the rows of many answers of several stores into one array."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.errors import StoreError
from activation_logging.store import layout
from activation_logging.store.reading import RowBatch, RowReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from activation_logging.sites import AnySite
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.many import ManyStores

_MOST_KNOWN = 1 << 22
_DROPPED = b'"dropped"'


class ManyRowReader:
    """A :class:`RowReader` for each store, and which of them has the rows of an answer.

    Threads may share it.
    """

    def __init__(self, many: ManyStores) -> None:
        self._many = many
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}
        self._readers = [
            RowReader(store, partial(self._entry_in, number))
            for number, store in enumerate(many.parts)
        ]

    def read(
        self, keys: Iterable[str], site: AnySite, position: str | int | None
    ) -> npt.NDArray[Any] | RowBatch:
        """See :meth:`Store.read`."""
        if isinstance(keys, str):
            raise TypeError("keys is a list of keys, not one of them")
        keys = list(keys)
        by_part: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            known = self._known.get(key)
            number = self._look_for(key) if known is None else known
            by_part.setdefault(number, []).append(index)
        by_part = by_part or {0: []}
        read = {
            number: self._readers[number].read([keys[i] for i in chosen], site, position)
            for number, chosen in by_part.items()
        }
        return _joined(len(keys), by_part, read) if len(read) > 1 else next(iter(read.values()))

    def _look_for(self, key: str) -> int:
        """The number of the store that has the rows of an answer; remembered, if it has some."""
        number, own = self._many.place_of(key)
        snapshot = self._many.parts[number].snapshot()
        member = self._many.member(number, own, snapshot)
        raw = snapshot.get(layout.CAPTURES, layout.id_key(member.capture))
        # Its own store has the rows of nearly every answer, and need not be asked for more.
        if raw is None or _DROPPED in bytes(raw):
            del snapshot, raw
            number, record = member.rows_part, member.capture_record()
            if record is None or record.get("dropped"):
                return number  # which may change: the rows may yet come
        with self._lock:
            if len(self._known) > _MOST_KNOWN:
                self._known = {}
            self._known[key] = number
        return number

    def _entry_in(self, rows_part: int, snapshot: Snapshot, key: str) -> Entry:
        """The entry of a key whose rows are in the store that the view is of."""
        number, own = self._many.place_of(key)
        seen = snapshot if number == rows_part else self._many.parts[number].snapshot()
        return self._many.member(number, own, seen)


def _joined(
    count: int,
    by_part: dict[int, list[int]],
    read: dict[int, npt.NDArray[Any] | RowBatch],
) -> npt.NDArray[Any] | RowBatch:
    """What was read of each store, in the order of all answers."""
    arrays = {n: one.values if isinstance(one, RowBatch) else one for n, one in read.items()}
    widths = {array.shape[1] for array in arrays.values()}
    if len(widths) > 1:
        raise StoreError(
            f"the answers' rows have {' and '.join(map(str, sorted(widths)))} elements: they do "
            "not go into one array"
        )
    types = {array.dtype for array in arrays.values()}
    dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)
    sizes = np.ones(count, np.int64)
    for number, one in read.items():
        if isinstance(one, RowBatch):
            sizes[by_part[number]] = np.diff(one.offsets)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    values = np.empty((offsets[-1], widths.pop()), dtype)
    for number, array in arrays.items():
        values[_rows_of(by_part[number], offsets)] = array
    is_batch = all(isinstance(one, RowBatch) for one in read.values())
    return RowBatch(values, offsets) if is_batch else values


def _rows_of(answers: Sequence[int], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of the rows of some answers, one answer after the other."""
    return np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in answers])
