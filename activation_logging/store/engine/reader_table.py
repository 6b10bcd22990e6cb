"""Watches LMDB's table of readers.

LMDB reuses a freed page only when no reader can see it any more. A read transaction that stays
open, or whose process was killed, therefore makes the file grow with every commit. The watch frees
the slots of dead readers, and logs a warning that names a process with a long-lived one.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from activation_logging.store.engine.environment import Environment

logger = logging.getLogger(__name__)

LOOK_S = 60.0
"""Shortest time between two checks by a writer, seconds."""
PATIENCE_S = 600.0
"""Age of a read transaction at which the log has a warning, seconds."""


class Reader(NamedTuple):
    """An open read transaction: its process, its thread, and the commit that it sees."""

    pid: int
    thread: str
    commit: int


class ReaderWatch:
    """Checks a store's readers from time to time. One thread uses it."""

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
        """Free the slots of dead readers, and warn once of each read transaction that is too old.

        This does nothing if the last check was less than ``every_s`` ago.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        dead = self._environment.free_dead_readers()
        if dead:
            logger.info("%s: freed the slots of %d dead readers", self._environment.path, dead)
        latest = self._environment.last_commit
        # A reader of the latest commit does not keep any page from being reused.
        late = [reader for reader in self._environment.readers() if reader.commit < latest]
        self._since = {reader: self._since.get(reader, now) for reader in late}
        self._warned &= self._since.keys()
        for reader in late:
            seconds = now - self._since[reader]
            if seconds >= self._patience_s and reader not in self._warned:
                self._warned.add(reader)
                logger.warning(
                    "process %d has kept a read transaction on %s open for %.0f s and %d commits: "
                    "until it ends, freed pages are not reused and the file grows",
                    *(reader.pid, self._environment.path, seconds, latest - reader.commit),
                )
