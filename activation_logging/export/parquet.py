"""Parquet: one line per entry, text and rows side by side."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.export.registry import Format, PartRows
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.plan import Plan
    from activation_logging.export.registry import RowsOf
    from activation_logging.progress import Progress

FILE_BYTES = 512 << 20
"""A file whose rows have reached this size, in bytes, is closed, and the next one begun."""

_ROW_GROUP_BYTES = 64 << 20


def write(plan: Plan, folder: Path, progress: Progress) -> None:
    """``data-<n>.parquet``, one line per entry, for ``datasets.load_dataset("parquet", ...)``.

    A column ``layer_<k>`` or ``heads@<k>`` is a list of rows, or one row where a position was
    chosen; tags and messages are JSON, every evaluator has a column ``label_<name>``, and
    ``spans_<name>`` if it has judged spans.
    """
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
            arrays = [_column(pa, field, [row[field.name] for row in batch]) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            written += size
            size = 0
            batch.clear()
        if writer is not None and written >= FILE_BYTES:
            writer.close()
            writer, written = None, 0

    for item, entry in plan.entries(progress):
        row = _parquet_row(plan, plan.record(entry, item))
        for column in plan.columns:
            row[column.name] = plan.array(entry, item, column.layer)
            size += row[column.name].nbytes
        batch.append(row)
        if size >= _ROW_GROUP_BYTES:
            flush()
    flush()
    if writer is not None:
        writer.close()


def _schema(pa: Any, plan: Plan) -> Any:
    number = pa.float16() if plan.dtype == "float16" else pa.float32()
    rows = {column.name: pa.list_(number, column.width) for column in plan.columns}
    ids = pa.list_(pa.int32())
    texts = ("label", "claim", "gold", "source")
    places = [("start", pa.int32()), ("end", pa.int32())]
    spans = pa.list_(pa.struct([*places, *((name, pa.string()) for name in texts)]))
    fields = [
        *((name, pa.string()) for name in ("key", "model", "prompt", "response", "messages")),
        ("request_id", pa.string()),
        ("created", pa.float64()),
        ("finish_reason", pa.string()),
        ("tags", pa.string()),
        *((f"label_{name}", pa.string()) for name in plan.labels),
        *((f"score_{name}", pa.float64()) for name in plan.labels),
        *((f"spans_{name}", spans) for name in plan.spans),
        ("prompt_token_ids", ids),
        ("response_token_ids", ids),
        ("response_tokens", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("first_position", pa.int64()),
        ("rows", pa.int64()),
        *((k, row if plan.position is not None else pa.list_(row)) for k, row in rows.items()),
    ]
    return pa.schema(fields)


def _column(pa: Any, field: Any, values: list[Any]) -> Any:
    if not isinstance(values[0], np.ndarray):
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
    for name in plan.spans:
        row[f"spans_{name}"] = labels.get(name, {}).get("spans")
    return {name: _valid(value) for name, value in row.items()}


def _valid(value: Any) -> Any:
    """Lone surrogates, which a model may be asked with, do not exist in Parquet's UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list) and value and isinstance(value[0], (str, dict)):
        return [_valid(part) for part in value]
    if isinstance(value, dict):
        return {name: _valid(part) for name, part in value.items()}
    return value


_HELD_GROUPS = 64
"""Columns of row groups that a reader keeps: the entries of a part are usually read in order."""


def read(part: PartRows) -> RowsOf:
    """The rows of entries, a column of a row group at a time."""
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(path) for path in sorted(part.below("data-"))]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    sizes = [file.metadata.row_group(group).num_rows for file, group in groups]
    firsts = np.cumsum([0, *sizes])

    @lru_cache(maxsize=_HELD_GROUPS)
    def group_of(number: int, column: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        file, group = groups[number]
        lists = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
        rows = lists.flatten()
        return rows.flatten().to_numpy().reshape(-1, rows.type.list_size), lists.offsets.to_numpy()

    def rows(number: int, key: str, column: str) -> npt.NDArray[Any]:  # noqa: ARG001
        group = int(np.searchsorted(firsts, number, "right")) - 1
        values, offsets = group_of(group, column)
        start, stop = offsets[number - firsts[group]], offsets[number - firsts[group] + 1]
        return values[start - offsets[0] : stop - offsets[0]]

    return rows


FORMAT = Format(
    "parquet",
    "One line per entry, for Hugging Face datasets and pandas.",
    write,
    ("pyarrow",),
    read=read,
)
