"""Writing in the background, in groups: one synced commit for whatever has come together.

The queue is bounded in bytes. When it is full, because the disk is slow or has no room,
the policy decides: ``block`` lets the caller wait, ``drop`` keeps a note in place of the
rows, so that the entry says what happened.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import lmdb

from activation_logging.errors import StoreError
from activation_logging.records import Capture
from activation_logging.settings import FullPolicy
from activation_logging.store import environment
from activation_logging.store.mutations import Mutations

logger = logging.getLogger(__name__)

QUEUE_BYTES = 512 << 20
COMMIT_BYTES = 64 << 20
GATHER_S = 0.1
"""How long the writer waits for more to come before it commits, seconds."""

_RETRY_S = 1.0
_DOCUMENT_BYTES = 2048


@dataclasses.dataclass
class WriterStats:
    """Counters since the start of one writer; stored beside the data at every commit."""

    entries: int = 0
    captures: int = 0
    rows: int = 0
    bytes: int = 0
    dropped: int = 0
    commits: int = 0
    errors: int = 0
    queue_bytes_max: int = 0


class StoreWriter:
    """Puts entries and captures into a store from a thread of its own.

    Several writers, in several processes, may write one store. Use one per process and role.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        role: str,
        policy: FullPolicy = "block",
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._environment = environment.acquire(path, create=True)
        self._mutations = Mutations(self._environment)
        self._policy = policy
        self._limit = queue_bytes
        self.id = secrets.token_hex(8)
        self.stats = WriterStats()
        self._who = {
            "role": role,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        self._queue: deque[Mapping[str, Any] | Capture] = deque()
        self._queued = 0
        self._submitted = self._written = 0
        self._urgent = self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="activation-writer", daemon=True)
        self._thread.start()

    def put_entry(self, document: Mapping[str, Any]) -> None:
        """Queue an entry. Entries are never dropped: they are small, and say what was."""
        self._submit(document, _DOCUMENT_BYTES)

    def put_capture(self, capture: Capture) -> None:
        """Queue a request's rows; waits, or drops them, while the queue is full."""
        if self._policy == "drop" and self._queued + capture.nbytes > self._limit and self._queued:
            self.stats.dropped += 1
            capture = dataclasses.replace(
                capture, segments=(), slices=(), dropped="the write queue was full"
            )
        self._submit(capture, capture.nbytes + _DOCUMENT_BYTES)

    def flush(self, timeout: float | None = 60.0) -> None:
        """Return once everything submitted before this call is committed and synced.

        Raises:
            StoreError: it took longer than ``timeout`` seconds.
        """
        with self._wake:
            goal = self._submitted
            self._urgent = True
            self._wake.notify_all()
            if not self._wake.wait_for(lambda: self._written >= goal, timeout):
                raise StoreError(
                    f"{self._environment.path}: {goal - self._written} records could not be written "
                    f"within {timeout} s; is the disk full?"
                )

    def close(self, timeout: float = 60.0) -> None:
        """Write what is queued, note the farewell, and stop. A second call does nothing."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout)

    def _submit(self, item: Mapping[str, Any] | Capture, size: int) -> None:
        with self._wake:
            if self._closing:
                raise StoreError("this writer has been closed")
            if isinstance(item, Capture):
                self._wake.wait_for(lambda: not self._queued or self._queued + size <= self._limit)
            self._queue.append(item)
            self._queued += size
            self._submitted += 1
            self.stats.queue_bytes_max = max(self.stats.queue_bytes_max, self._queued)
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                self._wake.wait_for(
                    lambda: self._urgent or self._closing or self._queued >= COMMIT_BYTES, GATHER_S
                )
                batch, size = self._take()
            self._write(batch)
            with self._wake:
                self._queued -= size
                self._written += len(batch)
                self._urgent = self._urgent and bool(self._queue)
                self._wake.notify_all()
        self._say_goodbye()

    def _take(self) -> tuple[list[Mapping[str, Any] | Capture], int]:
        batch: list[Mapping[str, Any] | Capture] = []
        size = 0
        while self._queue and size < COMMIT_BYTES:
            item = self._queue.popleft()
            batch.append(item)
            size += _DOCUMENT_BYTES + (item.nbytes if isinstance(item, Capture) else 0)
        return batch, size

    def _write(self, batch: list[Mapping[str, Any] | Capture]) -> None:
        """Commit a batch; try again for as long as the disk refuses."""
        stats = dataclasses.replace(self.stats, commits=self.stats.commits + 1)
        for item in batch:
            if isinstance(item, Capture):
                stats.captures += 1
                stats.rows += item.num_rows
                stats.bytes += item.nbytes
            else:
                stats.entries += 1

        def action(txn: Any) -> None:
            for item in batch:
                if isinstance(item, Capture):
                    self._mutations.put_capture(txn, item)
                else:
                    self._mutations.put_entry(txn, item)
            self._mutations.put_writer(txn, self.id, {**self._who, **dataclasses.asdict(stats)})

        while True:
            try:
                self._environment.transact(action)
            except (lmdb.Error, OSError, StoreError) as error:
                self.stats.errors += 1
                stats.errors += 1
                logger.error(
                    "cannot write to %s: %s; trying again", self._environment.path, error
                )
                if self._closing:
                    logger.error("%d records were lost at shutdown", len(batch))
                    return
                time.sleep(_RETRY_S)
            else:
                stats.dropped, stats.queue_bytes_max = self.stats.dropped, self.stats.queue_bytes_max
                self.stats = stats
                return

    def _say_goodbye(self) -> None:
        record = {**self._who, **dataclasses.asdict(self.stats), "stopped": time.time()}
        try:
            self._environment.transact(lambda txn: self._mutations.put_writer(txn, self.id, record))
        except (lmdb.Error, OSError, StoreError) as error:
            logger.error("cannot write to %s: %s", self._environment.path, error)
