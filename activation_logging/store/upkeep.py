"""What a writer does between its commits: it lets go of unused rows, and keeps below a ceiling.

**Unused rows.** When the last entry that refers to a segment is deleted or pruned, the segment may
still be wanted: vLLM may hold its prompt in its prefix cache, and the next request with this prompt
refers to the stored rows. Only the process that computed them knows. So its writer asks it to
forget the segment, and then removes it. :class:`Upkeep` does that within seconds.

**The ceiling.** A store with a largest size is like a disk of that size on which the oldest rows
without a label make room for new ones. Rows are removed before the file is full, in small
transactions of the writer's own thread, so no step waits for them. LMDB uses freed pages again two
commits later, and it needs consecutive ones for the rows of a segment. Therefore some room stays
free (:class:`Ceiling`), and LMDB's own limit keeps rows from making the file larger
(:meth:`.Environment.limit_to`). The entries stay, with their texts and scores. Where texts have
come to take more than half of the store, the oldest entries without rows and labels go whole. If
only labelled ones are left, new rows wait, or are dropped, as on a full disk.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb

from activation_logging.errors import StoreCorrupt, StoreError, StoreFull, StoreVersionError
from activation_logging.store import layout, schema
from activation_logging.store.index import Bounds, Index, term
from activation_logging.store.indexing import Totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.records import Status
    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.queued import GiveUp

logger = logging.getLogger(f"vllm.{__name__}")

SWEEP_S = 5.0
"""Longest time between two looks of an idle writer for unused rows, seconds."""
PER_COMMIT = 64
"""Entries that lose their rows in one transaction."""
_LOOK_AT = 4096
"""Entries that are looked at in one go, most of which may be labelled."""
_PATIENCE_S = 10.0
"""Time after which a store without unlabelled rows is searched again, seconds."""
_AFTER_ERROR_S = 60.0
_BYTES_PER_LOOK = 64 << 20
_PROBLEMS = (lmdb.Error, OSError, StoreError)
_TEXTS_GO = (
    "%s: texts take more than half of ACTIVATION_MAX_SIZE, so the oldest entries without rows and "
    "labels are deleted whole from now on; to have them stay, raise it, or label them"
)


class Ceiling(NamedTuple):
    """Sizes of a store with a largest size, bytes.

    Rows are removed where more than ``start`` would be in use. The file does not grow beyond
    ``rows`` for the sake of rows; the rest is for texts, labels, and the removal itself.
    """

    nbytes: int
    rows: int
    start: int

    @classmethod
    def of(cls, nbytes: int) -> Ceiling:
        rows = nbytes - min(nbytes // 16, 64 << 20)
        return cls(nbytes, rows, rows - min(nbytes // 8, 256 << 20))

    @property
    def commit_bytes(self) -> int:
        """Largest size of a commit. There is room for several before rows must be removed."""
        return (self.rows - self.start) // 4

    @property
    def largest(self) -> int:
        """Largest size of one request's rows."""
        return self.start // 2


class Walk:
    """A walk through the entries of some statuses, from the oldest on, again and again.

    Args:
        statuses: the statuses.
    """

    def __init__(self, *statuses: Status) -> None:
        self._terms = [term("status", status) for status in statuses]
        self.after: bytes | None = None
        """The place of the last entry that is done with."""
        self._resume_at = 0.0

    @property
    def rests(self) -> bool:
        """Whether a whole walk has just found nothing."""
        return time.monotonic() < self._resume_at

    def rest(self) -> None:
        """Note that a whole walk has found nothing."""
        self._resume_at = time.monotonic() + _PATIENCE_S

    def some(self, snapshot: Snapshot) -> list[tuple[bytes, str]]:
        """Places and keys of the next entries; none at the end, after which it begins anew."""
        bounds, index = Bounds.of(None, None), Index(snapshot)
        places = index.walk(
            [self._terms], bounds, after=self.after, reverse=False, limit=PER_COMMIT
        )
        if not places:
            self.after = None
        numbers = (layout.sequence_key(layout.sequence_of(place)) for place in places)
        keys = [snapshot.get(layout.LOG, number) or b"" for number in numbers]
        return [
            (place, bytes(key).decode("ascii", "replace"))
            for place, key in zip(places, keys, strict=True)
        ]


class Upkeep:
    """The upkeep of one store by one writer; used in the writer's thread.

    Args:
        environment: the store's.
        mutations: its changes.
        writer: the writer's id.
        ceiling: the largest size; None for none.

    Raises:
        StoreVersionError: there is a ceiling, and the store has no index.
    """

    def __init__(
        self,
        environment: Environment,
        mutations: Mutations,
        writer: str,
        ceiling: Ceiling | None,
    ) -> None:
        self._environment = environment
        self._mutations = mutations
        self._writer = writer
        self._ceiling = ceiling
        self._rows = Walk("complete", "failed")
        self._texts = Walk("unkept", "dropped")
        self._look_at = 0.0
        self.record: dict[str, Any] = {}
        """The writer's record as it was stored last; what is removed is counted in it at once."""
        self.gone = {"pruned": 0, "deleted": 0}
        """To stay below the ceiling: entries whose rows were removed, entries deleted whole."""
        self.patience_s = SWEEP_S
        """Longest time until the next look, seconds."""
        if ceiling is not None:
            check_index(environment, "ACTIVATION_MAX_SIZE")
            environment.limit_to(ceiling.rows)

    def look(self, give_up: GiveUp) -> None:
        """Between two commits: remove unused rows and, near the ceiling, some of the oldest.

        An error is logged, and the next look is a minute later.

        Args:
            give_up: makes whoever may refer to some of the writer's segments forget them, and
                returns those that nobody can refer to any more.
        """
        if time.monotonic() < self._look_at:
            return
        try:
            self._sweep(give_up)
            excess = self._excess()
            is_behind = excess > 0 and self._remove_oldest(min(excess, _BYTES_PER_LOOK))
            self.patience_s = 0.0 if is_behind else SWEEP_S
            if is_behind:
                self._sweep(give_up)
        except _PROBLEMS as error:
            self._put_off(error)

    def make_room(self, nbytes: int, give_up: GiveUp) -> bool:
        """Remove old rows, because ``nbytes`` do not fit below the ceiling; see :meth:`look`.

        Returns:
            False if nothing was removed: all that has rows is labelled, or was a moment ago, or a
            reader keeps LMDB from using what is free.
        """
        try:
            if self._late_reader() is not None and not self._excess():
                return False
            made = self._remove_oldest(2 * nbytes)
            self._sweep(give_up)
            # LMDB uses freed pages again two commits later.
            self._mutations.transact(self._touch)
        except _PROBLEMS as error:
            self._put_off(error)
            return False
        return made

    def _put_off(self, error: Exception) -> None:
        self._look_at = time.monotonic() + _AFTER_ERROR_S
        self.patience_s = SWEEP_S
        logger.error("cannot remove old rows from %s: %s", self._environment.path, error)

    def _touch(self, txn: Any) -> None:
        """A commit that changes nothing."""
        meta = self._environment.database(layout.META)
        txn.put(layout.FORMAT_KEY, bytes(txn.get(layout.FORMAT_KEY, db=meta)), db=meta)

    def _sweep(self, give_up: GiveUp) -> None:
        """Remove unused rows: this writer's own, and those of writers that are gone."""
        marked = [name for name, _ in self._unused(self._environment.snapshot())]
        if not marked:
            return
        prefix = bytes.fromhex(self._writer)
        own = give_up([name for name in marked if name.startswith(prefix)])
        others = [name for name in marked if not name.startswith(prefix)]

        def action(txn: Any) -> None:
            self._mutations.segments.delete_unused(txn, own)
            self._mutations.delete_unreferenced(txn, others)

        self._mutations.transact(action)

    def _excess(self) -> int:
        """How much is in use beyond the mark at which rows are removed."""
        if self._ceiling is None:
            return 0
        snapshot = self._environment.snapshot()
        waiting = sum(size for _, size in self._unused(snapshot))
        return max(snapshot.used_bytes - waiting - self._ceiling.start, 0)

    def _remove_oldest(self, nbytes: int) -> bool:
        """Remove the oldest unlabelled rows, ``nbytes`` or a little more. False if there are none.

        Where texts take more than half of the store, the oldest without rows go whole instead.
        """
        if self._ceiling is None:
            return False
        snapshot = self._environment.snapshot()
        if Index.of(snapshot) is None:
            return False
        totals = Totals.load(snapshot.get(layout.META, layout.TOTALS_KEY))
        texts = snapshot.used_bytes - totals.sizes.total()
        del snapshot
        if texts > self._ceiling.nbytes // 2:
            return self._remove_along(self._texts, nbytes) or self._remove_along(self._rows, nbytes)
        return self._remove_along(self._rows, nbytes)

    def _remove_along(self, walk: Walk, nbytes: int) -> bool:
        """Remove what a walk comes by until ``nbytes`` are free. False if it found nothing.

        Of many labelled entries, only some are passed over in each call.
        """
        if walk.rests:
            return False
        removed, whole = 0, walk.after is None
        for _ in range(_LOOK_AT // PER_COMMIT):
            found = walk.some(self._environment.snapshot())
            if found:
                removed += self._remove(walk, found, nbytes - removed)
            elif whole:
                if not removed:
                    walk.rest()
                break
            else:
                # A request that took long is older than some that ended before it.
                whole = True
            if removed >= nbytes:
                break
        return removed > 0

    def full(self) -> StoreFull:
        """The error to report if no room can be made."""
        path, reader = self._environment.path, self._late_reader()
        if reader is not None:
            return StoreFull(
                f"{path} has reached ACTIVATION_MAX_SIZE, and process {reader} still reads what "
                "has been removed; new rows wait until it ends"
            )
        return StoreFull(
            f"{path} has reached ACTIVATION_MAX_SIZE, and only what is labelled is left in "
            "it: raise it, or remove some with `activation-logging prune` or `delete`"
        )

    def _late_reader(self) -> int | None:
        """A process whose view of the store keeps LMDB from using pages that have been freed."""
        latest = self._environment.last_commit
        readers = self._environment.readers()
        return next((one.pid for one in readers if one.commit < latest - 1), None)

    def _remove(self, walk: Walk, found: Sequence[tuple[bytes, str]], nbytes: int) -> int:
        """Remove something of some entries until ``nbytes`` are free, in one transaction."""
        now = time.strftime("%Y-%m-%d", time.gmtime())
        name = "deleted" if walk is self._texts else "pruned"
        reason = f"its rows were removed on {now} to stay below ACTIVATION_MAX_SIZE"

        def action(txn: Any) -> tuple[int, dict[str, int], bytes]:
            free = entries = 0
            for place, key in found:  # noqa: B007 - the last one is returned
                # `verify` reports a damaged record; the next entries have rows, too.
                with suppress(StoreCorrupt):
                    if walk is self._texts:
                        size = self._mutations.discard(txn, key)
                    else:
                        size = self._mutations.unkeep(txn, key, reason, unless_labelled=True)
                    free += size or 0
                    entries += size is not None
                if free >= nbytes:
                    break
            gone = {**self.gone, name: self.gone[name] + entries}
            if entries:
                self._mutations.put_writer(txn, self._writer, {**self.record, **gone})
            return free, gone, place

        free, gone, walk.after = self._mutations.transact(action)
        if gone["deleted"] and not self.gone["deleted"]:
            logger.warning(_TEXTS_GO, self._environment.path)
        self.gone = gone
        return free

    @staticmethod
    def _unused(snapshot: Snapshot) -> list[tuple[bytes, int]]:
        """All unused segments that have not been removed yet, and their sizes in bytes."""
        start = len(layout.UNUSED)
        found = snapshot.starting_with(layout.META, layout.UNUSED)
        what = "the size of unused rows"
        return [(key[start:], schema.number(size, what)) for key, size in found]


def check_index(environment: Environment, what: str) -> None:
    """Refuse to look for the oldest rows of a store without an index, which knows no order.

    Args:
        environment: the store's.
        what: needs the index; the subject of the error's sentence.

    Raises:
        StoreVersionError: there is none.
    """
    if not environment.has_index:
        raise StoreVersionError(
            f"{environment.path} has no index, which {what} needs to find the oldest rows; "
            "`activation-logging upgrade PATH` makes one"
        )
