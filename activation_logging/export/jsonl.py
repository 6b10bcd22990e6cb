"""The text beside the arrays: ``entries.jsonl``, for every format but Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from activation_logging.export.plan import Item, Plan
    from activation_logging.progress import Progress
    from activation_logging.store import Entry


def entries_with_text(
    plan: Plan, folder: Path, progress: Progress
) -> Iterator[tuple[int, Item, Entry]]:
    """Every entry with the number of its first row; each one's text is written on the way.

    A line of ``entries.jsonl`` is one entry, in the order of the rows: ``start`` is the number of
    its first row, ``rows`` how many it has.
    """
    start = 0
    with (folder / "entries.jsonl").open("w", encoding="ascii") as text:
        for item, entry in plan.entries(progress):
            record = {**plan.record(entry, item), "start": start}
            text.write(dumps(record) + "\n")
            yield start, item, entry
            start += item.num_rows
