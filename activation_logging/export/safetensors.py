"""safetensors: shards of one tensor per entry and layer, in the stored types."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.export.jsonl import entries_with_text
from activation_logging.export.registry import Format
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.plan import Item, Plan
    from activation_logging.progress import Progress
    from activation_logging.store import Entry

SHARD_BYTES = 512 << 20
"""A shard that has reached this size, in bytes, is written, and the next one begun."""


def write(plan: Plan, folder: Path, progress: Progress) -> None:
    """``activations-<n>.safetensors`` with a tensor ``<key>/<layer>`` ``[rows, hidden]`` each.

    ``index.json`` says which file holds which key.
    """
    where: dict[str, str] = {}
    shard: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    size = number = 0

    def flush() -> None:
        nonlocal size, number
        if shard:
            name = f"activations-{number:05d}.safetensors"
            _write_shard(folder / name, shard)
            where.update((key.partition("/")[0], name) for key in shard)
            shard.clear()
            size, number = 0, number + 1

    for _, item, entry in entries_with_text(plan, folder, progress):
        for layer in plan.layers:
            kind, array = _as_stored(plan, entry, item, layer)
            shard[f"{item.key}/{layer}"] = kind, array
            size += array.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    (folder / "index.json").write_text(dumps(where, indent=1), encoding="utf-8")


def _as_stored(plan: Plan, entry: Entry, item: Item, layer: int) -> tuple[str, npt.NDArray[Any]]:
    if item.rows is not None and item.rows.pool != "one":
        return "float32", plan.array(entry, item, layer).astype("<f4")
    rows = entry.stored(layer)
    # A copy of the part: a view would keep the whole layer in memory until the shard is written.
    return entry.dtype, rows if item.rows is None else rows[item.rows.start : item.rows.stop].copy()


_SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _write_shard(path: Path, tensors: dict[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Write one safetensors file, by its specification.

    Written out here because numpy has no bfloat16, which ``safetensors.numpy`` would need, and
    because the library's raw interface changed between the releases that are supported. The
    format is 8 bytes of header length, a JSON header padded with spaces, and the bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "activation-logging"}}
    at = 0
    for name, (kind, array) in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[kind],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        at = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).data)


FORMAT = Format(
    "safetensors",
    "Shards with one tensor per entry and layer, in the stored types.",
    write,
    as_stored=True,
)
