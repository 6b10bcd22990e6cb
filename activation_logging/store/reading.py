"""Reads the rows of many answers in one transaction, into one array.

Finding an answer's rows takes three look-ups in the store and two JSON records. The addresses are
cached until the next commit. In a second pass over the same answers, such as an epoch of training,
an answer costs one dict access.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing, RowsMissing, StoreError
from activation_logging.store.rows import RowType, Run, copy_runs, copy_single, cut, every_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from activation_logging.sites import AnySite
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.store import Store

_MOST_PLACES = 1 << 20
"""Largest number of cached answers, about a hundred bytes each. Beyond it the cache is cleared."""


class RowBatch(NamedTuple):
    """The rows of many answers, one after the other.

    ``values`` is ``[total rows, width]``, ``offsets`` is int64 ``[answers + 1]``. The rows of the
    i-th answer are ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]


class ReadsRows(Protocol):
    """What reads the rows of many answers, of one store or of several."""

    def read(
        self, keys: Iterable[str], site: AnySite, position: str | int | None
    ) -> npt.NDArray[Any] | RowBatch:
        """See :meth:`Store.read`."""


class _Places:
    """Addresses of the rows of many answers, for one site and position."""

    def __init__(self) -> None:
        # Answers with a single row are separate. The bytes of an address need less memory, and
        # joining many of them is faster than making an array of numbers.
        self._addresses: dict[str, bytes] = {}
        self._runs: dict[str, Sequence[Run]] = {}
        self._low, self._high = sys.maxsize, 0
        self._window: tuple[npt.NDArray[Any], int] | None = None
        self._kind: RowType | None = None
        # Row types that differ from the first answer's.
        self._other_kinds: dict[str, RowType] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._addresses) + len(self._runs)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that are not cached yet. They are sorted, because neighbours share pages."""
        return sorted(set(keys) - self._addresses.keys() - self._runs.keys(), key=str)

    def add(self, key: str, kind: RowType, runs: Sequence[Run]) -> None:
        with self._lock:
            self._kind = self._kind or kind
            if kind != self._kind:
                self._other_kinds[key] = kind
            # Set the address or the runs last: other threads check these first.
            if sum(run.rows for run in runs) == 1:
                address = runs[0].address
                self._low, self._high = min(self._low, address), max(self._high, address)
                self._window = None
                self._addresses[key] = address.to_bytes(8, sys.byteorder)
            else:
                self._runs[key] = tuple(runs)

    def copy(self, keys: Sequence[str]) -> tuple[npt.NDArray[Any], list[int] | None]:
        """The rows of these answers, and the number of each answer's rows; None if all have one.

        Raises:
            KeyError: an answer is not cached.
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
        """Addresses of these answers' single rows, ``[answers]``; KeyError if one is missing."""
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
    """Reads the rows of many answers of one store. Threads may share it.

    Args:
        store: holds the rows.
        entry_in: finds an entry by its key, given a view of the store; the store's own if left out.
    """

    def __init__(
        self, store: Store, entry_in: Callable[[Snapshot, str], Entry] | None = None
    ) -> None:
        self._store = store
        self._entry_in = entry_in or store.entry_in
        self._lock = threading.Lock()
        self._commit: object = None
        self._places: dict[tuple[AnySite, int | str | None], _Places] = {}

    def read(
        self, keys: Iterable[str], site: AnySite, position: str | int | None
    ) -> npt.NDArray[Any] | RowBatch:
        """See :meth:`Store.read`."""
        if isinstance(keys, str):
            raise TypeError("keys is a list of keys, not one of them")
        keys = list(keys)
        values, counts = self._copy(keys, site, position)
        if position is not None and counts is None and values.dtype == np.float32:
            return values
        counts = counts or [1] * len(keys)
        if position is None:
            return RowBatch(values, np.cumsum([0, *counts], dtype=np.int64))
        return _pooled(values, counts, position)

    def _copy(
        self, keys: Sequence[str], site: AnySite, position: str | int | None
    ) -> tuple[npt.NDArray[Any], list[int] | None]:
        # What lies in the map may be looked at as long as this lives.
        snapshot = self._store.snapshot()
        places = self._places_in(snapshot, site, position)
        with suppress(KeyError):
            return places.copy(keys)
        for key in places.missing(keys):
            entry = self._entry_in(snapshot, key)
            places.add(key, *_find(entry, snapshot, site, position))
        return places.copy(keys)

    def _places_in(self, snapshot: Snapshot, site: AnySite, position: str | int | None) -> _Places:
        """The cache for a snapshot's commit."""
        commit = snapshot.commit
        with self._lock:
            # The addresses stay valid until there is a new commit or the map is remapped.
            if commit != self._commit or sum(map(len, self._places.values())) > _MOST_PLACES:
                self._places, self._commit = {}, commit
            found = self._places.get((site, position))
            if found is None:
                found = self._places[site, position] = _Places()
            return found


def _pooled(
    values: npt.NDArray[Any], counts: Sequence[int], position: str | int
) -> npt.NDArray[Any]:
    """One vector per answer, ``[answers, width]``; float32 if the position is a pool."""
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
    entry: Entry, snapshot: Snapshot, site: AnySite, position: str | int | None
) -> tuple[RowType, list[Run]]:
    kind, runs = entry.runs(snapshot, site)
    if position is None:
        return kind, runs
    from activation_logging.dataset.positions import rows_at

    try:
        rows = rows_at(position, entry)
    except InputMissing as missing:
        raise RowsMissing(f"entry {entry.key} has no state there: {missing}") from None
    return kind, cut(runs, rows.start, rows.stop, kind.nbytes)
