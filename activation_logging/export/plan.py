"""What an export holds: which entries, layers and rows; found before a byte is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_rows, read_vector
from activation_logging.dataset.layers import Source, in_order, labels_of
from activation_logging.dataset.positions import Rows, rows_at
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.export.records import beside_digest
from activation_logging.progress import Progress, track
from activation_logging.sites import RESID, RowShape, Site
from activation_logging.store.merge import answer_digest
from activation_logging.store.query import Filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from activation_logging.store import Entry, Store


Sites: TypeAlias = "frozenset[tuple[Site, RowShape]]"
"""What an entry has rows of, and what a row is."""


class Named(NamedTuple):
    """What an entry is called in an export: its key there, and the id of its rows.

    They are the store's own, but of several stores only one entry can have them.
    """

    key: str
    capture: str


class Item(NamedTuple):
    """One entry of the export; ``rows`` is None where all of them go out.

    ``key`` is its key in the export, ``source`` the one in the store. ``answer`` is
    :func:`.merge.answer_digest`. ``sites`` are those that it has.
    """

    key: str
    num_rows: int
    rows: Rows | None
    source: str
    capture: str
    answer: str
    sites: Sites


class Known(NamedTuple):
    """What an export has of an entry already: its names, and the digest of its labels."""

    named: Named
    beside: str


class Column(NamedTuple):
    """One array of the export: a layer of the residual stream, another site, or one of its heads.

    ``layer`` is its number, or a text such as ``heads@15``. ``name`` is ``layer_<number>``, or that
    text. ``width`` is the number of elements of a row, ``shape`` the shape of the site's own.
    """

    layer: int | str
    name: str
    width: int
    shape: tuple[int, ...]

    @property
    def is_site(self) -> bool:
        """Whether it is something else than a layer of the residual stream."""
        return isinstance(self.layer, str)


@dataclass(frozen=True)
class Plan:
    """The entries in order of writing, and what all of them share.

    ``dtype`` is numpy's name for the exported numbers: float16 where all were stored so, else
    float32, into which float16 and bfloat16 go without change.
    """

    store: Store
    model: str
    items: Sequence[Item]
    columns: tuple[Column, ...]
    num_layers: int
    hidden_size: int
    dtype: str
    position: str | int | None
    labels: tuple[str, ...]
    spans: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def total_rows(self) -> int:
        return sum(item.num_rows for item in self.items)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all columns."""
        return sum(column.width for column in self.columns) * np.dtype(self.dtype).itemsize

    def part(self, items: Sequence[Item]) -> Plan:
        """The same for some of the entries."""
        return replace(self, items=items)

    def entries(self, progress: Progress) -> Iterator[tuple[Item, Entry]]:
        """Every entry with its place in the plan, one at a time."""
        for item in track(self.items, "exporting", len(self.items), progress):
            yield item, self.store[item.source]

    def array(self, entry: Entry, item: Item, layer: int | str) -> npt.NDArray[Any]:
        """One entry's exported rows of one column, ``[num_rows, width]`` of :attr:`dtype`.

        ``layer`` is the column's.
        """
        if item.rows is None:
            rows = read_rows(entry, layer, 0, item.num_rows)
        else:
            rows = read_vector(entry, layer, item.rows)[None]
        return np.ascontiguousarray(rows, dtype=self.dtype)

    def record(self, entry: Entry, item: Item) -> dict[str, Any]:
        """The text side of an entry, plain JSON."""
        positions = entry.positions
        return {
            "key": item.key,
            "model": entry.model,
            "prompt": entry.prompt,
            "response": entry.response,
            "messages": entry.messages,
            "request_id": entry.request_id,
            "created": entry.created,
            "finish_reason": entry.finish_reason,
            "tags": entry.tags,
            "labels": {
                name: {
                    "label": found.label,
                    "score": found.score,
                    "judge": found.judge,
                    "spans": [asdict(span) for span in found.spans],
                }
                for name, found in entry.evaluations.items()
            },
            "prompt_token_ids": entry.prompt_token_ids,
            "response_token_ids": entry.response_token_ids,
            "response_tokens": entry.response_tokens,
            "logprobs": entry.logprobs,
            "probes": _scores(entry, item),
            "first_position": int(positions[0 if item.rows is None else item.rows.start]),
            "rows": item.num_rows,
        }


def _scores(entry: Entry, item: Item) -> dict[str, dict[str, Any]]:
    """What probes say of the exported rows, by name; nothing of a pool of rows, which is none."""
    rows = item.rows
    if rows is not None and rows.pool != "one":
        return {}
    place = slice(None) if rows is None else slice(rows.start, rows.stop)
    digests = entry.score_digests
    return {
        name: {
            "digest": digests.get(name),
            "scores": [None if np.isnan(one) else one for one in values[place].tolist()],
        }
        for name, values in entry.scores.items()
    }


@dataclass
class Choice:
    """The entries of a store that are to go out, and what was seen of them on the way.

    ``there`` counts those that the export has already, ``changed`` are those of them that have
    other labels or arrays since.
    """

    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    there: int = 0
    changed: list[Item] = field(default_factory=list)
    models: Counter[str] = field(default_factory=Counter)
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    with_spans: set[str] = field(default_factory=set)

    @property
    def site_sets(self) -> Counter[Sites]:
        """How many of the entries have which sites."""
        return Counter(item.sites for item in self.items)

    def leave_out_without(self, wanted: Mapping[int | str, Sequence[int]], num_layers: int) -> None:
        """Leave out the entries that lack one of these sites, which have rows of these shapes."""
        needed = [
            (Source.of(label, num_layers).site, tuple(shape)) for label, shape in wanted.items()
        ]
        lacking: dict[Sites, str | None] = {}
        for sites in self.site_sets:
            there = {(site, row.shape) for site, row in sites}
            missing = (site.words for site, shape in needed if (site, shape) not in there)
            lacking[sites] = next(missing, None)
        left = [lacking[item.sites] for item in self.items]
        self.left_out.update(f"without {one}" for one in left if one is not None)
        self.items = [item for item, one in zip(self.items, left, strict=True) if one is None]


def choose(
    store: Store,
    *,
    position: str | int | None,
    label: str | None,
    model: str | None,
    tags: Mapping[str, str],
    known: Mapping[str, Mapping[str, Known]],
    progress: Progress,
) -> Choice:
    """Look through a store for what is to go out.

    Args:
        store: where to look.
        position: one row per entry; else all rows.
        label: only entries that this evaluator has judged.
        model: only this model's entries.
        tags: only entries that carry all of these tags.
        known: entries that the export has already, by the digest of the answer and by key. There
            are several where copies of a store were exported as one.
        progress: told how far it is.
    """
    wanted = Filter(model=model, tags=tags, evaluator=label)
    found = Choice()
    names = _Names(one.named for copies in known.values() for one in copies.values())
    met: Counter[str] = Counter()
    seen: dict[Sites, Sites] = {}  # a million entries have few, and share them
    for entry in track(store.entries(), "looking for entries", len(store), progress):
        answer = answer_digest(entry.document)
        there = known.get(answer)
        if there is None:
            if reason := wanted.why_not(entry):
                found.left_out[reason] += 1
                continue
            try:
                count, rows = _rows(entry, position)
            except InputMissing as missing:
                found.left_out[str(missing)] += 1
                continue
            key, capture = names.give(entry, answer)
            sites = frozenset((site, entry.shape_of(site)) for site in entry.sites)
            sites = seen.setdefault(sites, sites)
            found.items.append(Item(key, count, rows, entry.key, capture, answer, sites))
            found.models[entry.model] += 1
            found.shapes[entry.num_layers, entry.hidden_size] += 1
        else:
            found.there += 1
            # Each copy is compared with its own record, or their labels would take turns.
            mine = next(islice(there.values(), met[answer], None), None)
            met[answer] += 1
            if mine is not None and beside_digest(entry) != mine.beside:
                key, capture = mine.named
                found.changed.append(Item(key, 0, None, entry.key, capture, answer, frozenset()))
        evaluations = entry.evaluations
        found.names.update(evaluations)
        found.with_spans.update(name for name, given in evaluations.items() if given.spans)
    return found


class _Names:
    """Gives each entry a key and a capture's id that no other of the export has."""

    def __init__(self, taken: Iterable[Named]) -> None:
        self._keys: set[str] = set()
        self._captures: set[str] = set()
        self._next: Counter[str] = Counter()
        for key, capture in taken:
            self._take(key, capture)

    def give(self, entry: Entry, answer: str) -> Named:
        """The entry's own names, or the next number of its prompt, as `merge` gives them."""
        key, capture = entry.stored_key, str(entry.document["capture"])
        if key in self._keys:
            key = f"{entry.prompt_key}#{self._next[entry.prompt_key]}"
        if capture in self._captures:
            capture = f"{capture}-{answer[:16]}"
        return self._take(key, capture)

    def _take(self, key: str, capture: str) -> Named:
        prompt, _, number = key.partition("#")
        self._next[prompt] = max(self._next[prompt], int(number or 0) + 1)
        self._keys.add(key)
        self._captures.add(capture)
        return Named(key, capture)


def make_plan(
    store: Store,
    chosen: Choice,
    *,
    layers: Sequence[int | str] | None,
    sites: Sequence[str] | None,
    position: str | int | None,
    before: str | None = None,
) -> Plan:
    """Check that the chosen entries go together, and choose the columns.

    Entries that lack a layer or site that is named are left out.

    Args:
        store: where the entries are.
        chosen: what was chosen of it.
        layers: the layers that are named, or None, as for ``sites``.
        sites: the other sites.
        position: one row per entry; else all rows.
        before: the type of the numbers in what this is appended to; wider ones do not go into it.

    Raises:
        DatasetError: nothing is left, the entries are of several models or, if nothing is named,
            have different sites.
    """
    if not chosen.items:
        why = "; ".join(f"{count} {reason}" for reason, count in chosen.left_out.items())
        raise DatasetError(f"{store.path} holds nothing to export{f' ({why})' if why else ''}")
    if len(chosen.models) > 1 or len(chosen.shapes) > 1:
        listing = ", ".join(f"{name}: {count}" for name, count in chosen.models.items())
        raise DatasetError(
            f"the entries are of several models ({listing}), whose rows differ in meaning; export "
            "one at a time (--model, --tag)"
        )
    ((num_layers, hidden_size),) = chosen.shapes
    wanted_sites = None if layers is None and sites is None else [*(layers or ()), *(sites or ())]
    columns = _columns(wanted_sites, chosen.site_sets, num_layers, len(chosen.items))
    chosen.leave_out_without({column.layer: column.shape for column in columns}, num_layers)
    if not chosen.items:
        named = ", ".join(str(column.layer) for column in columns)
        raise DatasetError(f"no entry of {store.path} has all of {named}; name fewer")
    is_half = _is_half(columns, chosen.site_sets, num_layers) and all(
        item.rows is None or item.rows.pool == "one" for item in chosen.items
    )
    return Plan(
        store=store,
        model=next(iter(chosen.models)),
        items=chosen.items,
        columns=columns,
        num_layers=num_layers,
        hidden_size=hidden_size,
        dtype="float16" if is_half and before != "float32" else "float32",
        position=position,
        labels=tuple(sorted(chosen.names)),
        spans=tuple(sorted(chosen.with_spans)),
        left_out=dict(chosen.left_out),
    )


def _is_half(
    columns: Iterable[Column],
    stored: Iterable[Iterable[tuple[Site, RowShape]]],
    num_layers: int,
) -> bool:
    """Whether all rows that are exported were stored as float16."""
    exported = {Source.of(column.layer, num_layers).site for column in columns}
    types = {row.dtype for one in stored for site, row in one if site in exported}
    return types == {"float16"}


def _rows(entry: Entry, position: str | int | None) -> tuple[int, Rows | None]:
    """How many rows of an entry go out, and which; InputMissing where it lacks them."""
    if entry.status != "complete":
        raise InputMissing(f"{entry.status}: no rows")
    count = len(entry.positions)
    if not count:
        raise InputMissing("that ended before a row was kept")
    if position is None:
        return count, None
    return 1, rows_at(position, entry)


def _columns(
    wanted: Sequence[int | str] | None,
    site_sets: Counter[Sites],
    num_layers: int,
    answers: int,
) -> tuple[Column, ...]:
    sets = [frozenset((site, row.shape) for site, row in one) for one in site_sets]
    common = _in_order(frozenset.intersection(*sets))
    anywhere = {**_in_order(frozenset.union(*sets)), **common}
    if wanted is None:
        if len(set(sets)) > 1:
            counts: Counter[str] = Counter()
            for one, count in site_sets.items():
                counts[_names(site for site, _ in one)] += count
            listing = "; ".join(f"{names}: {count}" for names, count in counts.items())
            raise DatasetError(
                f"the entries have different layers ({listing}); name those to export (--layers, "
                "--sites), and entries without one of them are left out; all entries share "
                f"{_names(common)}"
            )
        wanted = [str(site) for site in common]

    def labels(part: int | str) -> list[int | str]:
        try:
            return labels_of([part], common, num_layers=num_layers, answers=answers)
        except DatasetError as not_all:
            try:
                return labels_of([part], anywhere, num_layers=num_layers, answers=answers)
            except DatasetError:
                raise not_all from None

    named = in_order(label for part in wanted for label in labels(part))
    return tuple(_column(label, anywhere, num_layers) for label in named)


def _in_order(pairs: Iterable[tuple[Site, tuple[int, ...]]]) -> dict[Site, tuple[int, ...]]:
    return dict(sorted(pairs, key=lambda pair: pair[0].code))


def _names(sites: Iterable[Site]) -> str:
    in_order = sorted(sites, key=lambda site: site.code)
    return ", ".join(str(site.label) for site in in_order) or "none"


def _column(label: int | str, shapes: Mapping[Site, tuple[int, ...]], num_layers: int) -> Column:
    source = Source.of(label, num_layers)
    shape = shapes[source.site]
    name = f"layer_{label}" if source.site.name == RESID else str(label)
    return Column(label, name, source.width(shape), shape)
