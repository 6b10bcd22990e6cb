"""Rows where they lie in LMDB's map, and copies of them.

What a snapshot gives out is memory of the map, which is read-only and goes away with the snapshot.
What users get is a copy of the rows that they asked for. The rows of one layer of an answer lie in
one *run* of consecutive rows, or in several where it shares some with other answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import RowsMissing, StoreCorrupt
from activation_logging.store import layout
from activation_logging.store.mutations import slices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.store.environment import Snapshot

_STORED_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_PIECE_BYTES = 128 << 10
"""How much is widened at a time: what stays in a processor's cache on the way."""


class RowType(NamedTuple):
    """What a row is: its stored type, and its number of elements."""

    dtype: str
    width: int

    @property
    def stored(self) -> np.dtype[Any]:
        """The stored type as numpy has it; bfloat16 as its bits."""
        return np.dtype(_STORED_TYPES[self.dtype])

    @property
    def nbytes(self) -> int:
        """Bytes of one stored row."""
        return self.stored.itemsize * self.width


class Run(NamedTuple):
    """Consecutive rows in the map: the address of the first, and how many there are."""

    address: int
    rows: int


def find_runs(
    snapshot: Snapshot, key: str, record: Mapping[str, Any], layer: int | str, limit: int
) -> tuple[RowType, list[Run]]:
    """Where the rows of one layer of an entry lie, as long as ``snapshot`` lives.

    Args:
        snapshot: the view to look in.
        key: the entry's key.
        record: its capture's record.
        layer: the layer's number, or ``last``.
        limit: the entry has no more rows than these.

    Raises:
        RowsMissing: the layer was not logged. StoreCorrupt: what is there cannot be its rows.
    """
    number = record["num_layers"] if layer == "last" else int(layer)
    if number not in record["layers"]:
        raise RowsMissing(
            f"layer {layer} of entry {key} was not logged; logged are "
            f"{', '.join(map(str, record['layers']))} (last is {record['num_layers']})"
        )
    kind = RowType(record["dtype"], record["hidden_size"])
    runs = []
    for part in slices_of(record):
        raw = snapshot.get(layout.ROWS, layout.rows_key(part.segment, number))
        if raw is None:
            if snapshot.get(layout.MAIN, key.encode()) is None:
                raise RowsMissing(f"entry {key} has been deleted")
            raise StoreCorrupt(f"entry {key} lacks rows of layer {number} that it refers to")
        if len(raw) % kind.nbytes or (part.start + part.rows) * kind.nbytes > len(raw):
            raise StoreCorrupt(f"layer {number} of entry {key} has a length that cannot be")
        if part.rows:
            address = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
            runs.append(Run(address + part.start * kind.nbytes, part.rows))
    return kind, cut(runs, 0, limit, kind.nbytes)


def cut(runs: Sequence[Run], start: int, stop: int, nbytes: int) -> list[Run]:
    """Rows ``start`` to ``stop`` (not included) of some runs, whose rows have ``nbytes`` each."""
    found = []
    for run in runs:
        first, last = max(start, 0), min(stop, run.rows)
        if first < last:
            found.append(Run(run.address + first * nbytes, last - first))
        start, stop = start - run.rows, stop - run.rows
    return found


def copy_rows(
    kind: RowType, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], *, widen: bool
) -> npt.NDArray[Any]:
    """The rows of some runs one after the other, ``[total rows, width]``: memory of its own.

    Args:
        kind: what the rows are.
        starts: the address of each run. The snapshot that they come from must still live.
        counts: the number of rows of each.
        widen: give bfloat16 as float32, which changes no value, not as its bits.
    """
    if counts.max(initial=0) > 1:
        ends = np.cumsum(counts)
        # The address of every row: that of its run, and its place in it.
        rows = np.arange(ends[-1], dtype=np.int64)
        rows *= kind.nbytes
        rows += np.repeat(starts - (ends - counts) * kind.nbytes, counts)
    else:
        rows = starts[counts > 0]
    if not len(rows) or not kind.width:
        wide = widen and kind.dtype == "bfloat16"
        return np.empty((len(rows), kind.width), np.float32 if wide else kind.stored)
    first = int(rows.min())
    # One element per byte, each as long as a row: element i is the row that begins at byte i.
    window = np.asarray(_Window(first, int(rows.max()) - first + 1, kind.nbytes))
    rows -= first
    if not widen or kind.dtype != "bfloat16":
        return window[rows].view(kind.stored).reshape(-1, kind.width)
    out = np.empty((len(rows), kind.width), np.float32)
    bits = out.view(np.uint32)
    step = max(_PIECE_BYTES // kind.nbytes, 1)
    for begin in range(0, len(rows), step):
        piece = bits[begin : begin + step]
        piece[...] = window[rows[begin : begin + step]].view(kind.stored).reshape(-1, kind.width)
        np.left_shift(piece, 16, out=piece)
    return out


class _Window:
    """Memory of the map as numpy sees it: ``count`` overlapping elements, a byte apart."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, count: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (count,),
            "strides": (1,),
            "typestr": f"|V{nbytes}",
        }
