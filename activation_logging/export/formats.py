"""One function per format: writes a plan into an empty folder.

The text side goes into ``entries.jsonl`` (Parquet has it in its own columns): one object a line,
in the order of the rows, with the number of rows of each entry.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.extras import require
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.plan import Item, Plan
    from activation_logging.progress import Progress
    from activation_logging.store import Entry

SHARD_BYTES = 512 << 20
"""Size from which on a new file is begun, bytes."""

_ROW_GROUP_BYTES = 64 << 20
_ZARR_CHUNK_BYTES = 4 << 20


def write_npy(plan: Plan, folder: Path, progress: Progress) -> None:
    """``layer_<k>.npy`` ``[all rows, hidden]``, for ``numpy.load(..., mmap_mode="r")``."""
    shape = (plan.total_rows, plan.hidden_size)
    arrays = {
        layer: np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            folder / f"layer_{layer}.npy", mode="w+", dtype=plan.dtype, shape=shape
        )
        for layer in plan.layers
    }
    for start, item, entry in _with_text(plan, folder, progress):
        for layer, array in arrays.items():
            array[start : start + item.num_rows] = plan.array(entry, item, layer)
    for array in arrays.values():
        array.flush()


def write_zarr(plan: Plan, folder: Path, progress: Progress) -> None:
    """A Zarr 3 group: ``layer_<k>`` ``[all rows, hidden]``, ``offsets`` ``[entries + 1]``.

    Raises:
        ExtraMissing: zarr is not installed (it needs Python 3.11).
    """
    require("export", "zarr")
    import zarr

    root = zarr.open_group(str(folder), mode="a")
    width = plan.hidden_size * np.dtype(plan.dtype).itemsize
    chunk = max(1, min(plan.total_rows, _ZARR_CHUNK_BYTES // width))
    arrays = {
        layer: root.create_array(
            f"layer_{layer}",
            shape=(plan.total_rows, plan.hidden_size),
            chunks=(chunk, plan.hidden_size),
            dtype=plan.dtype,
        )
        for layer in plan.layers
    }
    offsets = np.cumsum([0, *(item.num_rows for item in plan.items)], dtype=np.int64)
    root.create_array("offsets", data=offsets)
    root.attrs["layers"] = list(plan.layers)
    # A chunk is compressed whole: rows are gathered until one is full.
    waiting = _Gatherer(arrays, chunk)
    for _, item, entry in _with_text(plan, folder, progress):
        waiting.add({layer: plan.array(entry, item, layer) for layer in plan.layers})
    waiting.finish()


def write_safetensors(plan: Plan, folder: Path, progress: Progress) -> None:
    """``activations-<n>.safetensors`` with a tensor ``<key>/<layer>`` ``[rows, hidden]`` each.

    Tensors have the type that was stored, bfloat16 included. ``index.json`` says which file holds
    which key.
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

    for _, item, entry in _with_text(plan, folder, progress):
        for layer in plan.layers:
            kind, array = _as_stored(plan, entry, item, layer)
            # A copy: arrays into the store's map would keep it from growing.
            shard[f"{item.key}/{layer}"] = kind, array.copy()
            size += array.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    (folder / "index.json").write_text(dumps(where, indent=1), encoding="utf-8")


def write_parquet(plan: Plan, folder: Path, progress: Progress) -> None:
    """``data-<n>.parquet``, one line per entry, for ``datasets.load_dataset("parquet", ...)``.

    A column ``layer_<k>`` is a list of rows, or one row where a position was chosen; tags and
    messages are JSON, every evaluator has a column ``label_<name>``.

    Raises:
        ExtraMissing: pyarrow is not installed.
    """
    require("export", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(pa, plan)
    writer: Any = None
    batch: list[dict[str, Any]] = []
    size = written = number = 0

    def flush() -> None:
        nonlocal writer, size, written, number
        if batch:
            if writer is None:
                writer = pq.ParquetWriter(folder / f"data-{number:05d}.parquet", schema)
                number += 1
            columns = [_column(pa, field, [row[field.name] for row in batch]) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            written += size
            size = 0
            batch.clear()
        if writer is not None and written >= SHARD_BYTES:
            writer.close()
            writer, written = None, 0

    for item, entry in plan.entries(progress):
        row = _parquet_row(plan, plan.record(entry, item))
        for layer in plan.layers:
            row[f"layer_{layer}"] = plan.array(entry, item, layer)
            size += row[f"layer_{layer}"].nbytes
        batch.append(row)
        if size >= _ROW_GROUP_BYTES:
            flush()
    flush()
    if writer is not None:
        writer.close()


FORMATS: dict[str, Callable[[Plan, Path, Progress], None]] = {
    "parquet": write_parquet,
    "safetensors": write_safetensors,
    "npy": write_npy,
    "zarr": write_zarr,
}


def _with_text(plan: Plan, folder: Path, progress: Progress) -> Iterator[tuple[int, Item, Entry]]:
    """Every entry with the number of its first row, writing its text on the way."""
    start = 0
    with (folder / "entries.jsonl").open("w", encoding="ascii") as text:
        for item, entry in plan.entries(progress):
            record = {**plan.record(entry, item), "start": start}
            text.write(dumps(record) + "\n")
            yield start, item, entry
            start += item.num_rows


def _as_stored(plan: Plan, entry: Entry, item: Item, layer: int) -> tuple[str, npt.NDArray[Any]]:
    if item.rows is not None and item.rows.pool != "one":
        return "float32", plan.array(entry, item, layer).astype("<f4")
    rows = entry.stored(layer)
    return entry.dtype, rows if item.rows is None else rows[item.rows.start : item.rows.stop]


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


class _Gatherer:
    """Collects rows and writes whole chunks of an array."""

    def __init__(self, arrays: dict[int, Any], chunk: int) -> None:
        self.arrays, self.chunk = arrays, chunk
        self.parts: dict[int, list[npt.NDArray[Any]]] = {layer: [] for layer in arrays}
        self.waiting = self.at = 0

    def add(self, rows: dict[int, npt.NDArray[Any]]) -> None:
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


def _schema(pa: Any, plan: Plan) -> Any:
    number = pa.float16() if plan.dtype == "float16" else pa.float32()
    row = pa.list_(number, plan.hidden_size)
    ids = pa.list_(pa.int32())
    fields = [
        *((name, pa.string()) for name in ("key", "model", "prompt", "response", "messages")),
        ("request_id", pa.string()),
        ("created", pa.float64()),
        ("finish_reason", pa.string()),
        ("tags", pa.string()),
        *((f"label_{name}", pa.string()) for name in plan.labels),
        *((f"score_{name}", pa.float64()) for name in plan.labels),
        ("prompt_token_ids", ids),
        ("response_token_ids", ids),
        ("response_tokens", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("first_position", pa.int64()),
        ("rows", pa.int64()),
        *((f"layer_{k}", row if plan.position is not None else pa.list_(row)) for k in plan.layers),
    ]
    return pa.schema(fields)


def _column(pa: Any, field: Any, values: list[Any]) -> Any:
    if not field.name.startswith("layer_"):
        return pa.array(values, field.type)
    flat = pa.array(np.concatenate(values).reshape(-1))
    rows = pa.FixedSizeListArray.from_arrays(flat, values[0].shape[1])
    if pa.types.is_fixed_size_list(field.type):
        return rows.cast(field.type)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), rows).cast(field.type)


def _parquet_row(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    labels = record.pop("labels")
    row = {**record, "tags": dumps(record["tags"])}
    row["messages"] = None if record["messages"] is None else dumps(record["messages"])
    for name in plan.labels:
        row[f"label_{name}"] = labels.get(name, {}).get("label")
        row[f"score_{name}"] = labels.get(name, {}).get("score")
    return {name: _valid(value) for name, value in row.items()}


def _valid(value: Any) -> Any:
    """Lone surrogates, which a model may be asked with, do not exist in Parquet's UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [_valid(part) for part in value]
    return value
