"""What an export holds: which entries, layers and rows; found before a byte is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_vector
from activation_logging.dataset.positions import Place, Rows, find_rows
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.progress import Progress, track
from activation_logging.store.query import Filter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.store import Entry, Store


class Item(NamedTuple):
    """One entry of the export; ``rows`` is None where all of them go out."""

    key: str
    num_rows: int
    dtype: str
    rows: Rows | None


@dataclass(frozen=True)
class Plan:
    """The entries in order of writing, and what all of them share.

    ``dtype`` is numpy's name for the exported numbers: float16 where all were stored so, else
    float32, into which float16 and bfloat16 go without change.
    """

    store: Store
    items: Sequence[Item]
    layers: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtype: str
    position: str | int | None
    labels: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def total_rows(self) -> int:
        return sum(item.num_rows for item in self.items)

    def entries(self, progress: Progress) -> Iterator[tuple[Item, Entry]]:
        """Every entry with its place in the plan, one at a time."""
        for item in track(self.items, "exporting", len(self.items), progress):
            yield item, self.store[item.key]

    def array(self, entry: Entry, item: Item, layer: int) -> npt.NDArray[Any]:
        """One entry's exported rows of one layer, ``[num_rows, hidden]`` of :attr:`dtype`."""
        if item.rows is None:
            rows = entry.layer(layer)
        elif item.rows.pool == "one":
            rows = entry.rows(layer, item.rows.start, item.rows.stop)
        else:
            rows = read_vector(entry, layer, item.rows)[None]
        return np.ascontiguousarray(rows, dtype=self.dtype)

    def record(self, entry: Entry, item: Item) -> dict[str, Any]:
        """The text side of an entry, plain JSON."""
        positions = entry.positions
        return {
            "key": entry.key,
            "model": entry.model,
            "prompt": entry.prompt,
            "response": entry.response,
            "messages": entry.messages,
            "request_id": entry.request_id,
            "created": entry.created,
            "finish_reason": entry.finish_reason,
            "tags": entry.tags,
            "labels": {
                name: {"label": found.label, "score": found.score, "judge": found.judge}
                for name, found in entry.evaluations.items()
            },
            "prompt_token_ids": entry.prompt_token_ids,
            "response_token_ids": entry.response_token_ids,
            "response_tokens": entry.response_tokens,
            "logprobs": entry.logprobs,
            "first_position": int(positions[0 if item.rows is None else item.rows.start]),
            "rows": item.num_rows,
        }


def make_plan(
    store: Store,
    *,
    layers: Sequence[int | str] | None,
    position: str | int | None,
    label: str | None,
    model: str | None,
    tags: Mapping[str, str],
    progress: Progress,
) -> Plan:
    """Choose entries and check that they go together.

    Raises:
        DatasetError: nothing is left, or the entries are of several models or lack a layer.
    """
    wanted = Filter(model=model, tags=tags, evaluator=label)
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    models: Counter[str] = Counter()
    shapes: Counter[tuple[int, int]] = Counter()
    layer_sets: Counter[tuple[int, ...]] = Counter()
    names: set[str] = set()
    for entry in track(store.entries(), "looking for entries", len(store), progress):
        if reason := wanted.why_not(entry):
            left_out[reason] += 1
            continue
        try:
            items.append(_item(entry, position))
        except InputMissing as missing:
            left_out[str(missing)] += 1
            continue
        models[entry.model] += 1
        shapes[entry.num_layers, entry.hidden_size] += 1
        layer_sets[entry.layers] += 1
        names.update(entry.evaluations)
    if not items:
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DatasetError(f"{store.path} holds nothing to export{f' ({why})' if why else ''}")
    if len(models) > 1 or len(shapes) > 1:
        listing = ", ".join(f"{name}: {count}" for name, count in models.items())
        raise DatasetError(
            f"the entries are of several models ({listing}), whose rows differ in meaning; export "
            "one at a time (--model, --tag)"
        )
    ((num_layers, hidden_size),) = shapes
    return Plan(
        store=store,
        items=items,
        layers=_layers(layers, layer_sets, num_layers),
        num_layers=num_layers,
        hidden_size=hidden_size,
        dtype="float16" if all(_is_half(item) for item in items) else "float32",
        position=position,
        labels=tuple(sorted(names)),
        left_out=dict(left_out),
    )


def _is_half(item: Item) -> bool:
    return item.dtype == "float16" and (item.rows is None or item.rows.pool == "one")


def _item(entry: Entry, position: str | int | None) -> Item:
    """An entry as it is exported; InputMissing where it lacks the rows."""
    if entry.status != "complete":
        raise InputMissing(f"{entry.status}: no rows")
    count = len(entry.positions)
    if not count:
        raise InputMissing("that ended before a row was kept")
    if position is None:
        return Item(entry.key, count, entry.dtype, None)
    return Item(entry.key, 1, entry.dtype, find_rows(position, Place.of(entry)))


def _layers(
    wanted: Sequence[int | str] | None, layer_sets: Counter[tuple[int, ...]], num_layers: int
) -> tuple[int, ...]:
    common = set.intersection(*map(set, layer_sets))
    if wanted is None:
        if len(layer_sets) > 1:
            listing = "; ".join(f"{', '.join(map(str, s))}: {n}" for s, n in layer_sets.items())
            shared = ", ".join(map(str, sorted(common))) or "none"
            raise DatasetError(
                f"the entries have different layers ({listing}); name those to export (--layers); "
                f"all entries share {shared}"
            )
        return tuple(sorted(common))
    try:
        numbers = {num_layers if layer == "last" else int(layer) for layer in wanted}
    except ValueError:
        raise DatasetError(f"layers {', '.join(map(str, wanted))}: not numbers or 'last'") from None
    if missing := numbers - common:
        raise DatasetError(
            f"layer {min(missing)} is not there for every entry; the layers that all have are "
            f"{', '.join(map(str, sorted(common))) or 'none'}"
        )
    return tuple(sorted(numbers))
