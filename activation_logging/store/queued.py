"""What a writer's queue holds, and what a writer counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from activation_logging import memory
from activation_logging.records import Capture

DOCUMENT_BYTES = 2048
"""Size of a record without its rows, by and large."""

_QUEUE_BYTES = 512 << 20
"""The least that a queue holds, bytes."""
_QUEUE_SHARE = 32
"""A queue holds the 32nd part of the memory that is free at start, if that is more. Hundreds of
answers that end together take gigabytes at once, and the step after would wait for the disk."""

Document: TypeAlias = Mapping[str, Any]
GiveUp: TypeAlias = Callable[[Sequence[bytes]], Sequence[bytes]]
"""See :meth:`.StoreWriter.share`."""


class Later(NamedTuple):
    """A capture that is made in the writer's thread, of up to ``nbytes``; None if there is none."""

    make: Callable[[], Capture | None]
    nbytes: int


Item: TypeAlias = Callable[[], Document] | Capture | Later


@dataclasses.dataclass
class WriterStats:
    """Counters since the start of one writer. Every commit stores them beside the data.

    ``dropped`` counts requests whose rows were dropped; the store has the reason of each. ``lost``
    counts records that could not be written at all; the log has an error for each. ``errors``
    counts failed attempts. ``unkept`` counts requests whose rows were not to be kept.
    """

    entries: int = 0
    captures: int = 0
    rows: int = 0
    bytes: int = 0
    dropped: int = 0
    unkept: int = 0
    lost: int = 0
    commits: int = 0
    errors: int = 0
    queue_bytes_max: int = 0


def queue_limit() -> int:
    """How much a queue holds on this machine, bytes."""
    return max(_QUEUE_BYTES, (memory.available() or 0) // _QUEUE_SHARE)


def size_of(item: Item | Document) -> int:
    """Bytes of a record, by and large."""
    return DOCUMENT_BYTES + (item.nbytes if isinstance(item, Capture | Later) else 0)


def without_rows(capture: Capture, reason: str) -> Capture:
    """The capture of a request whose rows were dropped."""
    return dataclasses.replace(capture, segments=(), slices=(), dropped=reason)
