"""The readers of a store, and those that have kept the same view of it for too long.

LMDB uses a freed page again only once no reader can see it. A reader that keeps its view, or was
killed while it read, therefore makes the file grow with every commit. This module frees the places
of dead readers, and warns of living ones by their process.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from activation_logging.store.engine.environment import Environment

logger = logging.getLogger(f"vllm.{__name__}")

LOOK_S = 60.0
"""How often a writer looks, at most, seconds."""
PATIENCE_S = 600.0
"""How long a reader may keep one view before the log says so, seconds."""


class Reader(NamedTuple):
    """An open read transaction: the process it belongs to, and the commit that it sees."""

    pid: int
    thread: str
    commit: int


class ReaderWatch:
    """Looks at a store's readers every now and then; used by one thread."""

    def __init__(
        self, environment: Environment, *, every_s: float = LOOK_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._environment = environment
        self._every_s = every_s
        self._patience_s = patience_s
        self._next = 0.0
        self._since: dict[Reader, float] = {}
        self._warned: set[Reader] = set()

    def look(self) -> None:
        """Free the places of dead readers, and warn once of each view that is too old.

        Does nothing if it did so a moment ago.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        dead = self._environment.free_dead_readers()
        if dead:
            logger.info("%s: freed the places of %d dead readers", self._environment.path, dead)
        latest = self._environment.last_commit
        # Who sees the latest commit holds nothing back.
        late = [reader for reader in self._environment.readers() if reader.commit < latest]
        self._since = {reader: self._since.get(reader, now) for reader in late}
        self._warned &= self._since.keys()
        for reader in late:
            seconds = now - self._since[reader]
            if seconds >= self._patience_s and reader not in self._warned:
                self._warned.add(reader)
                logger.warning(
                    "process %d has kept its view of %s for %.0f s and %d commits: until it lets "
                    "go of it, no freed room is used again and the file grows",
                    *(reader.pid, self._environment.path, seconds, latest - reader.commit),
                )
