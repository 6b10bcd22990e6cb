"""What is to be known of several stores before their answers are counted together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from activation_logging.store.index import Bounds, Index

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.store.store import Store

_NAMED = 3
_AHEAD_S = 60.0
"""A clock that is so far ahead is named, seconds."""


def notes_on(stores: Mapping[str, Store]) -> list[str]:
    """A sentence for each thing: stores that hold the same, and clocks that are ahead."""
    return [*_copies(stores), *_clocks(stores)]


def _copies(stores: Mapping[str, Store]) -> list[str]:
    by_writer: dict[str, list[str]] = {}
    for name, store in stores.items():
        for writer in store.writers():
            by_writer.setdefault(writer, []).append(name)
    copies = {tuple(names) for names in by_writer.values() if len(names) > 1}
    return [
        f"{_listed(names)} hold what one writer has written: one is a copy of the other, or was "
        "merged from it, and the answers that both have count twice"
        for names in sorted(copies)
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return " and ".join(names[:_NAMED]) + more


def _clocks(stores: Mapping[str, Store]) -> list[str]:
    """Stores whose latest answer has not been asked for yet, by the clock of this machine."""
    bounds = Bounds.of(time.time() + _AHEAD_S, None)
    return [
        f"the clock of {name} is ahead, or was: it has answers that were asked later than now. The "
        "order of time is by the clock of each host"
        for name, store in stores.items()
        if (index := Index.of(store.snapshot()))
        and index.walk([], bounds, after=None, reverse=True, limit=1)
    ]
