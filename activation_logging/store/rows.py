"""Finds rows in LMDB's map and copies them.

A snapshot's values are memory of the map, which is read-only and valid only while the snapshot
lives. Users get copies. The rows of one layer of an answer form one *run* of consecutive rows, or
several runs if the answer shares rows with others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import RowsMissing, StoreCorrupt
from activation_logging.store import layout
from activation_logging.store.mutations import slices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.store.engine.environment import Snapshot

_STORED_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_PIECE = 1 << 16
"""Number of elements that are widened at a time. They fit into the processor's cache."""


class RowType(NamedTuple):
    """The type of a row.

    ``stored`` is numpy's type of the stored elements; bfloat16 is ``uint16``. ``width`` is the
    number of elements of a row, ``nbytes`` its stored size.
    """

    dtype: str
    stored: np.dtype[Any]
    width: int
    nbytes: int


@lru_cache(maxsize=64)
def row_type(dtype: str, width: int) -> RowType:
    """The type of rows of ``width`` elements of ``dtype``."""
    stored: np.dtype[Any] = np.dtype(_STORED_TYPES[dtype])
    return RowType(dtype, stored, width, stored.itemsize * width)


class Run(NamedTuple):
    """Consecutive rows in the map: the address of the first, and their number."""

    address: int
    rows: int


def find_runs(
    snapshot: Snapshot, key: str, record: Mapping[str, Any], layer: int | str, limit: int
) -> tuple[RowType, list[Run]]:
    """The runs of one layer of an entry, valid as long as ``snapshot`` lives.

    Args:
        snapshot: the snapshot to read.
        key: the entry's key.
        record: the record of its capture.
        layer: the layer's number, or ``last``.
        limit: largest number of rows of the entry.

    Raises:
        RowsMissing: the layer was not logged. StoreCorrupt: the stored rows are invalid.
    """
    number = record["num_layers"] if layer == "last" else int(layer)
    if number not in record["layers"]:
        raise RowsMissing(
            f"layer {layer} of entry {key} was not logged; logged layers: "
            f"{', '.join(map(str, record['layers']))} (last is {record['num_layers']})"
        )
    kind = row_type(record["dtype"], record["hidden_size"])
    runs = []
    for part in slices_of(record):
        raw = snapshot.get(layout.ROWS, layout.rows_key(part.segment, number))
        if raw is None:
            if snapshot.get(layout.MAIN, key.encode()) is None:
                raise RowsMissing(f"entry {key} has been deleted")
            raise StoreCorrupt(f"entry {key} refers to rows of layer {number} that are missing")
        if len(raw) % kind.nbytes or (part.start + part.rows) * kind.nbytes > len(raw):
            raise StoreCorrupt(f"layer {number} of entry {key} has an invalid length")
        if part.rows:
            address = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
            runs.append(Run(address + part.start * kind.nbytes, part.rows))
    return kind, cut(runs, 0, limit, kind.nbytes)


def cut(runs: Sequence[Run], start: int, stop: int, nbytes: int) -> list[Run]:
    """Rows ``start`` to ``stop`` (exclusive) of some runs. A row has ``nbytes`` bytes."""
    found = []
    for run in runs:
        first, last = max(start, 0), min(stop, run.rows)
        if first < last:
            found.append(Run(run.address + first * nbytes, last - first))
        start, stop = start - run.rows, stop - run.rows
    return found


def copy_runs(kind: RowType, runs: Sequence[Run], *, widen: bool) -> npt.NDArray[Any]:
    """A copy of the rows of some runs, one after the other, ``[total rows, width]``.

    Args:
        kind: type of the rows.
        runs: their runs. The snapshot that they were found in, or one of the same commit, must be
            alive.
        widen: return bfloat16 as float32, which changes no value. Otherwise as its bits.
    """
    if not (runs and kind.nbytes):
        empty = np.empty((sum(run.rows for run in runs), kind.width), kind.stored)
        return _widened(kind, [empty]) if widen else empty
    low = min(run.address for run in runs)
    high = max(run.address + run.rows * kind.nbytes for run in runs)
    window = np.asarray(_Window(low, high - low, 1))
    pieces = [
        window[run.address - low : run.address - low + run.rows * kind.nbytes] for run in runs
    ]
    if widen and kind.dtype == "bfloat16":
        return _widened(kind, pieces)
    joined: npt.NDArray[Any] = np.concatenate(pieces)
    return joined.view(kind.stored).reshape(-1, kind.width)


def every_row(kind: RowType, low: int, high: int) -> npt.NDArray[Any]:
    """A view whose element ``i`` is the row that begins ``i`` bytes after the address ``low``.

    Access only elements at which a row begins, and only while the snapshot lives.
    """
    return np.asarray(_Window(low, high - low + 1, kind.nbytes))


def copy_single(
    kind: RowType, window: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """A copy of some elements of :func:`every_row`, widened as by :func:`copy_runs`."""
    return _widened(kind, [window[places].view(kind.stored).reshape(-1, kind.width)])


def _widened(kind: RowType, pieces: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Join pieces of rows into one array ``[rows, width]``, bfloat16 as float32."""
    if kind.dtype != "bfloat16":
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    total = sum(piece.nbytes for piece in pieces) // 2
    values = np.empty(total, np.float32)
    bits = values.view(np.uint32)
    at = 0
    for piece in pieces:
        flat = piece.reshape(-1).view(kind.stored)
        for begin in range(0, len(flat), _PIECE):
            part = flat[begin : begin + _PIECE]
            wide = bits[at : at + len(part)]
            wide[...] = part
            np.left_shift(wide, 16, out=wide)
            at += len(part)
    return values.reshape(-1, kind.width) if kind.width else values.reshape(len(pieces[0]), 0)


class _Window:
    """The map's memory for numpy: ``count`` elements of ``nbytes`` bytes, one byte apart."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, count: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (count,),
            "strides": (1,),
            "typestr": f"|V{nbytes}" if nbytes > 1 else "|u1",
        }
