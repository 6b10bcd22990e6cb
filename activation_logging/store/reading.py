"""Reading many answers at once: one transaction, one array.

Finding an answer's rows takes three searches in the store and two records of JSON. Where they were
found is remembered until the next commit, so that in a second pass over the same answers, an epoch
of training, an answer costs one look into a dict.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing, RowsMissing, StoreError
from activation_logging.store.rows import RowType, Run, copy_runs, copy_single, cut, every_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from activation_logging.store.engine.environment import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.store import Store

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
        # Those with a single row are kept apart: the bytes of an address take less room, and many
        # of them are joined in less time than numbers are made into an array.
        self._addresses: dict[str, bytes] = {}
        self._runs: dict[str, Sequence[Run]] = {}
        self._low, self._high = sys.maxsize, 0
        self._window: tuple[npt.NDArray[Any], int] | None = None
        self._kind: RowType | None = None
        # Of the answers that are of another kind than the first.
        self._other_kinds: dict[str, RowType] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._addresses) + len(self._runs)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that are not known yet, in order: neighbours lie on the same pages."""
        return sorted(set(keys) - self._addresses.keys() - self._runs.keys(), key=str)

    def add(self, key: str, kind: RowType, runs: Sequence[Run]) -> None:
        with self._lock:
            self._kind = self._kind or kind
            if kind != self._kind:
                self._other_kinds[key] = kind
            # The last of all, for other threads look here first.
            if sum(run.rows for run in runs) == 1:
                address = runs[0].address
                self._low, self._high = min(self._low, address), max(self._high, address)
                self._window = None
                self._addresses[key] = address.to_bytes(8, sys.byteorder)
            else:
                self._runs[key] = tuple(runs)

    def copy(self, keys: Sequence[str]) -> tuple[npt.NDArray[Any], list[int] | None]:
        """The rows of these answers, and how many each has, None for one each.

        Raises:
            KeyError: one is not known.
        """
        if not keys:
            return np.empty((0, 0), np.float32), None
        if self._kind is None:
            raise KeyError(keys[0])
        if not (self._runs or self._other_kinds):
            addresses = self.addresses(keys)
            window, low = self._window or self._look()
            return copy_single(self._kind, window, addresses - low), None
        runs = [self._runs[key] if key in self._runs else self._single(key) for key in keys]
        counts = [sum(run.rows for run in each) for each in runs]
        kinds = [self._other_kinds.get(key, self._kind) for key in keys]
        if len(set(kinds)) == 1:
            return copy_runs(kinds[0], list(chain.from_iterable(runs)), widen=True), counts
        for key, kind in zip(keys, kinds, strict=True):
            if kind.width != kinds[0].width:
                raise StoreError(
                    f"rows of entry {keys[0]} have {kinds[0].width} elements, those of entry {key} "
                    f"{kind.width}: they do not go into one array"
                )
        parts = [copy_runs(kind, each, widen=True) for kind, each in zip(kinds, runs, strict=True)]
        return np.concatenate(parts, dtype=np.float32), counts

    def addresses(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Where the single rows of these answers lie; KeyError if one is not known."""
        found = itemgetter(*keys)(self._addresses)
        return np.frombuffer(found if len(keys) == 1 else b"".join(found), np.int64)

    def _single(self, key: str) -> list[Run]:
        return [Run(int.from_bytes(self._addresses[key], sys.byteorder), 1)]

    def _look(self) -> tuple[npt.NDArray[Any], int]:
        assert self._kind is not None
        with self._lock:
            self._window = every_row(self._kind, self._low, self._high), self._low
            return self._window


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
        values, counts = self._copy(keys, layer, position)
        if position is not None and counts is None and values.dtype == np.float32:
            return values
        counts = counts or [1] * len(keys)
        if position is None:
            return RowBatch(values, np.cumsum([0, *counts], dtype=np.int64))
        return _pooled(values, counts, position)

    def _copy(
        self, keys: Sequence[str], layer: int | str, position: str | int | None
    ) -> tuple[npt.NDArray[Any], list[int] | None]:
        # What lies in the map may be looked at as long as this lives.
        snapshot = self._store.snapshot()
        places = self._places_in(snapshot, layer, position)
        with suppress(KeyError):
            return places.copy(keys)
        for key in places.missing(keys):
            entry = self._store.entry_in(snapshot, key)
            places.add(key, *_find(entry, snapshot, layer, position))
        return places.copy(keys)

    def _places_in(
        self, snapshot: Snapshot, layer: int | str, position: str | int | None
    ) -> _Places:
        """What is known of the commit that a snapshot sees."""
        commit = snapshot.commit
        with self._lock:
            # Nothing that it sees has moved while no commit came and the map stayed where it is.
            if commit != self._commit or sum(map(len, self._places.values())) > _MOST_PLACES:
                self._places, self._commit = {}, commit
            found = self._places.get((layer, position))
            if found is None:
                found = self._places[layer, position] = _Places()
            return found


def _pooled(
    values: npt.NDArray[Any], counts: Sequence[int], position: str | int
) -> npt.NDArray[Any]:
    """The rows of each answer in one vector, as float32 where the position is a pool."""
    from activation_logging.dataset.positions import pool_of, pool_rows

    pool = pool_of(position)
    if pool == "one":
        return values
    pooled = np.empty((len(counts), values.shape[1]), np.float32)
    end = 0
    for number, count in enumerate(counts):
        begin, end = end, end + count
        pooled[number] = pool_rows(values[begin:end].astype(np.float32, copy=False), pool)
    return pooled


def _find(
    entry: Entry, snapshot: Snapshot, layer: int | str, position: str | int | None
) -> tuple[RowType, list[Run]]:
    kind, runs = entry.runs(snapshot, layer)
    if position is None:
        return kind, runs
    from activation_logging.dataset.positions import Place, find_rows, parse_position

    place = Place.of(entry, span=position == "answer_span")
    try:
        rows = find_rows(parse_position(position), place)
    except InputMissing as missing:
        raise RowsMissing(f"entry {entry.key} has no state there: {missing}") from None
    return kind, cut(runs, rows.start, rows.stop, kind.nbytes)
