"""How long work reports where it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
    del what, done, total


def track(items: Iterable[T], what: str, total: int, progress: Progress) -> Iterator[T]:
    """Yield ``items``, reporting before the first and after each."""
    progress(what, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        progress(what, done, total)
