"""Thresholds that come with a promise, and whether the promise is kept on answers held out.

Conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814). The promise is about a new
thing that somebody asks about: on average no more than a share ``alpha`` of its right answers is
flagged, or of its wrong ones missed. Groups, not answers, are what is drawn independently, so a
group's share is the loss. With one answer to a group this is split conformal prediction.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.metrics import Bootstrap, Interval, share
from activation_logging.detectors.splits import make_trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.arrays import Floats
    from activation_logging.dataset import Examples
    from activation_logging.detectors.refit import Refit
    from activation_logging.detectors.splits import Fold, Index, Trial

ALPHAS = (0.05, 0.1, 0.2)
SPLITS_PER_FOLD = 2
"""How often a training side is cut anew into a part to fit and a part to calibrate on."""

CALIBRATED_ON = 1 / 3
"""Share of a training side's groups that the threshold comes from."""

Mistake = Literal["flagged", "missed"]


class Promise(NamedTuple):
    """On average at most a share ``alpha`` of one class is mistaken, and what came of it.

    Attributes:
        mistake: what is rare: right answers ``flagged``, or wrong ones ``missed``.
        alpha: the share that was promised.
        share: the share in the groups that were held out, on average over the splits.
        told: the share of the other class that the same thresholds tell rightly.
        splits: number of splits.
        groups: the fewest groups that a threshold came from.
        without_threshold: splits with too few groups to promise this. Nothing is flagged there,
            or everything, so that the promise is kept and tells nothing.
    """

    mistake: Mistake
    alpha: float
    share: Interval
    told: Interval
    splits: int
    groups: int
    without_threshold: int

    @property
    def is_kept(self) -> bool:
        """Whether what was found agrees with the promise: the interval is not all above it."""
        return self.share.low <= self.alpha


class Cut(NamedTuple):
    """The training side of a fold, cut into groups to fit on and groups to calibrate on.

    The place in the network is chosen by ``trial``, within the part to fit on.
    """

    fold: int
    fit: Index
    calibration: Index
    trial: Trial


class _Split(NamedTuple):
    """Scores ``[calibration]`` and ``[test]`` by a model that was fitted on neither."""

    calibration: Index
    test: Index
    calibration_scores: Floats
    test_scores: Floats


def calibration_cuts(examples: Examples, folds: Sequence[Fold], *, seed: int = 0) -> list[Cut]:
    """Cut each training side several times.

    Cuts are left out of which a part came out with one class.

    Args:
        examples: the labelled answers.
        folds: the splits.
        seed: the same seed gives the same cuts.
    """
    rng = np.random.default_rng(seed)
    return [
        cut
        for number, fold in enumerate(folds)
        for _ in range(SPLITS_PER_FOLD)
        if (cut := _cut(examples, number, fold, rng, seed)) is not None
    ]


def conformal_promises(
    examples: Examples,
    refit: Refit,
    cuts: Sequence[Cut],
    folds: Sequence[Fold],
    bootstrap: Bootstrap,
) -> list[Promise]:
    """Calibrate thresholds inside each training side, and count the mistakes on its test side.

    Args:
        examples: the labelled answers.
        refit: the detector, with the features of each cut at the place that its part to fit on has
            chosen. So neither the groups to calibrate on nor those to test on have a say in it.
        cuts: see :func:`calibration_cuts`.
        folds: the splits.
        bootstrap: resamples the groups.

    Returns:
        None at all without a cut: nothing was promised, so nothing was broken.
    """
    splits = []
    for number, (fold, fit, calibration, _) in enumerate(cuts):
        test = folds[fold].test
        scores = refit.score(number, examples.y, fit, np.concatenate([calibration, test]))
        count = len(calibration)
        splits.append(_Split(calibration, test, scores[:count], scores[count:]))
    if not splits:
        return []
    return [
        _promise(examples, splits, bootstrap, mistake, alpha)
        for mistake in ("flagged", "missed")
        for alpha in ALPHAS
    ]


def conformal_threshold(scores: Floats, groups: npt.NDArray[np.str_], alpha: float) -> float:
    """The lowest score that at most a share ``alpha`` of a new group is expected to lie above.

    Args:
        scores: of answers of one class, ``[n]``.
        groups: what each is about, ``[n]``. The groups are drawn independently of each other, and
            a new one in the same way.
        alpha: the share.

    Returns:
        The threshold; infinity where there are fewer than 1 / alpha - 1 groups.
    """
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    falling = np.argsort(-scores, kind="stable")
    ranked = scores[falling]
    above = np.cumsum(1 / sizes[member[falling]])
    # Of equal scores none lies above the others.
    first = np.searchsorted(-ranked, -ranked, side="left")
    loss = np.where(first > 0, above[first - 1], 0.0)
    allowed = np.flatnonzero(loss + 1 <= alpha * (len(names) + 1) + 1e-9)
    return float(ranked[allowed[-1]]) if len(allowed) else float("inf")


def _cut(
    examples: Examples, number: int, fold: Fold, rng: np.random.Generator, seed: int
) -> Cut | None:
    y, groups = examples.y, examples.groups
    names = rng.permutation(np.unique(groups[fold.train]))
    inside = np.isin(groups[fold.train], names[: round(CALIBRATED_ON * len(names))])
    fit, calibration = fold.train[~inside], fold.train[inside]
    trial = make_trial(y, groups, fit, seed)
    if trial is None or len(np.unique(y[calibration])) < 2:
        return None
    return Cut(number, fit, calibration, trial)


def _promise(
    examples: Examples,
    splits: Sequence[_Split],
    bootstrap: Bootstrap,
    mistake: Mistake,
    alpha: float,
) -> Promise:
    # What is missed lies low: turned round, the mistake is to lie above the threshold.
    sign, of = (1, 0) if mistake == "flagged" else (-1, 1)
    y, groups = examples.y, examples.groups
    above, tested = np.zeros(len(y)), np.zeros(len(y))
    thresholds, counts = [], []
    for split in splits:
        rows = y[split.calibration] == of
        names = groups[split.calibration][rows]
        threshold = conformal_threshold(sign * split.calibration_scores[rows], names, alpha)
        above[split.test] += sign * split.test_scores > threshold
        tested[split.test] += 1
        thresholds.append(threshold)
        counts.append(len(np.unique(names)))
    often = np.divide(above, tested, out=np.zeros_like(above), where=tested > 0)
    mistaken = (y == of) & (tested > 0)
    _, member, sizes = np.unique(groups[mistaken], return_inverse=True, return_counts=True)
    weight = np.zeros(len(y))
    weight[mistaken] = 1 / sizes[member]
    return Promise(
        mistake=mistake,
        alpha=alpha,
        share=bootstrap.interval(partial(share, often, weight)),
        told=bootstrap.interval(partial(share, often, ((y != of) & (tested > 0)).astype(float))),
        splits=len(splits),
        groups=min(counts, default=0),
        without_threshold=int(np.isinf(thresholds).sum()),
    )
