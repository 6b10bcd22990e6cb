"""Splits without leaks: what an answer is about is never on both sides.

Folds come from scikit-learn's StratifiedGroupKFold: grouped by entity, stratified by class,
seeded. A part of every training side is set aside for choices (layer, position, threshold), so
that the test side decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DatasetError, LeakError
from activation_logging.extras import require
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIN_PER_CLASS = 20
"""Fewer answers than this of a class are not reported on."""

_INSIDE = 4
"""One in so many answers of a training side is set aside for choices."""

Index = npt.NDArray[np.int64]


class Fold(NamedTuple):
    """Indices of examples. ``fit`` and ``validation`` together are ``train``.

    ``held_out`` names the units of the test side, where others than groups are held out.
    """

    train: Index
    test: Index
    fit: Index
    validation: Index
    held_out: tuple[str, ...] = ()


class Trial(NamedTuple):
    """Indices of examples: what is fitted on ``fit`` is compared on ``validation``."""

    fit: Index
    validation: Index


def make_folds(
    y: npt.NDArray[np.int64],
    groups: npt.NDArray[np.str_],
    *,
    units: npt.NDArray[np.str_] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> list[Fold]:
    """Split into ``folds`` parts, each of which is the test side once.

    Args:
        y: classes 0 and 1, ``[n]``.
        groups: what each answer is about, ``[n]``; never on both sides.
        units: what else is never on both sides, ``[n]``, such as the template of a question. Then
            answers of a training side that are about something in its test side are in neither.
        folds: number of parts, at least 2; with as many as there are units, each is held out alone.
        seed: the same seed gives the same parts.

    Raises:
        DatasetError: a class has fewer than :data:`MIN_PER_CLASS` answers, or too few entities.
    """
    refuse_small(y)
    if folds < 2:
        raise DatasetError(f"{folds} folds are not a split; use at least 2")
    for value in (0, 1):
        entities = len(np.unique(groups[y == value]))
        if entities < 2 * folds and units is None:
            raise DatasetError(
                f"the answers of class {value} are about {entities} different entities, too few "
                f"for {folds} folds; ask about more, or use fewer folds"
            )
    made = []
    for train, test in _sides(y, groups if units is None else units, folds, seed):
        held_out: tuple[str, ...] = ()
        if units is not None:
            train = train[~np.isin(groups[train], groups[test])]  # noqa: PLW2901 - a part of it
            held_out = tuple(np.unique(units[test]).tolist())
            _refuse_one_sided(y, train, held_out)
        check_no_leak(groups, train, test)
        fit, validation = _inside(y, groups, train, seed)
        for name, part in (("test", test), ("validation", validation), ("training", fit)):
            if len(np.unique(y[part])) < 2:
                raise DatasetError(
                    f"a {name} part came out with one class only: the classes are too unevenly "
                    "spread over the entities; use fewer folds or label more answers"
                )
        made.append(Fold(train, test, fit, validation, held_out))
    return made


def make_trial(
    y: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], rows: Index, seed: int = 0
) -> Trial | None:
    """Divide some rows, so that a choice can be made on them alone.

    Args:
        y: classes 0 and 1, ``[n]``.
        groups: what each answer is about, ``[n]``; never on both sides.
        rows: the rows to divide.
        seed: the same seed gives the same sides.

    Returns:
        None where they are about too few things, or a side came out with one class only.
    """
    if len(np.unique(groups[rows])) < _INSIDE or np.bincount(y[rows], minlength=2).min() < _INSIDE:
        return None
    trial = _inside(y, groups, rows, seed)
    return trial if all(len(np.unique(y[side])) == 2 for side in trial) else None


def _inside(
    y: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], rows: Index, seed: int
) -> Trial:
    fit, validation = _group_folds(y[rows], groups[rows], _INSIDE, seed)[0]
    check_no_leak(groups, rows[fit], rows[validation])
    return Trial(rows[fit], rows[validation])


def _refuse_one_sided(y: npt.NDArray[np.int64], train: Index, held_out: Sequence[str]) -> None:
    """Raise DatasetError where too little is left to fit on."""
    least = int(np.bincount(y[train], minlength=2).min())
    if least < MIN_PER_CLASS:
        raise DatasetError(
            f"with {brief(', '.join(held_out), 120)!r} held out, and all that is about the same "
            f"things, only {least} answers of a class are left to fit on, {MIN_PER_CLASS} are "
            "needed; ask about more things, or hold out by group"
        )


def refuse_small(y: npt.NDArray[np.int64], names: Mapping[int, str] | None = None) -> None:
    """Raise DatasetError where a class has fewer than :data:`MIN_PER_CLASS` answers."""
    for value in (0, 1):
        count = int((y == value).sum())
        if count < MIN_PER_CLASS:
            name = (names or {}).get(value, f"class {value}")
            raise DatasetError(
                f"only {count} answers are {name}; a number from fewer than {MIN_PER_CLASS} would "
                "mean nothing: ask more questions, or choose other classes"
            )


def check_no_leak(groups: npt.NDArray[np.str_], train: Index, test: Index) -> None:
    """Refuse a split that has the same entity on both sides.

    Raises:
        LeakError: the message names some of the entities.
    """
    shared = np.intersect1d(groups[train], groups[test])
    if len(shared):
        raise LeakError(
            f"{len(shared)} entities are in the training and in the test part "
            f"({', '.join(map(str, shared[:3]))}{', ...' if len(shared) > 3 else ''}); "
            "split by group"
        )


def _sides(
    y: npt.NDArray[np.int64], units: npt.NDArray[np.str_], folds: int, seed: int
) -> list[tuple[Index, Index]]:
    names = np.unique(units)
    if folds < len(names):
        return _group_folds(y, units, folds, seed)
    # Left alone, the splitter might put two into one part and none into another.
    return [(np.flatnonzero(units != name), np.flatnonzero(units == name)) for name in names]


def _group_folds(
    y: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], folds: int, seed: int
) -> list[tuple[Index, Index]]:
    require("detect", "sklearn")
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(y), 1)), y, groups))
