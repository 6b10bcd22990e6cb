"""numpy's own format: one array of all rows per layer and site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.export.jsonl import entries_with_text
from activation_logging.export.registry import Format

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.export.plan import Plan
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


FORMAT = Format("npy", "One memory-mappable array per layer.", write)
