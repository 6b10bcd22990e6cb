"""The progress bar of every command."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from activation_logging.cli.terminal import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging import progress

_PATIENCE_S = 2.0


@contextmanager
def show_progress() -> Iterator[progress.Progress]:
    """What a long function reports to: a bar on standard error, once two seconds have passed.

    A new stage begins where the count starts again or its total changes. Without a total the bar
    only moves. The bar goes away at the end of the block.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = Progress(
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
        console=errors,
        transient=True,
    )
    started = time.monotonic()
    task = shown.add_task("", total=None)
    last_done, last_total = 0, 0

    def report(what: str, done: int, total: int) -> None:
        nonlocal task, last_done, last_total
        if done < last_done or total != last_total:
            shown.remove_task(task)
            task = shown.add_task(what, total=total or None, completed=done)
        last_done, last_total = done, total
        shown.update(task, description=what, completed=done)
        if not shown.live.is_started and time.monotonic() - started > _PATIENCE_S:
            shown.start()

    try:
        yield report
    finally:
        if shown.live.is_started:
            shown.stop()
