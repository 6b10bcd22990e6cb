"""The readers of a store, and those that have kept the same view of it for too long.

LMDB uses a freed page again only once no reader can see it. A reader that keeps its view, or was
killed while it read, therefore makes the file grow with every commit. This module frees the places
of dead readers, and warns of living ones by their process.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import lmdb

if TYPE_CHECKING:
    from activation_logging.store.engine.environment import Environment, Reader

logger = logging.getLogger(f"vllm.{__name__}")

LOOK_S = 60.0
"""Shortest time between two checks by a writer, seconds."""
PATIENCE_S = 600.0
"""Age of a read transaction at which the log has a warning, seconds."""


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

        This does nothing if the last check was less than ``every_s`` ago. Where LMDB refuses, the
        log says so: whoever writes must go on.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        try:
            self._check(now)
        except (lmdb.Error, OSError) as error:
            logger.warning("%s: its readers cannot be checked: %s", self._environment.path, error)

    def _check(self, now: float) -> None:
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
