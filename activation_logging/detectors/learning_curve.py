"""How the AUROC grows with the number of things that a detector was fitted on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.metrics import Bootstrap, Interval, auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.refit import Refit
    from activation_logging.detectors.splits import Fold, Index

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Of the groups of each training side."""

LEAST = 5
"""Fewer answers of a class than this are not fitted on."""


class Point(NamedTuple):
    """Mean numbers of groups and answers in the training sides, and the AUROC on the test sides."""

    groups: float
    answers: float
    auroc: Interval


def learning_curve(
    examples: Examples,
    refit: Refit,
    folds: Sequence[Fold],
    bootstrap: Bootstrap,
    *,
    seed: int = 0,
) -> list[Point]:
    """Fit on a part of each training side's groups, and score the whole test side.

    Parts are nested: a larger one holds the smaller. Those with less than :data:`LEAST` answers of
    a class in any fold are left out. The place in the network stays the one that the whole
    training side chose.

    Args:
        examples: the labelled answers.
        refit: the detector.
        folds: the splits.
        bootstrap: resamples the groups.
        seed: the same seed gives the same parts.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(np.unique(examples.groups[fold.train])) for fold in folds]
    tests = [fold.test for fold in folds]
    points = []
    for share in SHARES:
        parts, counts = [], []
        for fold, order in zip(folds, orders, strict=True):
            count = max(1, round(share * len(order)))
            parts.append(_only(examples, fold.train, order[:count]))
            counts.append(count)
        if min(np.bincount(examples.y[part], minlength=2).min() for part in parts) < LEAST:
            continue
        smaller = [fold._replace(train=part) for fold, part in zip(folds, parts, strict=True)]
        scores = refit.held_out(examples.y, smaller)
        points.append(
            Point(
                groups=float(np.mean(counts)),
                answers=float(np.mean([len(part) for part in parts])),
                auroc=bootstrap.interval(partial(auroc, examples.y, scores, folds=tests)),
            )
        )
    return points


def _only(examples: Examples, rows: Index, groups: npt.NDArray[np.str_]) -> Index:
    return rows[np.isin(examples.groups[rows], groups)]
