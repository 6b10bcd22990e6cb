"""Labels by hand: who gave them, which answer comes next, taking back, and agreement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import EntryNotFound, ViewError
from activation_logging.records import LABELS, Evaluation
from activation_logging.store.statistics import counts
from activation_logging.strict_json import dumps
from activation_logging.view.facts import LABEL_CODES
from activation_logging.view.finding import largest, matching_slots, parse_place, place_text
from activation_logging.view.history import forget_change, last_changed, remember

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from activation_logging.records import Label, Span
    from activation_logging.store import Store
    from activation_logging.view.columns import Columns
    from activation_logging.view.finding import Search
    from activation_logging.view.index import SearchIndex

HAND = "hand"
"""The judge of labels that a person gave."""
ORDERS = {
    "unlabelled": "what nobody has labelled, then the rest",
    "disagreement": "what others disagree about, and nothing else",
    "threshold": "what is nearest to a threshold of a score",
    "newest": "the newest",
}


class Next(NamedTuple):
    """What a person labels next: its slot, what skips it, and how many are left with it.

    Those that were skipped are among them.
    """

    slot: int | None
    after: str
    left: int


def next_answer(
    index: SearchIndex,
    search: Search,
    *,
    by: str,
    order: str,
    threshold: float = 0.5,
    after: str = "",
) -> Next:
    """The next answer that an evaluator has not labelled, among those of a search.

    Raises:
        ViewError: the order is not one of :data:`ORDERS`, or lacks a score.
    """
    if order not in ORDERS:
        raise ViewError(f"order: {order[:80]!r} is not one of {', '.join(ORDERS)}")
    slots = matching_slots(index, search)
    with index.reading() as columns:
        mine = f"label/{by}"
        if mine in columns:
            slots = slots[columns[mine][slots] == 0]
        keys = _urgency(columns, slots, search, by=by, order=order, threshold=threshold)
        known = np.isfinite(keys)
        slots, keys = slots[known], keys[known]
        left = len(slots)
        if after:
            value, slot = parse_place(after)
            later = (keys < value) | ((keys == value) & (slots < slot))
            slots, keys = slots[later], keys[later]
        first = largest(keys, slots, 1)
        if not len(first):
            return Next(None, "", left)
        slot = int(slots[first[0]])
        return Next(slot, place_text(float(keys[first[0]]), slot), left)


def _urgency(
    columns: Columns,
    slots: npt.NDArray[np.int64],
    search: Search,
    *,
    by: str,
    order: str,
    threshold: float,
) -> npt.NDArray[np.float64]:
    """How soon each answer should be labelled; NaN for not at all."""
    created = columns["created"][slots] if columns.size else np.empty(0)
    if order == "newest":
        return created
    if order == "threshold":
        if search.score not in columns:
            raise ViewError("choose a score: answers near its threshold come first")
        return -np.abs(columns[search.score][slots].astype(np.float64) - threshold)
    others = [columns[f"label/{name}"][slots] for name in columns.names("label") if name != by]
    kinds = np.zeros(len(slots))
    for code in LABEL_CODES.values():
        kinds += np.any([column == code for column in others], axis=0) if others else 0
    # In whole numbers before the newest, whose seconds make less than one.
    newest = created / 1e11
    if order == "disagreement":
        return np.where(kinds > 1, kinds + newest, np.nan)
    return np.where(kinds == 0, 1, 0) + newest


# --- writing ---------------------------------------------------------------------------


def give(
    index: SearchIndex,
    store: Store,
    key: str,
    *,
    by: str,
    label: Label,
    spans: Sequence[Span] | None = None,
) -> None:
    """Save one person's label of an answer at once, and remember what was there.

    Args:
        index: takes the label in, and remembers the one before.
        store: the store, open for writing.
        key: the entry's.
        by: the evaluator's name.
        label: the label.
        spans: those of the label; None keeps the ones that are there.

    Raises:
        EntryNotFound, LabelError, StoreReadOnly: as for ``Store.put_evaluation``.
        ViewError: labels of that name are not by hand.
    """
    give_all(index, store, [key], by=by, label=label, spans=spans)


def give_all(
    index: SearchIndex,
    store: Store,
    keys: Iterable[str],
    *,
    by: str,
    label: str,
    spans: Sequence[Span] | None = None,
) -> None:
    """The same of several answers, each of which keeps its own spans where ``spans`` is None."""
    check_name(store, by)
    before = {key: store[key].evaluations.get(by) for key in keys}

    def made(old: Evaluation | None) -> Evaluation:
        kept = old.spans if spans is None and old is not None else spans or ()
        return Evaluation.checked(by, label, judge=HAND, spans=kept)

    store.put_evaluations((key, made(old)) for key, old in before.items())
    for key, old in before.items():
        remember(index, by, key, None if old is None else dumps(old.as_json()))
    index.keep_up()


def take_back(index: SearchIndex, store: Store, by: str) -> str:
    """Undo the latest change of an evaluator, and return the key of its answer.

    Raises:
        ViewError: there is nothing to take back.
    """
    found = last_changed(index, by)
    if found is None:
        raise ViewError(f"{by} has labelled nothing that could be taken back")
    number, key, before = found
    forget_change(index, number)
    if before is None:
        store.delete_evaluation(key, by)
    else:
        store.put_evaluations([(key, Evaluation.checked(by, **json.loads(before)))])
    index.keep_up()
    if key not in store:
        raise EntryNotFound(f"the answer {key} that {by} labelled has been deleted since")
    return key


def check_name(store: Store, by: str) -> None:
    """Refuse a name under which something else than a person has judged.

    Raises:
        LabelError: it cannot be the name of an evaluator. ViewError: it is taken.
    """
    Evaluation.checked(by, LABELS[0])
    for judge in counts(store).judges.get(by, ()):
        if judge != HAND:
            raise ViewError(
                f"{by!r} is the name of labels by {judge or 'somebody else'}; choose another name"
            )


# --- agreement -------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How far two evaluators agree on the answers that both have labelled.

    ``table[i][j]`` counts answers that the first calls ``labels[i]`` and the second
    ``labels[j]``. ``kappa`` is None where chance alone would agree always.
    """

    labels: Sequence[str]
    table: Sequence[Sequence[int]]
    answers: int
    agreed: float
    kappa: float | None


def agreement(columns: Columns, first: str, second: str) -> Agreement | None:
    """Two evaluators' labels beside each other; None if no answer has both.

    Kappa is (observed - expected) / (1 - expected), where ``expected`` is the agreement of two who
    label by chance with the same frequencies (Cohen 1960).
    """
    names = [f"label/{one}" for one in (first, second)]
    if not all(name in columns for name in names):
        return None
    a, b = (columns[name] for name in names)
    both = (a > 0) & (b > 0)
    if not both.any():
        return None
    size = len(LABELS)
    pairs = (a[both].astype(np.int64) - 1) * size + (b[both] - 1)
    table = np.bincount(pairs, minlength=size * size).reshape(size, size)
    total = int(table.sum())
    agreed = float(np.trace(table)) / total
    expected = float(table.sum(1) @ table.sum(0)) / total**2
    kappa = None if expected >= 1 else (agreed - expected) / (1 - expected)
    return Agreement(LABELS, table.tolist(), total, agreed, kappa)
