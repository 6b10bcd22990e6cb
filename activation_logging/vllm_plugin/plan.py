"""Which rows of a request are stored already, and which must be gathered.

The rows of a full block are stored once. Later captures refer to the stored rows, as long as vLLM
has not given the block to another request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.records import SegmentSlice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from activation_logging.sites import Site


class Stored(NamedTuple):
    """Where the rows of a full block are stored: the segment, and the first row in it."""

    segment: bytes
    row: int


class StoredBlocks:
    """Full blocks whose rows are stored, and where."""

    def __init__(self) -> None:
        self._places: dict[int, Stored] = {}
        self._blocks: dict[bytes, set[int]] = {}

    def get(self, block: int) -> Stored | None:
        """Where a block's rows are stored; None if they are not."""
        return self._places.get(block)

    def update(self, places: Mapping[int, Stored]) -> None:
        """Note where the rows of some blocks are stored."""
        for block, place in places.items():
            self.forget(block)
            self._places[block] = place
            self._blocks.setdefault(place.segment, set()).add(block)

    def forget(self, block: int) -> None:
        """Forget a block, which gets other rows."""
        place = self._places.pop(block, None)
        if place is not None:
            blocks = self._blocks[place.segment]
            blocks.discard(block)
            if not blocks:
                del self._blocks[place.segment]

    def forget_segments(self, segments: Iterable[bytes]) -> None:
        """Forget all blocks whose rows are stored in these segments."""
        for segment in segments:
            for block in self._blocks.pop(segment, ()):
                del self._places[block]

    def clear(self) -> None:
        """Forget all blocks."""
        self._places.clear()
        self._blocks.clear()


@dataclass
class Plan:
    """The rows of one request: stored rows to refer to, and fresh rows to gather.

    ``fresh`` holds the slots to gather into ``segment``, one array for each of ``blocks``.
    ``full_blocks`` are the gathered blocks that later requests may share.
    """

    sites: tuple[Site, ...]
    first: int
    segment: bytes
    slices: list[SegmentSlice] = field(default_factory=list)
    fresh: list[npt.NDArray[np.int64]] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_fresh: int = 0
    full_blocks: dict[int, Stored] = field(default_factory=dict)

    def fill(
        self, blocks: Sequence[int], end: int, block_size: int, stored: StoredBlocks | None
    ) -> None:
        """Take the rows of all positions from ``first`` on.

        Args:
            blocks: the request's block table.
            end: the position after the last.
            block_size: slots per block.
            stored: the blocks that are stored already; None if the request shares no rows.
        """
        position = self.first
        while position < end:
            number, offset = divmod(position, block_size)
            block = blocks[number]
            rows = min(block_size - offset, end - position)
            there = None if stored is None else stored.get(block)
            if there is not None:
                part = SegmentSlice(there.segment, there.row + offset, rows)
            else:
                part = SegmentSlice(self.segment, self.num_fresh, rows)
                if stored is not None and rows == block_size:
                    self.full_blocks[block] = Stored(self.segment, self.num_fresh)
                self.blocks.append(block)
                start = block * block_size + offset
                self.fresh.append(np.arange(start, start + rows, dtype=np.int64))
                self.num_fresh += rows
            self._append(part)
            position += rows

    def _append(self, part: SegmentSlice) -> None:
        """Append a slice, or extend the last one if the rows continue without a gap."""
        if self.slices:
            last = self.slices[-1]
            if last.segment == part.segment and last.start + last.rows == part.start:
                self.slices[-1] = last._replace(rows=last.rows + part.rows)
                return
        self.slices.append(part)
