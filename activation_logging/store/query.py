"""Selection of entries by conditions, for the command line and the HTTP routes."""

from __future__ import annotations

import heapq
import re
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import EntryNotFound, SettingsError, StoreCorrupt
from activation_logging.records import LABELS, STATUSES
from activation_logging.store import layout
from activation_logging.store.index import Bounds, Index, term, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from activation_logging.store.entry import Entry
    from activation_logging.store.store import Store

_NAMED = 5
_CHUNK = 256
"""Entries looked up per transaction."""
_AGE = re.compile(r"(\d{1,9}(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class LabelFilter(NamedTuple):
    """A label by one evaluator or, with ``name=None``, by any."""

    name: str | None
    label: str

    @classmethod
    def parse(cls, text: str) -> LabelFilter:
        """Read ``LABEL`` or ``NAME=LABEL``.

        Raises:
            SettingsError: the label is not one of :data:`LABELS`.
        """
        name, equals, label = text.rpartition("=")
        if label not in LABELS:
            raise SettingsError(
                f"label: {label[:80]!r} is not one of {', '.join(LABELS)} "
                "(write LABEL, or NAME=LABEL for one evaluator)"
            )
        return cls(name if equals else None, label)

    def matches(self, entry: Entry) -> bool:
        """Whether the entry has this label."""
        return any(
            found.label == self.label and self.name in (None, name)
            for name, found in entry.evaluations.items()
        )

    def terms(self, index: Index) -> list[bytes]:
        """The index's terms for it. One of them must be true of the entry."""
        if self.name is not None:
            return [term("label", self.name, self.label)]
        return [key for key, _ in index.terms("label") if (words_of(key) or [])[1:] == [self.label]]


@dataclass(frozen=True)
class Filter:
    """Conditions on entries, all of which must hold; None is no condition.

    Args:
        model: the served name of the model, or the last part of it (after the last ``/``).
        status: one of :data:`STATUSES`.
        label: ``LABEL`` or ``NAME=LABEL``, see :class:`LabelFilter`.
        evaluator: an evaluator of this name has judged it.
        tags: every one of these tags must be there with this value.
        since: asked at this time or later, seconds since the epoch.
        until: asked before this time.

    Raises:
        SettingsError: a field has an invalid value.
    """

    model: str | None = None
    status: str | None = None
    label: str | None = None
    evaluator: str | None = None
    tags: Mapping[str, str] | None = None
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in STATUSES:
            raise SettingsError(f"status: {self.status[:80]!r} is not one of {', '.join(STATUSES)}")
        self._label  # noqa: B018 - refuses an invalid one at once

    @cached_property
    def _label(self) -> LabelFilter | None:
        return None if self.label is None else LabelFilter.parse(self.label)

    def matches(self, entry: Entry) -> bool:
        """Whether an entry is so."""
        return self.why_not(entry) is None

    def why_not(self, entry: Entry) -> str | None:
        """What keeps an entry out, to follow a count: ``of another model``. None if it matches."""
        if self.model is not None and not is_named(entry.model, self.model):
            return "of another model"
        if self.tags and not self.tags.items() <= entry.tags.items():
            return "with other tags"
        if self.since is not None and entry.created < self.since:
            return "asked earlier"
        if self.until is not None and entry.created >= self.until:
            return "asked later"
        if self.evaluator is not None and self.evaluator not in entry.evaluations:
            return f"without a label by {self.evaluator}"
        if self._label is not None and not self._label.matches(entry):
            return f"without the label {self.label}"
        if self.status is not None and entry.status != self.status:
            return f"that are not {self.status}"
        return None

    def terms(self, index: Index, waiting: Sequence[str] = ()) -> list[list[bytes]]:
        """The index's terms for it. One term of each group must be true of the entry.

        Entries that the index lists under a status of ``waiting`` may have any.
        """
        groups = [[term("tag", *pair)] for pair in (self.tags or {}).items()]
        if self.status is not None:
            groups.append([term("status", status) for status in (self.status, *waiting)])
        if self.model is not None:
            groups.append(self._model_terms(index, self.model))
        if self.evaluator is not None:
            groups.append([term("label", self.evaluator, label) for label in LABELS])
        if self._label is not None:
            groups.append(self._label.terms(index))
        return groups

    @staticmethod
    def _model_terms(index: Index, name: str) -> list[bytes]:
        exact = term("model", name)
        listed = ((key, words_of(key) or [None]) for key, _ in index.terms("model"))
        return [key for key, (model,) in listed if key == exact or is_named(model or "", name)]


def is_named(model: str, name: str) -> bool:
    """Whether ``name`` is a model's name, or the last part of it."""
    return name in (model, model.rpartition("/")[2])


def select(
    store: Store,
    *,
    model: str | None = None,
    status: str | None = None,
    label: str | None = None,
    evaluator: str | None = None,
    tags: Mapping[str, str] | None = None,
    since: float | None = None,
    until: float | None = None,
    among: Iterable[Entry] | None = None,
    newest_first: bool = True,
    limit: int | None = None,
    offset: int = 0,
) -> Iterator[Entry]:
    """The entries that meet all conditions, in order of the request's arrival.

    With the store's index, the time is proportional to ``offset`` plus the returned entries. A
    store of version 1 that has not been upgraded is searched entry by entry, in order of writing.

    Args:
        store: the store to search.
        model: see :class:`Filter`, as for the other conditions.
        status: one of :data:`STATUSES`.
        label: ``LABEL`` or ``NAME=LABEL``.
        evaluator: an evaluator of this name has judged it.
        tags: every one of these tags must be there with this value.
        since: asked at this time or later, seconds since the epoch.
        until: asked before this time.
        among: look at these only, in this order.
        newest_first: begin with the latest.
        limit: largest number of entries; None for all.
        offset: number of matching entries to skip first.

    Raises:
        SettingsError: a filter has an invalid value; raised at once, not while iterating.
    """
    for name, number in (("limit", limit), ("offset", offset)):
        if number is not None and number < 0:
            raise SettingsError(f"{name}: {number} is negative")
    wanted = Filter(model, status, label, evaluator, tags, since, until)
    end = None if limit is None else offset + limit
    if among is None and not store.is_indexed:
        among = store.entries(newest_first=newest_first)
    if among is not None:
        return islice(filter(wanted.matches, among), offset, end)
    waiting = () if status is None else store.waiting()
    places = _places(store, wanted, waiting, newest_first=newest_first, at_most=end)
    if waiting:
        # The index of one store does not know what another has of its entries.
        return islice((one for one in _at(store, places) if one.status == status), offset, end)
    return _at(store, islice(places, offset, end))


def readable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """All but those whose records are damaged, which ``verify`` names."""
    for entry in entries:
        try:
            entry.document, entry.status  # noqa: B018 - reads both of its records
        except StoreCorrupt:
            continue
        yield entry


def _at(store: Store, places: Iterable[bytes]) -> Iterator[Entry]:
    return (entry for place in places if (entry := store.at(place)) is not None)


def _places(
    store: Store,
    wanted: Filter,
    waiting: Sequence[str],
    *,
    newest_first: bool,
    at_most: int | None,
) -> Iterator[bytes]:
    """Places of matching entries, from the index of the store, or of each of several."""
    each = [
        _places_of(part, wanted, waiting, newest_first=newest_first, at_most=at_most)
        for part in store.parts
    ]
    if not store.is_many:
        return each[0]
    numbered = (map(partial(layout.part_place, part), one) for part, one in enumerate(each))
    return heapq.merge(*numbered, reverse=newest_first)


def _places_of(
    store: Store,
    wanted: Filter,
    waiting: Sequence[str],
    *,
    newest_first: bool,
    at_most: int | None,
) -> Iterator[bytes]:
    """Places of matching entries of one store. Each transaction reads one chunk."""
    chunk = min(_CHUNK, at_most or _CHUNK)
    after: bytes | None = None
    bounds = Bounds.of(wanted.since, wanted.until)
    while True:
        index = Index(store.snapshot())
        terms = wanted.terms(index, waiting)
        found = index.walk(terms, bounds, after=after, reverse=newest_first, limit=chunk)
        del index
        yield from found
        if len(found) < chunk:
            return
        after, chunk = found[-1], _CHUNK


def entries_of(store: Store, key: str) -> list[Entry]:
    """The entry that has this key or, of a key without ``#``, every answer to its prompt.

    A key without the name of a store stands for those of all.
    """
    keys = (one for one in store.keys_beginning(key) if _is_of(one, key))
    found = (entry for one in keys if (entry := store.get(one)) is not None)
    return sorted(found, key=lambda entry: entry.sequence)


def _is_of(found: str, key: str) -> bool:
    """Whether a key is the one that is asked for, which may lack the store and the number."""
    if ":" not in key:
        found = found.rpartition(":")[2]
    return found == key if "#" in key else found.partition("#")[0] == key


def parse_conditions(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``FIELD=VALUE`` texts as keyword arguments of :func:`select`.

    The fields are ``model``, ``status``, ``label`` (``label=NAME=LABEL`` for one evaluator)
    and ``tag`` (``tag=NAME=VALUE``, which may occur several times).

    Raises:
        SettingsError: a text is invalid, or a field occurs twice.
    """
    found: dict[str, Any] = {}
    tags: list[str] = []
    for text in texts:
        name, _, value = text.partition("=")
        if name == "tag" and "=" in value:
            tags.append(value)
        elif name in ("model", "status", "label") and value and name not in found:
            found[name] = value
        else:
            raise SettingsError(
                f"where: {text[:80]!r} is not model=..., status=..., label=[NAME=]LABEL or "
                "tag=NAME=VALUE, or occurs twice"
            )
    return {**found, "tags": parse_tags(tags)} if tags else found


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` texts; of a name that comes twice, the last counts.

    Raises:
        SettingsError: one has no equals sign.
    """
    tags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"tag: {pair[:80]!r} is not NAME=VALUE")
        tags[name] = value
    return tags


def parse_time(text: str | None) -> float | None:
    """Parse a date, a date with a time of day, or an age, as seconds since the epoch.

    Raises:
        SettingsError: the text is none of these.
    """
    if text is None:
        return None
    age = _AGE.fullmatch(text.strip())
    if age is not None:
        return time.time() - float(age[1]) * _SECONDS[age[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise SettingsError(
            f"time: {text[:80]!r} is neither a date such as 2026-05-31 or 2026-05-31T18:00, nor "
            "an age such as 2h or 7d"
        ) from None


def find(store: Store, text: str) -> list[Entry]:
    """The entries for a key, a request id, or a prefix of exactly one key.

    ``<prefix>#2`` is the third answer to the prompt whose hash has this prefix; ``<prefix>`` is the
    first.

    Raises:
        EntryNotFound: no entry matches, or several keys have the prefix; the message lists some.
    """
    if text in store:
        return [store[text]]
    choices = store.for_request(text)
    if choices:
        return choices
    start, mark, number = text.partition("#")
    similar = store.keys_beginning(start) if start else []
    # `ls` prints this form: a prefix of the hash, and the number of the answer to that prompt.
    keys = [key for key in similar if key.partition("#")[1:] == (mark, number)]
    if not mark:
        keys = keys or similar
    if len(keys) > 1:
        named = ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
        raise EntryNotFound(f"{len(keys)} entries begin with {text[:100]!r}: {named}")
    if not keys:
        if store.is_many and ":" in text:
            store[text]  # says so if there is no such store, or why it is left out
        raise EntryNotFound(
            f"no entry of {store.path} has the key, key prefix or request id {text[:100]!r}"
        )
    return [store[keys[0]]]
