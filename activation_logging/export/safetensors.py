"""safetensors: shards of one tensor per entry and layer or site, in the stored types."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from activation_logging.dataset.layers import Source
from activation_logging.errors import StoreCorrupt
from activation_logging.export.jsonl import entries_with_text
from activation_logging.export.registry import Format, PartRows
from activation_logging.store.rows import NUMPY_TYPES
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.plan import Item, Plan
    from activation_logging.export.registry import RowsOf
    from activation_logging.progress import Progress
    from activation_logging.store import Entry

SHARD_BYTES = 512 << 20
"""A shard that has reached this size, in bytes, is written, and the next one begun."""


def write(plan: Plan, folder: Path, progress: Progress) -> None:
    """``activations-<n>.safetensors`` with a tensor ``<key>/<layer>`` ``[rows, width]`` each.

    ``index.json`` says which file holds which key.
    """
    where: dict[str, str] = {}
    shard: dict[str, npt.NDArray[Any]] = {}
    size = number = 0

    def flush() -> None:
        nonlocal size, number
        if shard:
            name = f"activations-{number:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "activation-logging"})
            where.update((key.partition("/")[0], name) for key in shard)
            shard.clear()
            size, number = 0, number + 1

    for _, item, entry in entries_with_text(plan, folder, progress):
        for column in plan.columns:
            layer = column.layer
            array = shard[f"{item.key}/{layer}"] = _as_stored(plan, entry, item, layer)
            size += array.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    (folder / "index.json").write_text(dumps(where, indent=1), encoding="utf-8")


def _as_stored(plan: Plan, entry: Entry, item: Item, layer: int | str) -> npt.NDArray[Any]:
    if item.rows is not None and item.rows.pool != "one":
        return plan.array(entry, item, layer)
    site, head = Source.of(layer, plan.num_layers)
    start, stop = (0, None) if item.rows is None else (item.rows.start, item.rows.stop)
    rows = entry.stored(site, start, stop).view(NUMPY_TYPES[entry.shape_of(site).dtype])
    # A copy of the head: a view would keep all heads in memory until the shard is written.
    return rows.reshape(len(rows), -1) if head is None else rows[:, head].copy()


_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What the format calls our types."""


def read(part: PartRows) -> RowsOf:
    """The rows of entries, from shards that are mapped."""
    where = json.loads(part.file("index.json").read_bytes())

    @cache
    def shard(name: str) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        # Its own library has no bfloat16 for numpy. The header is JSON after its length in 8 bytes.
        mapped = np.memmap(part.file(name), np.uint8, "r")
        length = int(mapped[:8].view("<u8")[0])
        return json.loads(mapped[8 : 8 + length].tobytes()), mapped[8 + length :]

    def rows(number: int, key: str, column: str) -> npt.NDArray[Any]:  # noqa: ARG001
        tensors, raw = shard(where[key])
        tensor = tensors.get(f"{key}/{column.removeprefix('layer_')}")
        if tensor is None:
            raise StoreCorrupt(f"the shard {where[key]} has no {column} of entry {key}")
        start, stop = tensor["data_offsets"]
        found = raw[start:stop].view(NUMPY_TYPES[_TYPES[tensor["dtype"]]])
        return found.reshape(tensor["shape"])

    return rows


FORMAT = Format(
    "safetensors",
    "Shards with one tensor per entry and layer, in the stored types.",
    write,
    as_stored=True,
    read=read,
)
