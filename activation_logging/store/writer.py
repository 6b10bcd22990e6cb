"""The background writer. It commits records in groups, with one sync per commit.

The queue is limited in bytes. It fills up if the disk is slow or full. Then the policy decides:
``block`` makes the caller wait; ``drop`` stores the reason in place of the rows, so that the entry
says what happened.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import lmdb

from activation_logging.errors import RowsMissing, StoreCorrupt, StoreError, StoreFull
from activation_logging.locations import expanded
from activation_logging.records import NEVER_RAN, Capture
from activation_logging.store import layout, schema
from activation_logging.store.engine import environment
from activation_logging.store.engine.liveness import birth
from activation_logging.store.engine.reader_watch import ReaderWatch
from activation_logging.store.mutations import Mutations
from activation_logging.store.queued import (
    DOCUMENT_BYTES,
    Document,
    GiveUp,
    Item,
    Later,
    WriterStats,
    queue_limit,
    size_of,
    without_rows,
)
from activation_logging.store.upkeep import Ceiling, Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from activation_logging.settings import FullPolicy

logger = logging.getLogger(f"vllm.{__name__}")

COMMIT_BYTES = 64 << 20
GATHER_S = 0.1
"""How long the writer waits for more records before it commits, seconds."""

_RETRY_S = 1.0
_LOG_EVERY_S = 60.0
_TOO_LARGE = "which is too much for a store that ACTIVATION_MAX_SIZE keeps small"

# Errors of the record itself, for which a retry is useless, and errors that may pass.
_PERMANENT = (lmdb.BadValsizeError, StoreCorrupt, RowsMissing)
_TRANSIENT = (lmdb.Error, OSError, StoreError)


def live_records(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Current records of this process's writers to a store, by writer id.

    The store has the records of the last commit, which may be old if the disk is full.
    """
    resolved = expanded(path).resolve()
    return {w.id: w.record for w in list(_writers) if w.path == resolved}


class StoreWriter:
    """Writes entries and captures to a store in its own thread.

    Several writers, in several processes, may write to one store. Use one per process and role, and
    create it after any fork.

    Args:
        path: the store's folder; it is created if it does not exist.
        role: name of this writer in its record.
        policy: what to do if the queue is full.
        queue_bytes: limit of the queue, bytes; None for :func:`queue_limit`.
        cores: processor cores for the thread; None for those of the creating thread.
        ceiling: largest size of the store, bytes: the oldest rows without a label make room for new
            ones (:mod:`.upkeep`). None for none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        role: str,
        policy: FullPolicy = "block",
        queue_bytes: int | None = None,
        cores: Collection[int] | None = None,
        ceiling: int | None = None,
    ) -> None:
        self._cores = cores
        self._environment = environment.acquire(path, create=True)
        self._mutations = Mutations(self._environment)
        self._watch = ReaderWatch(self._environment)
        self._policy = policy
        self._limit = queue_limit() if queue_bytes is None else queue_bytes
        self._ceiling = None if ceiling is None else Ceiling.of(ceiling)
        self._commit_bytes = min(COMMIT_BYTES, self._limit // 2)
        if self._ceiling is not None:
            self._commit_bytes = min(self._commit_bytes, self._ceiling.commit_bytes)
        self.id = secrets.token_hex(layout.WRITER_ID_BYTES)
        self._upkeep = Upkeep(self._environment, self._mutations, self.id, self._ceiling)
        self.stats = WriterStats()
        self._identity = {
            "role": role,
            "pid": os.getpid(),
            "born": birth(os.getpid()),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        self._upkeep.record = self.record
        self._queue: deque[Item] = deque()
        # Captures that their threads wait to put into the queue.
        self._waiting: list[Capture | Later] = []
        self._writing: list[Document | Capture] = []
        self._forget: GiveUp | None = None
        self._queued = 0
        self._submitted = self._written = 0
        self._urgent = self._closing = False
        self._deadline = float("inf")
        self._last_logged = float("-inf")
        self._wake = threading.Condition()
        self.planning = self._wake
        """Held by whoever decides which stored rows a capture refers to, until it has been put."""
        self._thread = threading.Thread(target=self._run, name="activation-writer", daemon=True)
        self._thread.start()
        _writers.add(self)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._environment.path

    @property
    def record(self) -> dict[str, Any]:
        """This writer's record: identity and counters.

        Besides :class:`WriterStats`, it counts as ``pruned`` the entries whose rows were removed
        to stay below the ceiling, and as ``deleted`` those without rows that went whole.
        """
        return self._record(self.stats)

    def _record(self, stats: WriterStats) -> dict[str, Any]:
        return {**self._identity, **dataclasses.asdict(stats), **self._upkeep.gone}

    def share(self, give_up: GiveUp) -> None:
        """Name the one whose captures may refer to this writer's segments again.

        Without it, unused segments stay until the writer stops.

        Args:
            give_up: called with unused segments while :attr:`planning` is held: forget them, and
                return those that nothing which is still to be put refers to.
        """
        self._forget = give_up

    def put_entry(self, document: Document | Callable[[], Document]) -> None:
        """Queue an entry, or a function that builds it in the writer's thread.

        Entries are never dropped: they are small, and they say what happened to the rows.
        """
        self._submit(document if callable(document) else lambda: document, DOCUMENT_BYTES)

    def put_capture(self, capture: Capture) -> bool:
        """Queue a request's rows. If the queue is full, wait or drop them.

        Rows that are larger than the whole queue are accepted when it is empty.

        Returns:
            False if the rows were dropped. The store then gets the reason in their place.
        """
        if capture.dropped:
            self._drop(capture, capture.dropped)
            return False
        if capture.unkept:
            self._submit(capture, DOCUMENT_BYTES)
            return False
        return self._put(capture, capture)

    def put_later(self, bare: Capture, later: Later) -> bool:
        """Queue a request of which it is not known yet whether its rows are kept.

        Args:
            bare: its capture without rows, which is stored if they are dropped.
            later: makes the capture; or none, if that has been put otherwise.

        Returns:
            False if the rows were dropped, as for :meth:`put_capture`.
        """
        return self._put(bare, later)

    def _put(self, capture: Capture, item: Capture | Later) -> bool:
        size = size_of(item)

        def fits() -> bool:
            return not self._queued or self._queued + size <= self._limit

        if self._ceiling is not None and size > self._ceiling.largest:
            self._drop(capture, f"its rows have {item.nbytes} bytes, {_TOO_LARGE}")
            return False
        with self._wake:
            if self._policy == "block":
                self._waiting.append(item)
                self._wake.wait_for(lambda: fits() or self._closing)
                self._waiting.remove(item)
            elif not fits():
                self._drop(capture, "the write queue was full")
                return False
            self._submit(item, size)
            return True

    def flush(self, timeout: float | None = 60.0) -> None:
        """Wait until all records submitted before this call are committed and synced.

        Raises:
            StoreError: that took longer than ``timeout`` seconds.
        """
        with self._wake:
            goal = self._submitted
            self._urgent = True
            self._wake.notify_all()
            if not self._wake.wait_for(lambda: self._written >= goal, timeout):
                raise StoreError(
                    f"{self._environment.path}: {goal - self._written} records could not be "
                    f"written within {timeout} s; is the disk full?"
                )

    def close(self, timeout: float = 60.0) -> None:
        """Write the queue, record the clean shutdown, and stop. A second call does nothing.

        Records that the disk still refuses after ``timeout`` seconds are lost. The log says how
        many.
        """
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._deadline = time.monotonic() + timeout
            self._wake.notify_all()
        self._thread.join(timeout + _RETRY_S)
        _writers.discard(self)
        self._forget = None
        if self._thread.is_alive():
            logger.error(
                "%d records for %s were not written within %g s of shutdown",
                self._submitted - self._written,
                self._environment.path,
                timeout,
            )

    def _drop(self, capture: Capture, reason: str) -> None:
        with self._wake:
            self.stats.dropped += reason != NEVER_RAN and capture.rows_in is None
            self._submit(without_rows(capture, reason), DOCUMENT_BYTES)

    def _submit(self, item: Item, size: int) -> None:
        with self._wake:
            if self._closing:
                raise StoreError("this writer has been closed")
            if self._environment.inherited:
                raise StoreError("this writer belongs to the process that forked this one")
            self._queue.append(item)
            self._queued += size
            self._submitted += 1
            self.stats.queue_bytes_max = max(self.stats.queue_bytes_max, self._queued)
            self._wake.notify_all()

    def _run(self) -> None:
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing, self._upkeep.patience_s)
                if self._queue:
                    self._wake.wait_for(self._has_reason_to_commit, GATHER_S)
                elif self._closing:
                    break
                items, size = self._take()
            if items:
                self._writing = self._build(items)
                self._write(self._writing)
                self._writing = []
            with self._wake:
                self._queued -= size
                self._written += len(items)
                self._urgent = self._urgent and bool(self._queue)
                self._wake.notify_all()
            del items
            self._watch.look()
            self._upkeep.look(self._give_up)
        self._record_shutdown()

    def _give_up(self, segments: Sequence[bytes]) -> Sequence[bytes]:
        """Those of some unused segments that nobody can refer to any more."""
        with self._wake:
            on_their_way = [*self._writing, *self._queue, *self._waiting]
            wanted = {
                part.segment
                for item in on_their_way
                if isinstance(item, Capture)
                for part in item.slices
            }
            free = [name for name in segments if name not in wanted]
            forget = self._forget
            return () if forget is None else forget(free)

    def _has_reason_to_commit(self) -> bool:
        return self._urgent or self._closing or self._queued >= self._commit_bytes

    def _take(self) -> tuple[list[Item], int]:
        items: list[Item] = []
        size = 0
        while self._queue and (not items or size < self._commit_bytes):
            item = self._queue.popleft()
            items.append(item)
            size += size_of(item)
        return items, size

    def _build(self, items: Sequence[Item]) -> list[Document | Capture]:
        built: list[Document | Capture] = []
        for item in items:
            try:
                if isinstance(item, Later):
                    built += filter(None, [item.make()])
                else:
                    built.append(item if isinstance(item, Capture) else schema.document(item()))
            except Exception:  # noqa: PERF203 - one failure must not lose the other entries
                self._lose(1)
                logger.exception("a record could not be built and is lost")
        return built

    def _write(self, batch: Sequence[Document | Capture]) -> None:
        """Commit a batch, and retry while the disk refuses.

        A record that cannot be stored is lost alone, with an error in the log.
        """
        while batch:
            try:
                self._commit(batch)
            except _PERMANENT as error:
                self._write_one_by_one(batch, error)
            except StoreFull:
                nbytes = sum(map(size_of, batch))
                made = self._upkeep.make_room(nbytes, self._give_up)
                if made or self._waits_after(self._upkeep.full()):
                    continue
                self._lose(len(batch))
                logger.error("%d records were lost at shutdown", len(batch))  # noqa: TRY400
            except _TRANSIENT as error:
                if self._waits_after(error):
                    continue
                self._lose(len(batch))
                logger.error("%d records were lost at shutdown", len(batch))  # noqa: TRY400
            except Exception as error:  # noqa: BLE001 - a bad record must not stop the writer
                self._write_one_by_one(batch, error)
            return

    def _write_one_by_one(self, batch: Sequence[Document | Capture], error: Exception) -> None:
        if len(batch) > 1:
            for item in batch:
                self._write([item])
            return
        if isinstance(error, RowsMissing) and isinstance(batch[0], Capture):
            bare = without_rows(batch[0], str(error))
            # Scores come from where the rows do, and may be missing, too.
            self._write([bare if batch[0].segments else dataclasses.replace(bare, scores={})])
            with self._wake:
                self.stats.dropped += 1
            return
        self._lose(1)
        kind = "capture" if isinstance(batch[0], Capture) else "entry"
        logger.error("a record (%s) cannot be stored and is lost", kind, exc_info=error)

    def _commit(self, batch: Sequence[Document | Capture]) -> None:
        stats = dataclasses.replace(self.stats, commits=self.stats.commits + 1)
        for item in batch:
            if isinstance(item, Capture):
                stats.captures += item.rows_in is None  # others are counted where they are
                stats.rows += item.num_rows
                stats.bytes += item.nbytes
                stats.unkept += item.unkept is not None
            else:
                stats.entries += 1

        has_rows = any(isinstance(item, Capture) and item.segments for item in batch)

        def action(txn: Any) -> None:
            for item in batch:
                if isinstance(item, Capture):
                    self._mutations.put_capture(txn, item, writer=self.id)
                else:
                    self._mutations.put_entry(txn, {**item, "writer": self.id})
            self._mutations.put_writer(txn, self.id, self._record(stats))

        self._mutations.transact(action, within_limit=has_rows)
        with self._wake:
            # Other threads count these two meanwhile.
            stats.dropped = self.stats.dropped
            stats.queue_bytes_max = self.stats.queue_bytes_max
            self.stats = stats
        self._upkeep.record = self.record

    def _waits_after(self, error: Exception) -> bool:
        """Count and log a failed attempt. Returns False if no time is left for another."""
        with self._wake:
            self.stats.errors += 1
            now = time.monotonic()
            if now - self._last_logged >= _LOG_EVERY_S:
                self._last_logged = now
                logger.error("cannot write to %s: %s; trying again", self._environment.path, error)
            if self._closing and now >= self._deadline:
                return False
        time.sleep(_RETRY_S)
        return True

    def _lose(self, count: int) -> None:
        with self._wake:
            self.stats.errors += 1
            self.stats.lost += count

    def _record_shutdown(self) -> None:
        record = {**self.record, "stopped": time.time()}

        def action(txn: Any) -> None:
            self._mutations.put_writer(txn, self.id, record)
            segments = self._mutations.segments
            segments.delete_unused(txn, segments.unused(txn, self.id))

        try:
            self._mutations.transact(action)
        except _TRANSIENT as error:
            logger.error("cannot write to %s: %s", self._environment.path, error)  # noqa: TRY400


_writers: weakref.WeakSet[StoreWriter] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_writers.clear)
