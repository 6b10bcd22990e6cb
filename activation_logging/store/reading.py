"""Reading many answers at once: one transaction, one array.

Finding an answer's rows takes three searches in the store and two records of JSON. Where they were
found is remembered until the next commit, so that in a second pass over the same answers, an epoch
of training, an answer costs one look into a dict.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import RowsMissing, StoreError
from activation_logging.store.rows import RowType, Run, copy_rows, cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from activation_logging.store.entry import Entry
    from activation_logging.store.environment import Snapshot
    from activation_logging.store.reader import Store

_MOST_PLACES = 1 << 20
"""How many answers are remembered, a hundred bytes each; with more, all are forgotten."""


class RowBatch(NamedTuple):
    """The rows of many answers, one after the other.

    ``values`` is ``[total rows, hidden]``; the rows of the i-th answer are
    ``values[offsets[i]:offsets[i + 1]]``. ``offsets`` is int64 ``[answers + 1]``.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]


class _Places:
    """Where the rows of many answers lie that have something in common: layer and position."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        # Of each answer, by its number: address, rows, and which of `_kinds` they are.
        self._table = np.empty((64, 3), np.int64)
        self._kinds: list[RowType] = []
        # Those that lie in several runs; their address in the table means nothing.
        self._several: dict[int, list[Run]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that are not known yet, in order: neighbours lie on the same pages."""
        return sorted({key for key in keys if key not in self._numbers})

    def add(self, key: str, kind: RowType, runs: Sequence[Run]) -> None:
        with self._lock:
            if key in self._numbers:
                return
            if kind not in self._kinds:
                self._kinds.append(kind)
            number = len(self._numbers)
            if number == len(self._table):
                self._table = np.concatenate([self._table, np.empty_like(self._table)])
            address = runs[0].address if runs else 0
            total = sum(run.rows for run in runs)
            self._table[number] = address, total, self._kinds.index(kind)
            if len(runs) > 1:
                self._several[number] = list(runs)
            # Last, for other threads look here first.
            self._numbers[key] = number

    def copy(self, keys: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The rows of these answers, and how many each has; KeyError if one is not known."""
        numbers = np.fromiter(map(self._numbers.__getitem__, keys), np.int64, len(keys))
        table = self._table[numbers]
        counts = table[:, 1]
        if len(self._kinds) > 1 and (table[:, 2] != table[0, 2]).any():
            return self._copy_mixed(keys, numbers, table), counts
        if not len(keys):
            return np.empty((0, 0), np.float32), counts
        return self._copy(numbers, table), counts

    def _copy(
        self, numbers: npt.NDArray[np.int64], table: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        starts, counts = table[:, 0], table[:, 1]
        if self._several and any(number in self._several for number in numbers.tolist()):
            runs = [
                run
                for number, (address, rows, _) in zip(
                    numbers.tolist(), table.tolist(), strict=True
                )
                for run in self._several.get(number) or [Run(address, rows)]
            ]
            starts, counts = np.array(runs, np.int64).T
        return copy_rows(self._kinds[table[0, 2]], starts, counts, widen=True)

    def _copy_mixed(
        self,
        keys: Sequence[str],
        numbers: npt.NDArray[np.int64],
        table: npt.NDArray[np.int64],
    ) -> npt.NDArray[Any]:
        """As float32, where the answers were stored in several types."""
        kinds = [self._kinds[number] for number in table[:, 2]]
        for key, kind in zip(keys, kinds, strict=True):
            if kind.width != kinds[0].width:
                raise StoreError(
                    f"rows of entry {keys[0]} have {kinds[0].width} elements, those of entry {key} "
                    f"{kind.width}: they do not go into one array"
                )
        values = np.empty((table[:, 1].sum(), kinds[0].width), np.float32)
        owner = np.repeat(table[:, 2], table[:, 1])
        for number in set(table[:, 2].tolist()):
            mine = table[:, 2] == number
            values[owner == number] = self._copy(numbers[mine], table[mine])
        return values


class RowReader:
    """Reads the rows of many answers of one store; may be shared among threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._commit: object = None
        self._places: dict[tuple[int | str, int | str | None], _Places] = {}

    def read(
        self, keys: Iterable[str], layer: int | Literal["last"], position: str | int | None
    ) -> npt.NDArray[Any] | RowBatch:
        """See :meth:`Store.read`."""
        if isinstance(keys, str):
            raise TypeError("keys is a list of keys, not one of them")
        keys = list(keys)
        if position is None:
            values, counts = self._copy(keys, layer, None)
            return RowBatch(values, np.concatenate([[0], np.cumsum(counts)]))
        from activation_logging.dataset.positions import parse_position, pool_of, pool_rows

        position = parse_position(position)
        values, counts = self._copy(keys, layer, position)
        pool = pool_of(position)
        if pool == "one":
            return values
        ends = np.cumsum(counts).tolist()
        pooled = np.empty((len(keys), values.shape[1]), np.float32)
        for number, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True)):
            pooled[number] = pool_rows(values[end - count : end].astype(np.float32), pool)
        return pooled

    def _copy(
        self, keys: Sequence[str], layer: int | str, position: str | int | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        # Addresses hold as long as the snapshot does.
        snapshot = self._store._snapshot()
        places = self._places_in(snapshot, layer, position)
        try:
            return places.copy(keys)
        except KeyError:
            for key in places.missing(keys):
                entry = self._store._get(snapshot, key)
                places.add(key, *_find(entry, snapshot, layer, position))
            return places.copy(keys)

    def _places_in(
        self, snapshot: Snapshot, layer: int | str, position: str | int | None
    ) -> _Places:
        """What is known of the commit that a snapshot sees."""
        with self._lock:
            known = sum(map(len, self._places.values()))
            # Nothing that it sees has moved while no commit came and the map stayed where it is.
            if snapshot.commit != self._commit or known > _MOST_PLACES:
                self._places, self._commit = {}, snapshot.commit
            return self._places.setdefault((layer, position), _Places())


def _find(
    entry: Entry, snapshot: Snapshot, layer: int | str, position: str | int | None
) -> tuple[RowType, list[Run]]:
    kind, runs = entry._runs(snapshot, layer)
    if position is None:
        return kind, runs
    from activation_logging.dataset.positions import find_rows, place_of

    rows = find_rows(position, place_of(entry))
    if isinstance(rows, str):
        raise RowsMissing(f"entry {entry.key} has no state there: {rows}")
    return kind, cut(runs, rows.start, rows.stop, kind.nbytes)
