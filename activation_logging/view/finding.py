"""Which answers a list shows: conditions, order, a page of them, and counts of all that match.

A :class:`Search` is the query of an address, parsed. So every list is a link, and so is its next
page: a page begins after the last answer of the page before (*keyset*), and no later answer moves
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from activation_logging.errors import SettingsError, ViewError
from activation_logging.store.query import parse_time
from activation_logging.view.facts import LABEL_CODES, STATUS_CODES
from activation_logging.view.index import MOST_FOUND, SearchIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from activation_logging.view.columns import Columns

FACET_VALUES = 12
"""So many values of a tag are listed, the most frequent ones."""
MOST_VALUES = 2000
"""A tag of more values is an id of something, and is not counted."""
MOST_CONDITIONS = 60
"""Each is looked up in a column of its own."""
UNLABELLED = "unlabelled"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Search:
    """What a list is asked for.

    Attributes:
        q: words in prompts and answers, see :mod:`.words`.
        model, status, label, tag: values of which one must be true, ``NAME=VALUE`` of labels and
            tags, where one of each name must be true. A label is also ``NAME=unlabelled``.
        since, until: times, see :func:`activation_logging.store.query.parse_time`.
        score: a column of numbers, ``score/NAME`` or ``judged/NAME``.
        low, high: what ``score`` is between, both included.
        sort: ``newest``, ``oldest``, ``highest`` or ``lowest``; the last two by ``score``.
        after: where the page before ended, of :attr:`Found.next`.
    """

    q: str = ""
    model: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    score: str = ""
    low: str = ""
    high: str = ""
    sort: str = "newest"
    after: str = ""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Search:
        """From the pairs of an address's query; unknown names and empty values are left out."""
        single: dict[str, Any] = {}
        several: dict[str, list[str]] = {}
        for name, value in pairs:
            if not value:
                continue
            if name in _SEVERAL:
                several.setdefault(name, []).append(value)
            elif name in cls.__dataclass_fields__:
                single[name] = value
        lists: dict[str, Any] = {name: tuple(dict.fromkeys(v)) for name, v in several.items()}
        return cls(**lists, **single)

    def link(self, **changes: Any) -> str:
        """The query of an address for this search, from its first page unless told otherwise."""
        changed = replace(self, **{"after": "", **changes})
        pairs = []
        for name in self.__dataclass_fields__:
            value = getattr(changed, name)
            if name in _SEVERAL:
                pairs += [(name, one) for one in value]
            elif value and value != _DEFAULTS[name]:
                pairs.append((name, value))
        return urlencode(pairs, errors="replace")

    def toggled(self, name: str, value: str) -> str:
        """The query with one value of a facet added, or taken away."""
        values = getattr(self, name)
        kept = tuple(one for one in values if one != value)
        return self.link(**{name: kept if value in values else (*values, value)})

    @property
    def narrowed(self) -> bool:
        """Whether it asks for anything but an order."""
        return any(
            getattr(self, name) for name in (*_SEVERAL, "q", "since", "until", "low", "high")
        )


_SEVERAL = ("model", "status", "label", "tag")
_DEFAULTS = {name: one.default for name, one in Search.__dataclass_fields__.items()}


class Value(NamedTuple):
    """One value of a facet: what it is called, what a search says for it, and its answers."""

    text: str
    value: str
    answers: int
    chosen: bool


class Facet(NamedTuple):
    """The answers by one thing, under all other conditions."""

    title: str
    name: str
    values: Sequence[Value]


@dataclass
class Found:
    """A page of a list.

    Attributes:
        slots: of the page's answers, in order.
        total: how many answers match.
        next: what ``after`` is on the next page; None on the last one.
        facets: counts.
        numbers: of each answer the value of the column that the search names.
        cut: whether more answers have the words than a search looks at.
    """

    slots: list[int]
    total: int
    next: str | None
    facets: list[Facet] = field(default_factory=list)
    numbers: list[float | None] = field(default_factory=list)
    cut: bool = False


def find(index: SearchIndex, search: Search, *, size: int = 50) -> Found:
    """One page of the answers that match, with the counts of all of them.

    Raises:
        ViewError: a condition is no number, time, or name that there is.
    """
    # The text first: it may take longest, and needs no columns.
    words = index.matching(search.q)
    with index.reading() as columns:
        conditions = _conditions(index, columns, search, words)
        matching = _all_of(conditions.values(), columns.size)
        found = _page(columns, search, matching, size)
        found.cut = words is not None and len(words) >= MOST_FOUND
        found.facets = list(_facets(index, columns, search, conditions, matching))
        if search.score in columns:
            values = columns[search.score][found.slots]
            found.numbers = [None if np.isnan(one) else float(one) for one in values]
        return found


def matching_slots(index: SearchIndex, search: Search) -> npt.NDArray[np.int64]:
    """Slots of every answer that matches, rising."""
    words = index.matching(search.q)
    with index.reading() as columns:
        conditions = _conditions(index, columns, search, words)
        return np.flatnonzero(_all_of(conditions.values(), columns.size))


# --- conditions ------------------------------------------------------------------------


def _conditions(
    index: SearchIndex, columns: Columns, search: Search, words: npt.NDArray[np.int64] | None
) -> dict[str, Mask]:
    """What must be true of an answer, by what it is a condition on."""
    if not columns.size:
        return {}
    found: dict[str, Mask] = {"there": columns["status"] > 0}
    if words is not None:
        found["q"] = np.zeros(columns.size, bool)
        found["q"][words[words < columns.size]] = True
    if search.model:
        found["model"] = _any_of(columns["model"], [index.word(one) for one in search.model])
    if search.status:
        codes = [_code(STATUS_CODES, one, "status") for one in search.status]
        found["status"] = _any_of(columns["status"], codes)
    for name, labels in _by_name(search.label, "label").items():
        codes = [0 if one == UNLABELLED else _code(LABEL_CODES, one, "label") for one in labels]
        found[f"label/{name}"] = _any_of(_column(columns, f"label/{name}"), codes)
    for name, values in _by_name(search.tag, "tag").items():
        numbers = [index.word(one) for one in values]
        found[f"tag/{name}"] = _any_of(_column(columns, f"tag/{name}"), numbers)
    try:
        since, until = parse_time(search.since or None), parse_time(search.until or None)
    except SettingsError as error:
        raise ViewError(str(error)) from None
    if since is not None:
        found["since"] = columns["created"] >= since
    if until is not None:
        found["until"] = columns["created"] < until
    if search.low or search.high or search.sort in ("highest", "lowest"):
        scores = _scores(columns, search)
        known = ~np.isnan(scores)
        if search.low:
            known &= scores >= _number(search.low)
        if search.high:
            known &= scores <= _number(search.high)
        found["score"] = known
    return found


def _all_of(conditions: Iterable[Mask], size: int) -> Mask:
    return reduce(np.logical_and, conditions, np.ones(size, bool))


def _any_of(column: npt.NDArray[Any], codes: Sequence[int]) -> Mask:
    return reduce(np.logical_or, [column == code for code in codes])


def _by_name(pairs: Iterable[str], what: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    pairs = tuple(pairs)
    if len(pairs) > MOST_CONDITIONS:
        raise ViewError(f"{what}: {len(pairs):,} conditions are too many")
    for pair in pairs:
        # A label has no equals sign, and the name of a tag seldom has one.
        name, equals, value = pair.rpartition("=") if what == "label" else pair.partition("=")
        if not equals:
            raise ViewError(f"{what}: {pair[:80]!r} is not NAME=VALUE")
        found.setdefault(name, []).append(value)
    return found


def _code(codes: Mapping[str, int], value: str, what: str) -> int:
    if value not in codes:
        raise ViewError(f"{what}: {value[:80]!r} is not one of {', '.join(codes)}")
    return codes[value]


def _column(columns: Columns, name: str) -> npt.NDArray[Any]:
    """A column; all zeros where no answer has such a thing."""
    return columns[name] if name in columns else np.zeros(columns.size, np.int8)


def _scores(columns: Columns, search: Search) -> npt.NDArray[np.float32]:
    if search.score not in columns or search.score.partition("/")[0] not in ("score", "judged"):
        raise ViewError("choose a score to sort or filter by; no answer has one of that name")
    return columns[search.score]


def _number(text: str) -> np.float32:
    try:
        # What is too large for a score is infinite.
        with np.errstate(over="ignore"):
            return np.float32(float(text))
    except ValueError:
        raise ViewError(f"score: {text[:80]!r} is not a number") from None


# --- order -----------------------------------------------------------------------------


def _page(columns: Columns, search: Search, matching: Mask, size: int) -> Found:
    slots = np.flatnonzero(matching)
    total = len(slots)
    if search.sort in ("newest", "oldest"):
        values = columns["created"][slots] if total else np.empty(0)
    elif search.sort in ("highest", "lowest"):
        values = _scores(columns, search)[slots].astype(np.float64) if total else np.empty(0)
    else:
        raise ViewError(f"sort: {search.sort[:80]!r} is not newest, oldest, highest or lowest")
    # The first of a page is the largest; among equals the latest, or of rising ones the earliest.
    rising = search.sort in ("oldest", "lowest")
    keys, order = (-values, -slots) if rising else (values, slots)
    if search.after:
        value, slot = parse_place(search.after)
        value, slot = (-value, -slot) if rising else (value, slot)
        left = (keys < value) | ((keys == value) & (order < slot))
        keys, order = keys[left], order[left]
    first = largest(keys, order, size + 1)
    chosen = np.abs(order[first])[:size].tolist()
    following = None
    if len(first) > size:
        last = float(keys[first[size - 1]])
        following = place_text(-last if rising else last, chosen[-1])
    return Found(chosen, total, following)


def largest(
    keys: npt.NDArray[np.float64], order: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.int64]:
    """Places of the largest keys, falling; of equal keys those of larger order come first."""
    places = np.arange(len(keys))
    if len(keys) > size:
        bound = np.partition(keys, len(keys) - size)[len(keys) - size]
        above, equal = np.flatnonzero(keys > bound), np.flatnonzero(keys == bound)
        free = size - len(above)
        if len(equal) > free:
            equal = equal[np.argpartition(order[equal], len(equal) - free)[len(equal) - free :]]
        places = np.concatenate([above, equal])
    return places[np.lexsort((-order[places], -keys[places]))]


def place_text(value: float, slot: int) -> str:
    """Where a page ends: the value that it is ordered by, and the slot."""
    return f"{value!r}:{slot}"


def parse_place(text: str) -> tuple[float, int]:
    """The reverse of :func:`place_text`.

    Raises:
        ViewError: it is no such place.
    """
    try:
        value, _, slot = text.partition(":")
        return float(value), int(slot)
    except ValueError:
        raise ViewError("this page of the list does not exist; begin at its first page") from None


# --- counts ----------------------------------------------------------------------------


def _facets(
    index: SearchIndex,
    columns: Columns,
    search: Search,
    conditions: Mapping[str, Mask],
    matching: Mask,
) -> Iterable[Facet]:
    if not columns.size:
        return
    slots = np.flatnonzero(matching)

    def counted(column: str) -> npt.NDArray[np.int64]:
        """How many of the answers that meet all other conditions have each code."""
        codes = columns[column]
        if column in conditions:
            others = [mask for name, mask in conditions.items() if name != column]
            codes = codes[_all_of(others, columns.size)]
        elif len(slots) < columns.size:
            codes = codes[slots]
        return np.bincount(codes)

    yield Facet("status", "status", _of_codes(counted("status"), STATUS_CODES, search.status, ""))
    yield Facet("model", "model", _of_words(index, counted("model"), search.model, ""))
    for name in columns.names("label"):
        numbers = counted(f"label/{name}")
        given: dict[str, int] = {**LABEL_CODES, UNLABELLED: 0}
        values = _of_codes(numbers, given, search.label, f"{name}=")
        # That none of these answers has a label of somebody narrows nothing down.
        if any(one.chosen or one.text != UNLABELLED for one in values):
            yield Facet(f"label: {name}", "label", values)
    for name in columns.names("tag"):
        if values := _of_words(index, counted(f"tag/{name}"), search.tag, f"{name}="):
            yield Facet(f"tag: {name}", "tag", values)


def _of_codes(
    numbers: npt.NDArray[np.int64], codes: Mapping[str, int], chosen: Sequence[str], start: str
) -> list[Value]:
    found = []
    for text, code in codes.items():
        count = int(numbers[code]) if code < len(numbers) else 0
        value = f"{start}{text}"
        if count or value in chosen:
            found.append(Value(text, value, count, value in chosen))
    return found


def _of_words(
    index: SearchIndex, numbers: npt.NDArray[np.int64], chosen: Sequence[str], start: str
) -> list[Value]:
    """The most frequent words, and those that are chosen; none where there are too many."""
    there = np.flatnonzero(numbers[1:]) + 1
    asked = [one[len(start) :] for one in chosen if one.startswith(start)]
    if len(there) > MOST_VALUES:
        there = there[:0]
    most = there[np.argsort(-numbers[there], kind="stable")[:FACET_VALUES]]
    texts = index.texts(most.tolist())
    found = {text: int(numbers[number]) for text, number in zip(texts, most, strict=True)}
    for text in asked:
        number = index.word(text)
        found.setdefault(text, int(numbers[number]) if 0 < number < len(numbers) else 0)
    return [Value(text, f"{start}{text}", n, text in asked) for text, n in found.items()]
