"""Segments: runs of rows, and how many captures refer to each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from activation_logging.store import layout, schema
from activation_logging.store.engine.liveness import is_running

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.records import Segment, SegmentSlice
    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.indexing import Indexing


class Segments:
    """The segments of one store. Every method works in an open write transaction."""

    def __init__(self, environment: Environment, index: Indexing) -> None:
        self._db = environment.database
        self._index = index
        self._running: dict[str, bool] = {}

    def begin(self) -> None:
        """Begin a transaction, or begin it again after it failed."""
        # To look at a process costs more than to remove a segment.
        self._running = {}

    def put(self, txn: Any, segment: Segment) -> None:
        """Write the rows of a segment, which :meth:`add_use` then makes known."""
        sizes: Counter[int] = Counter()
        for code, block in segment.rows.items():
            key = layout.rows_key(segment.id, code)
            sizes[code] += block.nbytes - len(txn.get(key, b"", db=self._db(layout.ROWS)))
            txn.put(key, block.data, db=self._db(layout.ROWS))
        self._index.bytes_changed(sizes)

    def uses(self, txn: Any, segment: bytes) -> int | None:
        """How many captures refer to a segment; None if there is none of this id."""
        raw = txn.get(segment, db=self._db(layout.SEGMENTS))
        if raw is None:
            return None
        return schema.number(raw, f"the reference count of {segment.hex()}")

    def add_use(self, txn: Any, segment: bytes) -> None:
        """Count one more reference."""
        uses = self.uses(txn, segment)
        if uses == 0:
            txn.delete(layout.UNUSED + segment, db=self._db(layout.META))
        txn.put(segment, b"%d" % ((uses or 0) + 1), db=self._db(layout.SEGMENTS))

    def release(self, txn: Any, slices: Iterable[SegmentSlice]) -> int:
        """Count one reference less to each segment of a capture.

        One that nobody refers to any more is removed. If its writer runs, it is listed instead.

        Returns:
            Bytes of the segments that nobody refers to any more.
        """
        free = 0
        for name in dict.fromkeys(part.segment for part in slices):
            uses = (self.uses(txn, name) or 1) - 1
            if not (uses or self.may_be_shared(txn, name)):
                free += self.delete(txn, name)
                continue
            txn.put(name, b"%d" % uses, db=self._db(layout.SEGMENTS))
            if not uses:
                size = sum(size for _, size in self._rows_of(txn, name))
                txn.put(layout.UNUSED + name, b"%d" % size, db=self._db(layout.META))
                free += size
        return free

    def unused(self, txn: Any, writer: str) -> list[bytes]:
        """Those segments of a writer that no capture refers to any more."""
        prefix = layout.UNUSED + bytes.fromhex(writer)
        cursor = txn.cursor(self._db(layout.META))
        unused = []
        found = cursor.set_range(prefix)
        while found and (key := bytes(cursor.key())).startswith(prefix):
            unused.append(key[len(layout.UNUSED) :])
            found = cursor.next()
        return unused

    def delete_unused(self, txn: Any, segments: Iterable[bytes]) -> None:
        """Remove those of some segments that no capture refers to. None may do so any more."""
        for name in segments:
            if self.uses(txn, name) == 0:
                self.delete(txn, name)

    def delete(self, txn: Any, segment: bytes) -> int:
        """Remove a segment, and return the bytes of its rows."""
        txn.delete(segment, db=self._db(layout.SEGMENTS))
        txn.delete(layout.UNUSED + segment, db=self._db(layout.META))
        sizes: Counter[int] = Counter()
        for key, size in list(self._rows_of(txn, segment)):
            sizes[layout.rows_code(key)] -= size
            txn.delete(key, db=self._db(layout.ROWS))
        self._index.bytes_changed(sizes)
        return -sizes.total()

    def may_be_shared(self, txn: Any, segment: bytes) -> bool:
        """Whether a segment's writer is still running, so that vLLM may refer to it again."""
        writer = segment[: layout.WRITER_ID_BYTES].hex()
        if writer not in self._running:
            raw = txn.get(writer.encode(), db=self._db(layout.WRITERS))
            self._running[writer] = raw is not None and is_running(
                schema.writer(raw, f"writer {writer}")
            )
        return self._running[writer]

    def _rows_of(self, txn: Any, segment: bytes) -> Iterator[tuple[bytes, int]]:
        """Keys and sizes of the rows of all sites of a segment; no row is read."""
        cursor = txn.cursor(self._db(layout.ROWS))
        found = cursor.set_range(segment)
        while found and (key := bytes(cursor.key())).startswith(segment):
            # An id that begins like this one may be longer.
            if layout.rows_segment(key) == segment:
                yield key, len(cursor.value())
            found = cursor.next()
