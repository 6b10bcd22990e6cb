"""Rows in LMDB's memory map, and copies of them.

A snapshot gives out memory of the map, which is read-only and goes away with the snapshot. Users
get copies. The rows of one site of an answer are one *run* of consecutive rows, or several where
it shares some with other answers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from activation_logging.errors import RowsMissing, StoreCorrupt
from activation_logging.sites import MAX_LAYER, RESID, RowShape, Site
from activation_logging.store import layout, schema
from activation_logging.store.mutations import shapes_of, slices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.store.engine.snapshot import Snapshot

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""By the names that records have for them."""


class RowType(NamedTuple):
    """The type of a row.

    ``stored`` is the type of the stored elements, ``given`` the type that a caller gets. ``width``
    is the number of elements of a row, ``nbytes`` its stored size.
    """

    stored: np.dtype[Any]
    given: np.dtype[Any]
    width: int
    nbytes: int


@lru_cache(maxsize=64)
def row_type(row: RowShape) -> RowType:
    """The type of rows as a record describes them."""
    stored = NUMPY_TYPES[row.dtype]
    given = NUMPY_TYPES["float32"] if row.dtype == "bfloat16" else stored
    return RowType(stored, given, row.width, stored.itemsize * row.width)


class Run(NamedTuple):
    """Consecutive rows in the map: the address of the first, and their number."""

    address: int
    rows: int


def sites_of(record: Mapping[str, Any]) -> tuple[Site, ...]:
    """The sites of a checked capture record, ascending by code."""
    layers = [Site(RESID, layer) for layer in sorted(record["layers"])]
    return (*layers, *(schema.site(code) for code in sorted(shapes_of(record))))


def shape_in(record: Mapping[str, Any], key: str, site: Site) -> RowShape:
    """What a row of a site of an entry is.

    Raises:
        RowsMissing: the site was not logged; the message has those that were.
    """
    if site.name == RESID:
        if site.layer in record["layers"]:
            return RowShape((record["hidden_size"],), record["dtype"])
    elif site.layer <= MAX_LAYER:
        found = record.get("sites", {}).get(str(site.code))
        if found is not None:
            return RowShape(tuple(found["shape"]), found["dtype"])
    layers = ", ".join(map(str, record["layers"]))
    others = ", ".join(str(one) for one in sites_of(record) if one.name != RESID)
    there = [f"logged layers: {layers} (last is {record['num_layers']})"] if layers else []
    there += [f"logged sites: {others}"] if others else []
    raise RowsMissing(f"{site.words} of entry {key} was not logged; {'; '.join(there)}")


def find_runs(
    snapshot: Snapshot, key: str, capture: str, record: Mapping[str, Any], site: Site
) -> tuple[RowType, list[Run]]:
    """Where the rows of one site of an entry are, valid as long as ``snapshot`` lives.

    Args:
        snapshot: the snapshot to read.
        key: the entry's key.
        capture: the id of its rows.
        record: their record, which an earlier view may have shown.
        site: the site.

    Raises:
        RowsMissing: the site was not logged, or the rows have been removed since.
        StoreCorrupt: rows are missing, or their number of bytes is wrong.
    """
    kind = row_type(shape_in(record, key, site))
    runs = []
    for part in slices_of(record):
        raw = snapshot.get(layout.ROWS, layout.rows_key(part.segment, site.code))
        if raw is None:
            now = snapshot.get(layout.CAPTURES, layout.id_key(capture))
            if now is None:
                raise RowsMissing(f"entry {key} has been deleted")
            if slices_of(layout.load(now, f"capture of {key}")) != slices_of(record):
                raise RowsMissing(f"the rows of entry {key} have been removed meanwhile")
            raise StoreCorrupt(f"entry {key} refers to rows of {site.words} that are missing")
        if len(raw) % kind.nbytes or (part.start + part.rows) * kind.nbytes > len(raw):
            raise StoreCorrupt(f"{site.words} of entry {key} has an invalid length")
        if part.rows:
            address = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
            runs.append(Run(address + part.start * kind.nbytes, part.rows))
    return kind, runs


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
        kind: what the rows are.
        runs: where they are; the snapshot that they were found in, or one of the same commit,
            must live.
        widen: give bfloat16 as float32, which changes no value.
    """
    given = kind.given if widen else kind.stored
    if not (runs and kind.nbytes):
        return np.empty((sum(run.rows for run in runs), kind.width), given)
    low = min(run.address for run in runs)
    high = max(run.address + run.rows * kind.nbytes for run in runs)
    window = np.asarray(_Window(low, high - low, 1))
    pieces = [
        window[run.address - low : run.address - low + run.rows * kind.nbytes] for run in runs
    ]
    joined: npt.NDArray[Any]
    if given == kind.stored:
        joined = np.concatenate(pieces).view(given)
    else:
        joined = np.concatenate([piece.view(kind.stored) for piece in pieces], dtype=given)
    return joined.reshape(-1, kind.width)


def every_row(kind: RowType, low: int, high: int) -> npt.NDArray[Any]:
    """Element ``i`` is the row that would begin ``i`` bytes after the address ``low``.

    Only elements at which a row does begin may be read, and only while the snapshot lives.
    """
    return np.asarray(_Window(low, high - low + 1, kind.nbytes))


def copy_single(
    kind: RowType, window: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """A copy of some elements of :func:`every_row`, widened as by :func:`copy_runs`."""
    rows = window[places].view(kind.stored).reshape(-1, kind.width)
    return rows.astype(kind.given, copy=False)


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
