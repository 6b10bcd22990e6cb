"""Statistics of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from activation_logging.errors import EntryNotFound, StoreCorrupt
from activation_logging.progress import Progress, silent, track
from activation_logging.sites import RESID
from activation_logging.store import layout, schema
from activation_logging.store.index import Bounds, Index, term, words_of
from activation_logging.store.indexing import Totals, bytes_by_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.store import Store

C = TypeVar("C", bound="Counts")


@dataclass
class Counts:
    """Numbers of entries: in total, by status, by model, and by label of each evaluator.

    ``judges`` counts each evaluator's labels by judge; None for labels that name no judge.
    ``spans`` counts, by evaluator and label of a span, the entries that have such a span.
    """

    entries: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    judges: dict[str, Counter[str | None]] = field(default_factory=dict)
    spans: dict[str, Counter[str]] = field(default_factory=dict)


class Arrays(NamedTuple):
    """Arrays of one name beside entries: their number, and their bytes."""

    number: int
    nbytes: int


class StoreCounts(NamedTuple):
    """One of several stores: its folder, entries and bytes, or why it is left out."""

    path: str | None
    entries: int = 0
    file_bytes: int = 0
    problem: str | None = None


@dataclass
class Statistics(Counts):
    """Counts of entries, and bytes on disk.

    ``rows`` counts those of each entry. ``layer_bytes`` (of the residual stream, by layer) and
    ``site_bytes`` (of other sites, such as ``heads@15``) count the stored ones, where entries share
    the rows of a common prompt. ``arrays`` counts those beside entries by name.
    """

    rows: int = 0
    layer_bytes: Counter[int] = field(default_factory=Counter)
    site_bytes: Counter[str] = field(default_factory=Counter)
    arrays: dict[str, Arrays] = field(default_factory=dict)
    file_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    """Free pages of the file, which new entries use; `compact` returns them to the disk."""
    readers: list[dict[str, int]] = field(default_factory=list)
    """Open views of the store: the process, and how many commits old the view is."""
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stores: dict[str, StoreCounts] = field(default_factory=dict)
    """Of several stores that are read as one, each by its name."""
    notes: list[str] = field(default_factory=list)
    """What is to be known of several stores before their numbers are used, a sentence each."""

    @property
    def rows_bytes(self) -> int:
        """Bytes of all rows of all sites."""
        return self.layer_bytes.total() + self.site_bytes.total()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kept = {name: value for name, value in vars(self).items() if name != "judges"}
        arrays = {name: found._asdict() for name, found in self.arrays.items()}
        stores = {name: found._asdict() for name, found in self.stores.items()}
        return {**kept, "arrays": arrays, "stores": stores, "rows_bytes": self.rows_bytes}


def counts(store: Store, progress: Progress = silent) -> Counts:
    """Count a store's entries; as :func:`statistics`, without the bytes on disk."""
    return _counts(store, progress, Counts())


def statistics(store: Store, progress: Progress = silent) -> Statistics:
    """Count a store's entries and bytes.

    With the store's index it takes milliseconds, and a second for a few million arrays beside
    entries. A store of version 1 that has not been upgraded is walked through, and an entry that
    cannot be read counts as ``unreadable`` there.

    Args:
        store: the store.
        progress: told after each entry where the store is walked through.
    """
    found = _counts(store, progress, Statistics(writers=store.writers()))
    for part in store.parts:
        snapshot = part.snapshot()
        _add_sizes(found, part, snapshot)
        _add_arrays(found.arrays, snapshot)
        del snapshot
    found.arrays = dict(sorted(found.arrays.items()))
    found.readers = store.readers()
    if store.is_many:
        for name, part in zip(store.names, store.parts, strict=True):
            nbytes = (part.path / "data.mdb").stat().st_size
            found.stores[name] = StoreCounts(str(part.path), len(part), nbytes)
        for name, reason in store.problems.items():
            found.stores[name] = StoreCounts(None, problem=reason)
        found.notes = store.notes()
    return found


def quick_statistics(store: Store) -> Statistics:
    """What the index knows at once, however large the store is: entries by status, and bytes.

    Of a store of version 1 that has not been upgraded, the bytes of rows and the statuses are not
    known, and left out.
    """
    found = Statistics()
    snapshot = store.snapshot()
    _add_sizes(found, store, snapshot, quick=True)
    if Index.of(snapshot) is not None:
        found.entries = snapshot.num_entries
        found.statuses.update(
            {words[0]: number for words, number in _listed(store, snapshot, "status")}
        )
    return found


def _add_sizes(found: Statistics, store: Store, snapshot: Snapshot, *, quick: bool = False) -> None:
    """The bytes of rows, unless a ``quick`` look does not know them, and those of the file."""
    sizes: Mapping[int, int] = {}
    if Index.of(snapshot) is not None:
        totals = Totals.load(snapshot.get(layout.META, layout.TOTALS_KEY))
        found.rows += totals.rows
        sizes = totals.sizes
    elif not quick:
        sizes = bytes_by_code(snapshot.starting_with(layout.ROWS, b""))
    for code, size in sorted(sizes.items()):
        site = schema.site(code)
        if site.name == RESID:
            found.layer_bytes[code] += size
        else:
            found.site_bytes[str(site)] += size
    size, taken = store.disk_bytes()
    found.file_bytes += size
    found.disk_bytes += taken
    found.free_bytes += max(size - snapshot.used_bytes, 0)


def _counts(store: Store, progress: Progress, found: C) -> C:
    for part in store.parts:
        _add_counts(found, part, progress)
    if store.is_many:
        _join(found, store)
    return found


def _add_counts(found: Counts, store: Store, progress: Progress) -> None:
    snapshot = store.snapshot()
    if Index.of(snapshot) is None:
        del snapshot
        for key in track(store, "counting", len(store), progress):
            _count(found, store, key)
        return
    found.entries += snapshot.num_entries
    for kind, counter in (("status", found.statuses), ("model", found.models)):
        for words, number in _listed(store, snapshot, kind):
            counter[words[0]] += number
    lists = (("label", found.labels), ("judge", found.judges), ("span", found.spans))
    for kind, by_name in lists:
        for (name, word), number in _listed(store, snapshot, kind):
            by_name.setdefault(name, Counter())[word] += number


def _join(found: Counts, store: Store) -> None:
    """Count entries whose rows lie in another store by the status that they have with them."""
    for listed, entry in store.joined():
        found.statuses[listed] -= 1
        found.statuses[entry.status] += 1
        if isinstance(found, Statistics) and entry.status == "complete":
            found.rows += len(entry.positions)
    found.statuses = +found.statuses


def _add_arrays(found: dict[str, Arrays], snapshot: Snapshot) -> None:
    for key, raw in snapshot.starting_with(layout.DERIVED, b""):
        name = key.partition(b"\0")[2].decode("utf-8", "backslashreplace")
        number, nbytes = found.get(name, (0, 0))
        # len() does not read the array itself.
        found[name] = Arrays(number + 1, nbytes + len(raw))


def _listed(store: Store, snapshot: Snapshot, kind: str) -> Iterator[tuple[list[Any], int]]:
    """The words of each term of a kind, and its number of entries."""
    for key, number in Index(snapshot).terms(kind):
        words = words_of(key)
        if words is None:
            words = _look_up(store, snapshot, kind, key)
        yield words, number


def _look_up(store: Store, snapshot: Snapshot, kind: str, key: bytes) -> list[Any]:
    """The words of a hashed term, from an entry that the term is true of."""
    bounds = Bounds.of(None, None)
    (place,) = Index(snapshot).walk([[key]], bounds, after=None, reverse=False, limit=1)
    entry = store.at(place, snapshot)
    if entry is not None:
        labels = entry.evaluations_in(snapshot)
        own: dict[str, list[list[Any]]] = {
            "model": [[entry.model]],
            "label": [[name, found.label] for name, found in labels.items()],
            "judge": [[name, found.judge] for name, found in labels.items()],
            "span": [[name, span.label] for name, found in labels.items() for span in found.spans],
        }
        for words in own[kind]:
            if term(kind, *words) == key:
                return words
    raise StoreCorrupt("the index has a term that does not match its entries")


def _count(found: Counts, store: Store, key: str) -> None:
    try:
        entry = store[key]
        status = entry.status
        rows = len(entry.positions) if status == "complete" else 0
        evaluations = entry.evaluations
        model = entry.model
    except EntryNotFound:
        return
    except StoreCorrupt:
        found.entries += 1
        found.statuses["unreadable"] += 1
        return
    found.entries += 1
    found.statuses[status] += 1
    found.models[model] += 1
    if isinstance(found, Statistics):
        found.rows += rows
    for name, evaluation in evaluations.items():
        found.labels.setdefault(name, Counter())[evaluation.label] += 1
        found.judges.setdefault(name, Counter())[evaluation.judge] += 1
        for label in {span.label for span in evaluation.spans}:
            found.spans.setdefault(name, Counter())[label] += 1
