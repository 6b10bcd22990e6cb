"""Metrics with intervals: AUROC, AUPRC, recall at a false positive rate, accuracy, calibration.

Every metric is computed for a matrix of example weights at once, ``[resamples, n]``: a row of ones
gives the metric, rows of group counts give its bootstrap distribution. AUROC, AUPRC and recall
compare answers within a test fold only, since scores of models fitted on different parts need not
share a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 10
_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A metric with its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


def auroc(y: Ints, score: Floats, weights: Floats, folds: Sequence[Ints]) -> Floats:
    """Probability that a positive scores above a negative of the same fold, ``[resamples]``.

    Ties count one half (Mann and Whitney 1947). NaN where a resample holds no such pair.
    """
    above = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for part in folds:
        positive, negative = _by_rising_score(y[part], score[part], weights[:, part])
        below = np.cumsum(negative, axis=1) - negative
        above += (positive * (below + negative / 2)).sum(axis=1)
        pairs += positive.sum(axis=1) * negative.sum(axis=1)
    return _divide(above, pairs)


def auprc(y: Ints, score: Floats, weights: Floats, folds: Sequence[Ints]) -> Floats:
    """Average precision of each fold, weighted by its positives, ``[resamples]``.

    The sum over thresholds of (recall step) x precision, without interpolation, as
    ``sklearn.metrics.average_precision_score``.
    """
    total = np.zeros(len(weights))
    positives = np.zeros(len(weights))
    for part in folds:
        positive, negative = _by_rising_score(y[part], -score[part], weights[:, part])
        found = np.cumsum(positive, axis=1)
        precision = _divide(found, found + np.cumsum(negative, axis=1), empty=0.0)
        total += (positive * precision).sum(axis=1)
        positives += positive.sum(axis=1)
    return _divide(total, positives)


def recall_at_fpr(
    y: Ints, score: Floats, weights: Floats, folds: Sequence[Ints], fpr: float = 0.1
) -> Floats:
    """Share of positives found where at most ``fpr`` of the negatives are flagged, ``[resamples]``.

    In each fold, the highest recall of a threshold whose false positive rate is at most ``fpr``;
    the folds are weighted by their positives. A fold with fewer than ``1 / fpr`` negatives lets no
    false positive pass, which makes this a lower bound. NaN where a resample holds no positive, or
    no negative.
    """
    found = np.zeros(len(weights))
    positives = np.zeros(len(weights))
    for part in folds:
        positive, negative = _by_rising_score(y[part], -score[part], weights[:, part])
        total = negative.sum(axis=1)
        # Sums of weights such as 1/3 miss a round number by a little.
        allowed = np.cumsum(negative, axis=1) <= (fpr + 1e-9) * total[:, None]
        usable = total > 0
        found += usable * np.where(allowed, positive, 0.0).sum(axis=1)
        positives += usable * positive.sum(axis=1)
    return _divide(found, positives)


def accuracy(y: Ints, predicted: Ints, weights: Floats) -> Floats:
    """Share of the answers whose class was predicted, ``[resamples]``."""
    return _divide(weights @ (predicted == y).astype(np.float64), weights.sum(axis=1))


def expected_calibration_error(
    y: Ints, probability: Floats, weights: Floats, bins: int = CALIBRATION_BINS
) -> Floats:
    """Mean distance of probability and frequency over equally wide bins, ``[resamples]``.

    Guo et al. 2017, arXiv:1706.04599, on the probability of the positive class.
    """
    gap = np.zeros(len(weights))
    for inside in calibration_bins(probability, bins):
        gap += np.abs(weights[:, inside] @ (probability[inside] - y[inside]))
    return _divide(gap, weights.sum(axis=1))


def calibration_bins(probability: Floats, bins: int = CALIBRATION_BINS) -> list[Ints]:
    """The indices in each of ``bins`` equally wide bins of probability."""
    bin_of = np.clip((probability * bins).astype(np.int64), 0, bins - 1)
    return [np.flatnonzero(bin_of == number) for number in range(bins)]


def best_f1_threshold(y: Ints, probability: Floats) -> float:
    """The probability from which on predicting the positive class gives the highest F1.

    Halfway between two neighbouring scores; the lowest of several equally good ones.
    """
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    found = np.cumsum(y[order])
    f1 = 2 * found / (np.arange(1, len(y) + 1) + y.sum())
    # A threshold cannot fall between equal scores.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float((ranked[best] + (ranked[best + 1] if best + 1 < len(ranked) else 0.0)) / 2)


class Bootstrap:
    """Resamples whole groups, in the same way for every metric, so that differences pair.

    Answers about one entity are not independent of each other; entities are.

    Args:
        groups: the entity of each answer, ``[n]``.
        draws: number of resamples.
        seed: the same seed gives the same resamples.
    """

    def __init__(self, groups: npt.NDArray[np.str_], *, draws: int = 1000, seed: int = 0) -> None:
        names, member = np.unique(groups, return_inverse=True)
        rng = np.random.default_rng(seed)
        even = np.full(len(names), 1 / len(names))
        counts = rng.multinomial(len(names), even, size=draws).astype(np.float32)
        self._counts, self._member = counts, member

    def interval(self, metric: Callable[[Floats], Floats]) -> Interval:
        """The metric with its interval; ``metric`` maps ``[resamples, n]`` to ``[resamples]``."""
        point = float(metric(np.ones((1, len(self._member))))[0])
        step = max(1, _CHUNK // len(self._member))
        drawn = np.concatenate(
            [
                metric(self._counts[start : start + step][:, self._member].astype(np.float64))
                for start in range(0, len(self._counts), step)
            ]
        )
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Interval(point, float("nan"), float("nan"))
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(point, float(low), float(high))


def _by_rising_score(y: Ints, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and negatives at each distinct score, ``[resamples, distinct]``."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * y[order], starts, axis=1)
    return positive, np.add.reduceat(ordered * (1 - y[order]), starts, axis=1)


def _divide(top: Floats, bottom: Floats, empty: float = np.nan) -> Floats:
    return np.divide(top, bottom, out=np.full(np.shape(top), empty), where=bottom > 0)
