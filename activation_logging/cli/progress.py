"""A progress bar for work that turns out to be long."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from activation_logging.cli.terminal import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_PATIENCE_S = 2.0


@contextmanager
def show_stages() -> Iterator[Callable[[str, int, int], None]]:
    """For work in stages: a function to call with what is done, how far, and how much there is.

    Once it has taken two seconds, the present stage has a bar on standard error.
    """
    shown = _bar()
    started = time.monotonic()
    stage = ""
    task = shown.add_task("")

    def report(what: str, done: int, total: int) -> None:
        nonlocal stage
        if what != stage:
            stage = what
            shown.reset(task, description=what, total=total, completed=done)
        else:
            shown.update(task, total=total, completed=done)
        if not shown.live.is_started and time.monotonic() - started > _PATIENCE_S:
            shown.start()

    try:
        yield report
    finally:
        shown.stop()


def show_progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield ``items``; once that has taken two seconds, show a bar on standard error."""
    shown = _bar()
    task = shown.add_task(what, total=total)
    started = time.monotonic()
    running = False
    try:
        for item in items:
            yield item
            shown.advance(task)
            if not running and time.monotonic() - started > _PATIENCE_S:
                shown.start()
                running = True
    finally:
        if running:
            shown.stop()


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=errors,
        transient=True,
    )
