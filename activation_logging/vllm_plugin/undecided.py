"""Answers that have ended, and of which it is not known yet whether their rows are kept.

Why an answer ended, and which of its tokens was the last, is known to the front end alone: the
worker may be a step ahead of a stop string. So the front end tells the worker, many at a time.
Until then the rows stay where they are, and cost nothing. If vLLM gives one of their blocks to
another request before, they are copied and *held*. What probes say of an answer is then found out
in the thread of the store's writer, which may wait for the device; no step does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging.records import Capture
    from activation_logging.vllm_plugin.arena import Moment
    from activation_logging.vllm_plugin.captures import Request


class Word(NamedTuple):
    """What the front end says of an answer that has ended.

    ``keeps``: whether the reason keeps its rows. ``states`` is the number of its states, from the
    one that the first token was predicted from.
    """

    keeps: bool
    states: int


@dataclass
class Ended:
    """An answer that has ended.

    Attributes:
        name: the request's id.
        request: the collector's record of it.
        written: when the device has written its rows.
        held: its capture with rows, once these were copied; of ``held_bytes``.
    """

    name: str
    request: Request
    written: Moment
    held: Capture | None = None
    held_bytes: int = 0


class Undecided:
    """The answers that are not decided, by name and by block."""

    def __init__(self) -> None:
        self._by_name: dict[str, Ended] = {}
        self._by_block: dict[int, dict[str, Ended]] = {}

    def add(self, ended: Ended) -> None:
        """Take an answer."""
        self._by_name[ended.name] = ended
        for block in ended.request.blocks if ended.held is None else ():
            self._by_block.setdefault(block, {})[ended.name] = ended

    def get(self, name: str) -> Ended | None:
        """The answer of a request; None if it is decided."""
        return self._by_name.get(name)

    def in_block(self, block: int) -> list[Ended]:
        """The answers whose rows lie in a block and were not copied."""
        return list(self._by_block.get(block, {}).values())

    def leave_blocks(self, ended: Ended) -> None:
        """Note that an answer's rows are no longer where they were computed."""
        for block in ended.request.blocks:
            names = self._by_block.get(block, {})
            names.pop(ended.name, None)
            if not names:
                self._by_block.pop(block, None)

    def remove(self, ended: Ended) -> None:
        """Note that an answer is decided, if it was among these."""
        if self._by_name.get(ended.name) is ended:
            del self._by_name[ended.name]
            self.leave_blocks(ended)

    def __iter__(self) -> Iterator[Ended]:
        return iter(list(self._by_name.values()))
