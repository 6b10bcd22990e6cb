"""numpy's own format: one array of all rows per layer and site."""

from __future__ import annotations

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


def write(plan: Plan, folder: Path, progress: Progress) -> None:
    """``layer_<k>.npy`` ``[all rows, hidden]``, for ``numpy.load(..., mmap_mode="r")``.

    Another site is ``heads@<k>.npy`` ``[all rows, width]``.
    """
    arrays = {
        column.layer: np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            folder / f"{column.name}.npy",
            mode="w+",
            dtype=plan.dtype,
            shape=(plan.total_rows, column.width),
        )
        for column in plan.columns
    }
    for start, item, entry in entries_with_text(plan, folder, progress):
        for layer, array in arrays.items():
            array[start : start + item.num_rows] = plan.array(entry, item, layer)
    for array in arrays.values():
        array.flush()


def read(part: PartRows) -> RowsOf:
    """The rows of entries, from arrays that are mapped."""
    arrays: dict[str, npt.NDArray[Any]] = {}

    def rows(number: int, key: str, column: str) -> npt.NDArray[Any]:  # noqa: ARG001
        if column not in arrays:
            arrays[column] = np.load(part.file(f"{column}.npy"), mmap_mode="r")
        start, stop = part.bounds(number)
        return arrays[column][start:stop]

    return rows


FORMAT = Format("npy", "One memory-mappable array per layer.", write, read=read)
