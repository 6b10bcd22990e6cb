"""Zarr 3: one chunked, compressed array of all rows per layer and site."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.export.jsonl import entries_with_text
from activation_logging.export.registry import Format, PartRows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.plan import Plan
    from activation_logging.export.registry import RowsOf
    from activation_logging.progress import Progress

_CHUNK_BYTES = 4 << 20
_HELD = 64
"""Chunks that a reader keeps decompressed: the entries of a part are usually read in order."""


def write(plan: Plan, folder: Path, progress: Progress) -> None:
    """A group: ``layer_<k>``, ``heads@<k>`` (all rows by width), ``offsets`` ``[entries + 1]``."""
    import zarr

    root = zarr.open_group(str(folder), mode="a")
    width = max(column.width for column in plan.columns) * np.dtype(plan.dtype).itemsize
    chunk = max(1, min(plan.total_rows, _CHUNK_BYTES // width))
    arrays = {
        column.layer: root.create_array(
            column.name,
            shape=(plan.total_rows, column.width),
            chunks=(chunk, column.width),
            dtype=plan.dtype,
        )
        for column in plan.columns
    }
    offsets = np.cumsum([0, *(item.num_rows for item in plan.items)], dtype=np.int64)
    root.create_array("offsets", data=offsets)
    root.attrs["layers"] = [column.layer for column in plan.columns if not column.is_site]
    waiting = _Gatherer(arrays, chunk)
    for _, item, entry in entries_with_text(plan, folder, progress):
        waiting.add({layer: plan.array(entry, item, layer) for layer in arrays})
    waiting.finish()


class _Gatherer:
    """Collects rows until they fill a chunk: a chunk is compressed whole."""

    def __init__(self, arrays: dict[int | str, Any], chunk: int) -> None:
        self.arrays, self.chunk = arrays, chunk
        self.parts: dict[int | str, list[npt.NDArray[Any]]] = {layer: [] for layer in arrays}
        self.waiting = self.at = 0

    def add(self, rows: dict[int | str, npt.NDArray[Any]]) -> None:
        for layer, part in rows.items():
            self.parts[layer].append(part)
        self.waiting += len(next(iter(rows.values())))
        if self.waiting >= self.chunk:
            self._write(self.waiting - self.waiting % self.chunk)

    def finish(self) -> None:
        self._write(self.waiting)

    def _write(self, count: int) -> None:
        for layer, parts in self.parts.items():
            if not parts:
                continue
            rows = np.concatenate(parts)
            self.arrays[layer][self.at : self.at + count] = rows[:count]
            self.parts[layer] = [rows[count:].copy()]
        self.at += count
        self.waiting -= count


def read(part: PartRows) -> RowsOf:
    """The rows of entries, a chunk at a time."""
    import zarr

    @cache
    def array(column: str) -> Any:
        # Each file of the array is fetched and checked; zarr then finds them by itself.
        described = part.file(f"{column}/zarr.json")
        part.below(f"{column}/")
        return zarr.open_array(str(described.parent), mode="r")

    @lru_cache(maxsize=_HELD)
    def chunk(column: str, number: int) -> npt.NDArray[Any]:
        found = array(column)
        size = found.chunks[0]
        return np.asarray(found[number * size : (number + 1) * size])

    def rows(number: int, key: str, column: str) -> npt.NDArray[Any]:  # noqa: ARG001
        start, stop = part.bounds(number)
        size = array(column).chunks[0]
        first = start // size
        chunks = [chunk(column, one) for one in range(first, max(stop - 1, start) // size + 1)]
        whole = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return whole[start - first * size : stop - first * size]

    return rows


FORMAT = Format(
    "zarr",
    "One chunked, compressed array per layer (Python 3.11 or later).",
    write,
    ("zarr",),
    read=read,
)
