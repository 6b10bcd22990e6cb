"""Several stores that are read and labelled as one.

Nothing is copied. Each store stays what it is, with its own server, lock and index. What is asked
of all of them is asked of each, and put together in order of time.

An entry and its rows may lie in two stores (:mod:`.joins`). They are joined whenever they are read.
"""

from __future__ import annotations

import heapq
import logging
import os
from contextlib import nullcontext, suppress
from functools import lru_cache, partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from activation_logging.errors import (
    AmbiguousKey,
    EntryNotFound,
    StoreError,
    StoreReadOnly,
)
from activation_logging.store import layout
from activation_logging.store.index import Index, term
from activation_logging.store.joins import Rows, find_rows, has_entry
from activation_logging.store.many_rows import ManyRowReader
from activation_logging.store.member import Member
from activation_logging.store.notes import notes_on
from activation_logging.store.query import select
from activation_logging.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.entry import Entry
    from activation_logging.store.mutations import Mutations
    from activation_logging.store.places import Places, Where

logger = logging.getLogger(f"vllm.{__name__}")
W = TypeVar("W", bound="tuple[Any, ...]")

_PER_LOOK = 1000
_WAITING = ("pending", "dropped", "elsewhere")
"""An entry that its store lists so may have rows in another store."""


class ManyStores(Store):
    """Several stores as one, which has every method of a :class:`Store`.

    A key is the name of a store (:attr:`names`), a colon, and the key there. The key alone is
    enough where one store has it, and :class:`AmbiguousKey` says so where several do. Iteration is
    in order of the stores, :meth:`entries` in order of time: the requests' arrival, by the clock of
    the host that took them. Labels, arrays and deletions go where the entry lies.

    A store that is missing or cannot be opened is named in the log and in :attr:`problems`, and the
    others are served. A store that is added to the folder later is seen when it is opened again.
    """

    is_many = True

    def __init__(self, places: Places, *, writable: bool = False) -> None:
        self._open_all(places, writable=writable)
        for name, reason in self.problems.items():
            _warn(f"{name} is left out of {self.path}: {reason}")
        for note in self.notes():
            _warn(f"{self.path}: {note}")

    def _open_all(self, places: Places, *, writable: bool) -> None:
        self.path = places.title
        self.writable = writable
        self._places = places
        self._environment = None
        problems: dict[str, str] = {}
        opened: dict[str, Store] = {}
        first: StoreError | None = None
        for name, folder in zip(places.names, places.folders, strict=True):
            found = _try_open(folder, writable=writable)
            if isinstance(found, Store):
                opened[name] = found
            else:
                problems[name] = str(found)
                first = first or found
        if first is not None and not opened:
            raise first
        self.problems = problems
        self._names = tuple(opened)
        self._parts = tuple(opened.values())
        self._numbers = {name: number for number, name in enumerate(opened)}
        self._partner: dict[int, int] = {}
        self._pid, self._many_rows = os.getpid(), ManyRowReader(self)

    @property
    def parts(self) -> tuple[Store, ...]:
        """The stores, in order."""
        return self._parts

    @property
    def names(self) -> tuple[str, ...]:
        """Their names: what tells their paths apart, such as ``host-1`` or ``a.lmdb``."""
        return self._names

    @property
    def where(self) -> Where:
        """What :func:`.open_store` takes to open them again."""
        return self._places.folders

    @property
    def is_indexed(self) -> bool:
        """Whether the indexes of all stores list all of their entries."""
        return all(part.is_indexed for part in self._parts)

    @property
    def replaced(self) -> bool:
        """Whether one of the paths leads to another store by now, or to none."""
        return any(part.replaced for part in self._parts)

    def close(self) -> None:
        """Close all stores. Arrays read from them stay valid."""
        for part in self._parts:
            part.close()

    def __getstate__(self) -> Any:
        for part in self._parts:
            part.__getstate__()  # which refuses where it has been closed
        return self._places, self.writable

    def __setstate__(self, state: Any) -> None:
        places, writable = state
        self._open_all(places, writable=writable)

    def notes(self) -> list[str]:
        """What is to be known of the stores before their answers are counted, a sentence each."""
        return notes_on(dict(zip(self.names, self._parts, strict=True)))

    # --- reading ---------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str]:
        for name, part in zip(self.names, self._parts, strict=True):
            for key in part:
                yield f"{name}:{key}"

    def __getitem__(self, key: str) -> Entry:
        return self._member(key)

    def _member(self, key: str) -> Member:
        number, own = self.place_of(key)
        return self.member(number, own, self._parts[number].snapshot())

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        name, colon, own = key.rpartition(":")
        if colon:
            return name in self._numbers and own in self._parts[self._numbers[name]]
        return any(key in part for part in self._parts)

    def place_of(self, key: str) -> tuple[int, str]:
        """The number of the store that a key is in, and the key there.

        Raises:
            EntryNotFound: there is no such store, or no store has the key.
            AmbiguousKey: the key names no store, and several have it.
        """
        name, colon, own = str(key).rpartition(":")
        if colon:
            return self._number_of(name), own
        found = [number for number, part in enumerate(self._parts) if key in part]
        if not found:
            raise EntryNotFound(f"there is no entry {str(key)[:100]!r} in {self.path}")
        if len(found) > 1:
            named = ", ".join(f"{self.names[number]}:{key}" for number in found)
            raise AmbiguousKey(
                f"{len(found)} stores have answers to this prompt; say which is meant: {named}"
            )
        return found[0], own

    def _number_of(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is not None:
            return number
        if name in self.problems:
            raise EntryNotFound(f"the store {name} is left out: {self.problems[name]}")
        raise EntryNotFound(
            f"{self.path} has no store {name[:100]!r}; it has {', '.join(self.names)}"
        )

    def member(self, number: int, key: str, snapshot: Snapshot) -> Member:
        """The entry of a key in the store with this number, as a view of that store shows it.

        Raises:
            EntryNotFound: no entry has that key.
        """
        raw = layout.entry_key(key)
        value = None if raw is None else snapshot.get(layout.MAIN, raw)
        if value is None:
            path = self._parts[number].path
            raise EntryNotFound(f"there is no entry {key[:100]!r} in {path}")
        return Member(self, number, key, value)

    def _members(self, number: int, entries: Iterable[Entry]) -> Iterator[Member]:
        for entry in entries:
            yield Member(self, number, entry.stored_key, entry.raw)

    def entries(self, *, newest_first: bool = False) -> Iterator[Entry]:
        """Every entry in order of time; of stores without an index, about so.

        Entries of the same time are in the order of their stores.
        """
        if self.is_indexed:
            return select(self, newest_first=newest_first)
        each = [
            self._members(number, part.entries(newest_first=newest_first))
            for number, part in enumerate(self._parts)
        ]
        return heapq.merge(*each, key=attrgetter("created"), reverse=newest_first)

    def at(self, place: bytes, snapshot: Snapshot | None = None) -> Entry | None:
        """The entry at a :func:`.layout.part_place`; None if it has been deleted since."""
        del snapshot  # of which store would it be?
        number, sequence = layout.part_of(layout.sequence_of(place))
        if number >= len(self._parts):
            return None
        seen = self._parts[number].snapshot()
        key = seen.get(layout.LOG, layout.sequence_key(sequence))
        if key is not None:
            with suppress(EntryNotFound):
                return self.member(number, bytes(key).decode("ascii", "replace"), seen)
        return None

    def keys_beginning(self, start: str) -> list[str]:
        """The keys that begin with this text, in the stores or with a store's name."""
        name, colon, own = start.rpartition(":")
        if colon and name not in self._numbers:
            return []
        chosen = [self._numbers[name]] if colon else range(len(self._parts))
        return [
            f"{self.names[number]}:{key}"
            for number in chosen
            for key in self._parts[number].keys_beginning(own)
        ]

    def for_prompt(self, prompt: str) -> list[Entry]:
        """All answers to exactly this text, oldest first."""
        found = [
            member
            for number, part in enumerate(self._parts)
            for member in self._members(number, part.for_prompt(prompt))
        ]
        return sorted(found, key=attrgetter("created"))

    def for_request(self, request_id: str) -> list[Entry]:
        """The entries of one request, one per choice, in the order of the answer's choices."""
        found = [
            member
            for number, part in enumerate(self._parts)
            for member in self._members(number, part.for_request(request_id))
        ]
        return sorted(found, key=lambda entry: (entry.choice or 0, entry.sequence))

    def writers(self) -> dict[str, dict[str, Any]]:
        """The records of all writers by id; of a copied one, that with the most commits."""
        found: dict[str, dict[str, Any]] = {}
        for part in self._parts:
            for writer, record in part.writers().items():
                known = found.setdefault(writer, record)
                if record.get("commits", 0) > known.get("commits", 0):
                    found[writer] = record
        return found

    def readers(self) -> list[dict[str, int]]:
        """The open read transactions of all processes, see :meth:`Store.readers`."""
        return [reader for part in self._parts for reader in part.readers()]

    def orphans(self) -> list[str]:
        """Ids of captures without an entry in any of the stores."""
        return [
            name
            for part in self._parts
            for name in part.orphans()
            if not any(has_entry(other, name) for other in self._parts)
        ]

    # --- entries and rows in two stores -------------------------------------------------

    def rows_of(self, number: int, capture: str) -> Rows:
        """Where the rows of an entry of the store with this number are, see :func:`find_rows`."""
        # The store that had rows of another entry of this one is the likeliest to have these.
        likeliest = self._partner.get(number)
        others = (other for other in range(len(self._parts)) if other != number)
        order = sorted(others, key=lambda other: other != likeliest)
        found = find_rows(self._parts, number, capture, order)
        if found.part != number:
            self._partner[number] = found.part
        return found

    def joined(self) -> Iterator[tuple[str, Member]]:
        """Entries whose rows lie in another store, and the status that their own gives them."""
        for number, part in enumerate(self._parts):
            for status in _WAITING:
                for member in self._members(number, select(part, status=status)):
                    if member.rows_part != number:
                        yield status, member

    def waiting(self) -> tuple[str, ...]:
        """Statuses under which an index lists entries whose rows may lie in another store."""
        return tuple(one for one in _WAITING if any(_has(part, one) for part in self._parts))

    def _rows(self) -> ManyRowReader:
        if self._pid != os.getpid():
            # After a fork: another thread of the parent may have held a lock of the old one.
            self._pid, self._many_rows = os.getpid(), ManyRowReader(self)
        return self._many_rows

    # --- writing ---------------------------------------------------------------------

    def _write(self, some: list[W], put: Callable[..., int], skip_deleted: bool) -> int:
        """Write labels or arrays where their entries lie, in one transaction for each store."""
        by_part: dict[int, list[tuple[Any, ...]]] = {}
        for key, *rest in some:
            with suppress(EntryNotFound) if skip_deleted else nullcontext():
                number, own = self.place_of(key)
                by_part.setdefault(number, []).append((own, *rest))
        return sum(
            self._parts[number].transact(partial(put, chosen, skip_deleted))
            for number, chosen in by_part.items()
        )

    def delete_evaluation(self, key: str, name: str) -> bool:
        """Remove one evaluator's label of an entry. Returns False if there is none.

        Raises:
            StoreReadOnly: the stores were opened for reading.
            AmbiguousKey: the key names no store, and several have it.
        """
        try:
            number, own = self.place_of(key)
        except EntryNotFound:
            return False
        return self._parts[number].delete_evaluation(own, name)

    def delete(self, key: str) -> None:
        """Remove an entry with its labels and arrays, and its rows in whatever store.

        Raises:
            EntryNotFound: no entry has that key.
            StoreReadOnly: the stores were opened for reading.
            AmbiguousKey: the key names no store, and several have it.
        """
        self._member(key)  # which raises what is to be raised
        self.delete_all([key])

    def delete_all(self, keys: Iterable[str]) -> int:
        """Remove entries, many per commit, and return how many. Missing ones are skipped.

        Raises:
            StoreReadOnly: the stores were opened for reading.
            AmbiguousKey: a key names no store, and several have it.
        """
        left = iter(keys)
        deleted = 0
        while some := list(islice(left, _PER_LOOK)):
            by_part: dict[int, list[str]] = {}
            rows: dict[int, list[str]] = {}
            for key in some:
                with suppress(EntryNotFound):
                    found = self._member(key)
                    if found.rows_part != found.part:
                        rows.setdefault(found.rows_part, []).append(found.capture)
                    by_part.setdefault(found.part, []).append(found.stored_key)
            for number, captures in rows.items():
                self._parts[number].transact(partial(_delete_rows, captures))
            deleted += sum(self._parts[n].delete_all(own) for n, own in by_part.items())
        return deleted

    # --- what one store alone has ------------------------------------------------------

    @property
    def environment(self) -> Environment:
        """None: each of the stores has its own.

        Raises:
            StoreError: always, with their names.
        """
        raise StoreError(
            f"this works on one store at a time, and {self.path} is {len(self._parts)}: name one "
            f"of {', '.join(self.names)}"
        )

    def __repr__(self) -> str:
        return f"ManyStores({str(self.path)!r}, {len(self._parts)} stores)"


def _try_open(folder: Path, *, writable: bool) -> Store | StoreError:
    """A store, or why it is left out; one that cannot be written is not left out of what is."""
    try:
        return Store.existing(folder, writable=writable)
    except StoreReadOnly:
        raise
    except StoreError as error:
        return error


def _delete_rows(captures: Iterable[str], change: Mutations, txn: Any) -> None:
    for capture in captures:
        change.delete_orphan(txn, capture)


@lru_cache(maxsize=1024)
def _warn(text: str) -> None:
    """Say it once: whoever writes opens the stores twice."""
    logger.warning("%s", text)


def _has(part: Store, status: str) -> bool:
    """Whether an index lists an entry of this status; a store without one may have some."""
    index = Index.of(part.snapshot())
    return index is None or index.count(term("status", status)) > 0
