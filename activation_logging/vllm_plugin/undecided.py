"""Answers that have ended, and of which it is not known yet whether their rows are kept.

Two things decide late. What a probe says of an answer is known when the device has computed its
last state: the store's writer waits for that, and no step does. Why an answer ended is known to the
front end alone. Until then the rows stay where they are, and cost nothing. If vLLM gives one of
their blocks to another request before, they are copied and *held*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging.keep import Keep
    from activation_logging.records import Capture
    from activation_logging.vllm_plugin.arena import Moment
    from activation_logging.vllm_plugin.captures import Request

SCORE, FINISH = "score", "finish"
"""What may still decide: a probe, or the reason why the answer ended."""


@dataclass
class Verdict:
    """Whether the rows of a request are kept. ``pending`` is what may still decide for it."""

    kept: bool
    pending: set[str] = field(default_factory=set)

    @classmethod
    def at_first(cls, keep: Keep, *, kept: bool) -> Verdict:
        """What is known when a request arrives."""
        late = {SCORE: keep.scores, FINISH: keep.finish}
        return cls(kept, set() if kept else {what for what, terms in late.items() if terms})

    @property
    def is_final(self) -> bool:
        """Whether nothing can change it any more."""
        return self.kept or not self.pending

    def hear(self, what: str, *, keeps: bool) -> None:
        """Take what one of the pending ones says."""
        self.pending.discard(what)
        self.kept = self.kept or keeps


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
    """The answers whose verdict is not final, by name and by block."""

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
