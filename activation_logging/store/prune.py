"""Removes old rows from a store, and leaves the entries: what is not kept any more.

A server may go on writing meanwhile. Each transaction removes the rows of some entries, so a broken
off run leaves a whole store, and the next one goes on.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.errors import EntryNotFound, SettingsError, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.store import layout, schema
from activation_logging.store.derived import SCORE
from activation_logging.store.mutations import slices_of
from activation_logging.store.query import select
from activation_logging.store.upkeep import check_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from activation_logging.keep import Keep
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.store import Store

_PER_COMMIT = 64
_PAGE = 4096
_PAGE_HEADER = 16
_WITH_ROWS = ("complete", "failed")


@dataclass
class Plan:
    """What a prune would do.

    ``keys`` are the entries chosen, from the oldest. ``kept`` counts the others that are old enough
    or in the way, by the term that keeps them. ``nbytes`` come free. ``used`` bytes are in use
    before. ``everything``: no rows would be left. ``unknown`` are probes of terms, of which nothing
    that was looked at has a score: a misspelt name keeps nothing.
    """

    keys: list[str] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    nbytes: int = 0
    used: int = 0
    everything: bool = False
    unknown: set[str] = field(default_factory=set)


def plan_prune(
    store: Store,
    *,
    before: float | None = None,
    max_size: int | None = None,
    keep: Keep | None = None,
    entries: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Choose entries, from the oldest, and change nothing.

    An entry is chosen if it was asked before the time, or if the store would still hold more than
    the size. Either is enough.

    Args:
        store: the store.
        before: seconds since the epoch; None for no such limit.
        max_size: bytes in use, which is what the file has after `compact`; None for no limit.
        keep: leave these alone.
        entries: choose entries to be deleted whole, those without rows too.
        progress: told after each entry that is looked at.

    Raises:
        SettingsError: there is no limit at all.
        StoreVersionError: the store is of version 1, and has to be upgraded first.
    """
    if before is None and max_size is None:
        raise SettingsError(
            "say what is to go: rows older than an age (--older-than 30d), or the oldest until the "
            "store has a size (--max-size 200GB), or both"
        )
    check_index(store.environment, "pruning")
    plan, sizes = Plan(used=store.snapshot().used_bytes), _Sizes()
    plan.unknown.update(() if keep is None else keep.probes)
    freed, left = 0, False
    for entry in track(_oldest_first(store, whole=entries), "looking", len(store), progress):
        try:
            if not _is_meant(entry, whole=entries):
                continue
            is_old = before is not None and entry.created < before
            if not (is_old or (max_size is not None and plan.used - freed > max_size)):
                # All that follow are younger.
                left = True
                break
            if plan.unknown:
                plan.unknown -= entry.score_digests.keys()
            if reason := None if keep is None else why_kept(entry, keep):
                plan.kept[reason] += 1
                continue
            snapshot = store.snapshot()
            rows = sizes.freed_with(snapshot, entry)
            freed += sum(map(_pages, rows))
            if entries:
                freed += _text_bytes(snapshot, entry)
        except (EntryNotFound, StoreCorrupt):
            # `verify` reports it. What is there cannot be told, so it stays.
            plan.kept["cannot be read"] += 1
            continue
        plan.keys.append(entry.key)
        plan.nbytes += sum(rows)
    plan.everything = bool(plan.keys) and not left and not plan.kept
    return plan


def prune(
    store: Store,
    keys: Sequence[str],
    reason: str,
    *,
    entries: bool = False,
    unless_labelled: bool = False,
    progress: Progress = silent,
) -> int:
    """Remove the rows of entries, some in each transaction, and return of how many.

    An entry that is gone or has no rows is passed over.

    Args:
        store: open for writing.
        keys: the entries' keys.
        reason: why, a sentence: :attr:`.Entry.status_reason` gives it.
        entries: delete the entries whole.
        unless_labelled: pass over what has got a label meanwhile.
        progress: told after each entry.

    Raises:
        StoreReadOnly: the store was opened for reading.
    """

    def one(change: Mutations, txn: Any, key: str) -> bool:
        if not entries:
            found = change.unkeep(txn, key, reason, unless_labelled=unless_labelled)
            return found is not None
        if unless_labelled and change.is_labelled(txn, key):
            return False
        with suppress(EntryNotFound):  # which is raised before anything is changed
            change.delete_entry(txn, key)
            return True
        return False

    def several(some: Sequence[str], change: Mutations, txn: Any) -> int:
        return sum(one(change, txn, key) for key in some)

    what = "deleting" if entries else "removing rows"
    left, removed = iter(track(keys, what, len(keys), progress)), 0
    while some := list(islice(left, _PER_COMMIT)):
        removed += store.transact(partial(several, some))
    return removed


def why_kept(entry: Entry, keep: Keep) -> str | None:
    """The first term that keeps an entry; None if there is none."""
    if keep.labelled and entry.evaluations:
        return "labelled"
    for name, value in sorted(keep.tags & set(entry.tags.items())):
        return f"tag:{name}={value}"
    if entry.finish_reason in keep.finish:
        return f"finish:{entry.finish_reason}"
    if keep.scores:
        answers = answer_scores(entry)
        for term in keep.scores:
            if keep.by_scores({term.name: answers.get(term.name, math.nan)}):
                return f"score:{term.name}>{term.above:g}"
    return None


def answer_scores(entry: Entry) -> dict[str, float]:
    """What each probe says of the whole answer.

    `activation-logging score` writes that down. Of other scores, the largest of the answer's rows
    counts; of those that there are for the prompt only, the prompt's.
    """
    found = {}
    headers = entry.derived_headers(SCORE)
    # Entries without rows have the scores of those that they would have.
    prompt = entry.num_tokens[0] - int((entry.capture_record() or {}).get("first", 0))
    for name, values in entry.scores.items():
        header = headers.get(SCORE + name)
        answer = None if header is None else header.details.get("answer")
        if isinstance(answer, (int, float)):
            found[name] = float(answer)
            continue
        for part in (values[max(prompt, 0) :], values):
            finite = part[np.isfinite(part)]
            if finite.size:
                found[name] = float(finite.max())
                break
    return found


class _Sizes:
    """The bytes of segments that nobody uses once the rows of some entries are removed."""

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}

    def freed_with(self, snapshot: Snapshot, entry: Entry) -> list[int]:
        """Remove the references of one more entry. Returns the sizes of what comes free with it."""
        record = entry.capture_record(snapshot)
        freed: list[int] = []
        for name in {part.segment for part in slices_of(record)} if record else ():
            if name not in self._uses:
                raw = snapshot.get(layout.SEGMENTS, name)
                what = f"the reference count of {name.hex()}"
                self._uses[name] = 1 if raw is None else schema.number(raw, what)
            self._uses[name] -= 1
            if self._uses[name] <= 0:
                del self._uses[name]
                rows = snapshot.starting_with(layout.ROWS, name)
                freed += [len(raw) for key, raw in rows if layout.rows_segment(key) == name]
        return freed


def _oldest_first(store: Store, *, whole: bool) -> Iterator[Entry]:
    """Entries that may have rows, or all, in order of arrival."""
    if whole:
        return select(store, newest_first=False)
    each = [select(store, status=status, newest_first=False) for status in _WITH_ROWS]
    return heapq.merge(*each, key=attrgetter("created"))


def _is_meant(entry: Entry, *, whole: bool) -> bool:
    """Whether there is something to remove: rows, or of whole entries any that waits for none."""
    if whole:
        return entry.status != "pending"
    record = entry.capture_record()
    return record is not None and bool(record["slices"])


def _text_bytes(snapshot: Snapshot, entry: Entry) -> int:
    raw = snapshot.get(layout.MAIN, entry.key.encode())
    arrays = sum(len(record) for _, _, record in entry.derived_records(snapshot))
    return (0 if raw is None else len(raw)) + arrays


def _pages(nbytes: int) -> int:
    """Bytes of the pages that a value takes: one of more than half a page has its own."""
    return -(-(nbytes + _PAGE_HEADER) // _PAGE) * _PAGE if nbytes > _PAGE // 2 else nbytes
