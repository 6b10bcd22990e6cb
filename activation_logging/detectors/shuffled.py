"""What a probe reaches when its labels mean nothing: the floor that its own AUROC stands on.

As the permutation tests of Ojala and Garriga 2010 (JMLR 11). Labels are shuffled among answers to
the same kind of question, so a floor above one half is what the kind alone gives away.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.metrics import Bootstrap, Interval, auroc
from activation_logging.tags import BENCHMARK, DOMAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.refit import Refit
    from activation_logging.detectors.splits import Fold

SHUFFLES = 5
"""How often the labels are shuffled. Each costs one fit in each fold."""

KIND_TAGS = (BENCHMARK, DOMAIN)
"""Answers that agree in these are answers to one kind of question."""


class Shuffled(NamedTuple):
    """``auroc`` is the mean over the shuffles, and its interval holds what all of them gave.

    ``kinds`` counts the kinds of questions within which labels were shuffled, ``changed`` is the
    share of answers that got another label.
    """

    auroc: Interval
    shuffles: int
    kinds: int
    changed: float


def shuffled_labels(
    examples: Examples,
    refit: Refit,
    folds: Sequence[Fold],
    bootstrap: Bootstrap,
    *,
    seed: int = 0,
) -> Shuffled:
    """Shuffle the labels, fit again on each training side, score its test side.

    Args:
        examples: the labelled answers.
        refit: the detector.
        folds: the splits.
        bootstrap: resamples the groups.
        seed: the same seed gives the same shuffles.
    """
    rng = np.random.default_rng(seed)
    kinds = kinds_of(examples.tags)
    tests = [fold.test for fold in folds]
    drawn, changed = [], []
    for _ in range(SHUFFLES):
        y = shuffle_labels(examples.y, examples.groups, kinds, rng)
        changed.append(float((y != examples.y).mean()))
        drawn.append(partial(auroc, y, refit.held_out(y, folds), folds=tests))
    return Shuffled(
        bootstrap.interval(*drawn), SHUFFLES, len(np.unique(kinds)), float(np.mean(changed))
    )


def kinds_of(tags: Sequence[Mapping[str, str]]) -> npt.NDArray[np.str_]:
    """The kind of question of each answer, ``[n]``, as its tags say it."""
    return np.array(["\0".join(own.get(tag, "") for tag in KIND_TAGS) for own in tags])


def shuffle_labels(
    y: npt.NDArray[np.int64],
    groups: npt.NDArray[np.str_],
    kinds: npt.NDArray[np.str_],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Give each answer the label of another one of its kind, ``[n]``.

    The answers of one kind about one thing stay together: they are shuffled among themselves, and
    change labels as a whole with as many answers about another thing. So labels agree within a
    group as often as before, and a leak over groups would still show.
    """
    shuffled = y.copy()
    _, unit_of = np.unique(np.stack([kinds, groups]), axis=1, return_inverse=True)
    order = np.argsort(unit_of.reshape(-1), kind="stable")
    units = np.split(order, np.cumsum(np.bincount(unit_of.reshape(-1)))[:-1])
    alike: dict[tuple[str, int], list[npt.NDArray[np.int64]]] = {}
    for unit in units:
        alike.setdefault((str(kinds[unit[0]]), len(unit)), []).append(unit)
    for same in alike.values():
        for unit, other in zip(same, rng.permutation(len(same)), strict=True):
            shuffled[unit] = y[rng.permutation(same[other])]
    return shuffled
