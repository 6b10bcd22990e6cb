"""The index: lists of entries by model, status, tag, label, judge and label of a span.

A *term* is one fact about an entry. Its list holds the :func:`layout.place` of each entry that the
fact is true of, in order of time. The transaction that changes an entry also changes its lists.
Terms are readable: the kind, NUL, and a JSON array::

    time []                        every entry
    model ["org/model"]            the model as it was served
    status ["complete"]
    tag ["dataset", "trivia"]
    label ["refusal", "correct"]   an evaluator, and its label
    judge ["refusal", "rules"]     an evaluator, and its judge
    span ["facts", "supported"]    an evaluator, and the label of one of its spans

One more list, under :data:`CHANGED`, is of changes instead: whatever has followed a store, such as
the search index of the page, reads there what it has to look at again (:meth:`Index.changes`).

LMDB keeps the places of a term sorted and knows their number. Counting therefore needs no walk, and
a combination of terms needs a walk over the rarest one only.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import StoreCorrupt
from activation_logging.records import SPAN_LABELS
from activation_logging.store import layout, schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.store.engine.snapshot import Snapshot

_HASHED = b"#"
_OF_ONE_WORD = (b"model", b"status")


@lru_cache(maxsize=4096)
def term(kind: str, *words: str | None) -> bytes:
    """The key of a list. Words that are too long for LMDB are hashed."""
    written = _written(words)
    key = _prefix(kind) + written
    if len(key) <= layout.MAX_KEY:
        return key
    return _prefix(kind) + _HASHED + hashlib.sha256(written).hexdigest().encode()


def words_of(key: bytes) -> list[str | None] | None:
    """The words of a term, as many as its kind has; None if they were hashed.

    Raises:
        StoreCorrupt: the term is invalid.
    """
    kind, _, written = key.partition(b"\0")
    if written.startswith(_HASHED):
        return None
    try:
        words = json.loads(written.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        words = None
    count = 1 if kind in _OF_ONE_WORD else 2
    if not (isinstance(words, list) and len(words) == count and all(map(_is_word, words))):
        raise StoreCorrupt("the index has an invalid term")
    return words


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _prefix(kind: str) -> bytes:
    return kind.encode() + b"\0"


def _written(words: Sequence[str | None]) -> bytes:
    text = json.dumps(words, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


EVERY = term("time")
"""The list of all entries."""


CHANGED = term("changed")
"""The list of changes: an entry that was written, labelled, given an array, or deleted."""


def terms_of(document: Mapping[str, Any]) -> list[bytes]:
    """The terms of an entry that never change: time, model and tags."""
    tags = schema.tags(document.get("tags"))
    return [
        EVERY,
        term("model", document["model"]),
        *(term("tag", name, value) for name, value in tags.items()),
    ]


def terms_of_label(name: str, record: Mapping[str, Any]) -> list[bytes]:
    """The terms that one evaluator's label adds to an entry."""
    # This may be a label that is being replaced, which nobody has checked.
    words = {kind: record.get(kind) for kind in ("label", "judge")}
    found = [term(kind, name, word) for kind, word in words.items() if _is_word(word)]
    given = record.get("spans")
    spans = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    labels = (label for label in SPAN_LABELS if any(one.get("label") == label for one in spans))
    return found + [term("span", name, label) for label in labels]


class Bounds(NamedTuple):
    """A range of places in every list: ``low`` (inclusive) to ``high`` (exclusive)."""

    low: bytes
    high: bytes | None

    @classmethod
    def of(cls, since: float | None, until: float | None) -> Bounds:
        """From seconds since the epoch."""
        return cls(
            b"" if since is None else layout.place(since, 0),
            None if until is None else layout.place(until, 0),
        )


class Change(NamedTuple):
    """One change: its number, which only rises, and the sequence number of the changed entry.

    Numbers are microseconds since the epoch, or one more than the last one.
    """

    number: int
    sequence: int


FORGOTTEN = Change(0, 0)
"""Stands first in a list whose oldest changes were removed."""


class Index:
    """The lists of a store in one snapshot.

    Every method raises :class:`StoreCorrupt` if LMDB finds the file damaged.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @classmethod
    def of(cls, snapshot: Snapshot) -> Index | None:
        """The index of the store; None if there is none, or if it is incomplete."""
        if not snapshot.has_index:
            return None
        raw = snapshot.get(layout.META, layout.FORMAT_KEY)
        is_whole = raw is not None and layout.load(raw, "the format record").get("indexed")
        return cls(snapshot) if is_whole else None

    def terms(self, kind: str) -> list[tuple[bytes, int]]:
        """The terms of a kind, and the number of entries of each."""
        prefix = _prefix(kind)
        found = []
        with self._snapshot.reading():
            cursor = self._snapshot.cursor(layout.INDEX)
            is_there = cursor.set_range(prefix)
            while is_there and (key := bytes(cursor.key())).startswith(prefix):
                found.append((key, int(cursor.count())))
                is_there = cursor.next_nodup()
        return found

    def count(self, key: bytes) -> int:
        """Number of entries that a term is true of."""
        with self._snapshot.reading():
            cursor = self._snapshot.cursor(layout.INDEX)
            return int(cursor.count()) if cursor.set_key(key) else 0

    def changes(self, after: Change | None, limit: int) -> list[Change] | None:
        """The next changes in the order in which they were made, oldest first.

        An entry may occur several times, and may be gone.

        Args:
            after: the last change that is known; None for the first.
            limit: largest number of changes.

        Returns:
            None if ``after`` is not in the list, or changes since then were removed from it: this
            is another store, its index was rebuilt, or more has changed than a list holds.
        """
        with self._snapshot.reading():
            cursor = self._snapshot.cursor(layout.INDEX)
            if after is None:
                found = cursor.set_key(CHANGED)
                if found and layout.change_of(bytes(cursor.value())) == FORGOTTEN:
                    return None
            elif cursor.set_key_dup(CHANGED, layout.change(*after)):
                found = cursor.next_dup()
            else:
                return None
            listed = cursor.iternext_dup() if found else ()
            return [Change(*layout.change_of(bytes(raw))) for raw in islice(listed, limit)]

    def last_change(self) -> Change | None:
        """The latest change; None if there is none."""
        with self._snapshot.reading():
            cursor = self._snapshot.cursor(layout.INDEX)
            if not (cursor.set_key(CHANGED) and cursor.last_dup()):
                return None
            return Change(*layout.change_of(bytes(cursor.value())))

    def walk(
        self,
        groups: Sequence[Sequence[bytes]],
        bounds: Bounds,
        *,
        after: bytes | None,
        reverse: bool,
        limit: int,
    ) -> list[bytes]:
        """Places of the entries that match one term of every group, in order.

        Args:
            groups: groups of terms; without any, every entry matches.
            bounds: range of places.
            after: continue after this place, the last of the call before.
            reverse: from the latest to the earliest.
            limit: largest number of places.
        """
        by_size = sorted(groups or [(EVERY,)], key=lambda group: sum(map(self.count, group)))
        rarest, *others = by_size
        lists = [self._places(key, bounds, after, reverse=reverse) for key in rarest]
        merged = lists[0] if len(lists) == 1 else heapq.merge(*lists, reverse=reverse)
        cursor = self._snapshot.cursor(layout.INDEX)
        matching = (
            place
            for place in _without_repeats(merged)
            if all(any(cursor.set_key_dup(key, place) for key in group) for group in others)
        )
        with self._snapshot.reading():
            return list(islice(matching, limit))

    def _places(
        self, key: bytes, bounds: Bounds, after: bytes | None, *, reverse: bool
    ) -> Iterator[bytes]:
        """One term's list, within bounds and after ``after``."""
        cursor = self._snapshot.cursor(layout.INDEX)
        if reverse:
            end = after if after is not None else bounds.high
            if end is not None and cursor.set_range_dup(key, end):
                found = cursor.prev_dup()
            else:
                found = cursor.set_key(key) and cursor.last_dup()
        else:
            start = bounds.low if after is None else after
            found = cursor.set_range_dup(key, start) if start else cursor.set_key(key)
            if found and bytes(cursor.value()) == after:
                found = cursor.next_dup()
        while found:
            place = bytes(cursor.value())
            if place < bounds.low or (bounds.high is not None and place >= bounds.high):
                return
            yield place
            found = cursor.prev_dup() if reverse else cursor.next_dup()


def _without_repeats(places: Iterator[bytes]) -> Iterator[bytes]:
    last = None
    for place in places:
        if place != last:
            yield place
        last = place
