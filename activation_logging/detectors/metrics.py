"""Metrics with intervals: AUROC, AUPRC, recall at few false positives, accuracy, calibration, risk.

Every metric is computed for a matrix of example weights at once, ``[resamples, n]``: a row of ones
gives the metric, rows of group counts give its bootstrap distribution. What ranks answers (AUROC,
AUPRC, recall, risk) compares them within a test fold only, since scores of models fitted on
different parts need not share a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.arrays import AnyFloats, Floats, Ints


CALIBRATION_BINS = 10
FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1)
"""At which recall is reported: what share of the negatives may be called positive."""
_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A metric with its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


def auroc(y: Ints, score: AnyFloats, weights: AnyFloats, folds: Sequence[Ints]) -> AnyFloats:
    """Probability that a positive scores above a negative of the same fold, ``[resamples]``.

    Ties count one half (Mann and Whitney 1947). NaN where a resample holds no such pair.
    """
    above = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for part in folds:
        positive, negative = part[y[part] == 1], part[y[part] == 0]
        own = weights.T[positive]
        ranked, below = _cumulated(score, weights, negative)
        first, last = (np.searchsorted(ranked, score[positive], side) for side in ("left", "right"))
        under = below[first] if (first == last).all() else (below[first] + below[last]) / 2
        above += (own * under).sum(axis=0, dtype=np.float64)
        pairs += own.sum(axis=0, dtype=np.float64) * below[-1]
    return _divide(above, pairs)


def auroc_over(
    y: Ints, score: AnyFloats, other: AnyFloats, weights: AnyFloats, folds: Sequence[Ints]
) -> AnyFloats:
    """The AUROC of one score less that of another, on the same resamples, ``[resamples]``."""
    return auroc(y, score, weights, folds) - auroc(y, other, weights, folds)


def plain_auroc(y: Ints, score: AnyFloats) -> float:
    """AUROC of one part, every answer counted once."""
    return float(auroc(y, score, np.ones((1, len(y))), [np.arange(len(y))])[0])


def auprc(y: Ints, score: AnyFloats, weights: AnyFloats, folds: Sequence[Ints]) -> AnyFloats:
    """Average precision of each fold, weighted by its positives, ``[resamples]``.

    The sum over thresholds of (recall step) x precision, without interpolation, as
    ``sklearn.metrics.average_precision_score``.
    """
    total = np.zeros(len(weights))
    positives = np.zeros(len(weights))
    for part in folds:
        positive, both = _by_rising_score(y[part], -score[part], weights.T[part])
        precision = _divide(np.cumsum(positive, axis=0), np.cumsum(both, axis=0), empty=0.0)
        total += (positive * precision).sum(axis=0)
        positives += positive.sum(axis=0, dtype=np.float64)
    return _divide(total, positives)


def recall_at_fpr(
    y: Ints, score: AnyFloats, weights: AnyFloats, folds: Sequence[Ints], fpr: float = 0.1
) -> AnyFloats:
    """Share of positives found where at most ``fpr`` of the negatives are flagged, ``[resamples]``.

    In each fold, the highest recall of a threshold whose false positive rate is at most ``fpr``;
    the folds are weighted by their positives. A fold with fewer than ``1 / fpr`` negatives lets no
    false positive pass, which makes this a lower bound. NaN where a resample holds no positive, or
    no negative.
    """
    found = np.zeros(len(weights))
    positives = np.zeros(len(weights))
    for part in folds:
        positive, negative = part[y[part] == 1], part[y[part] == 0]
        alarms, flagged = _cumulated(-score, weights, negative)
        ranked, passed = _cumulated(-score, weights, positive)
        # Sums of weights such as 1/3 miss a round number by a little.
        allowed = (flagged[1:] <= (fpr + 1e-9) * flagged[-1]).sum(axis=0)
        # What scores above the first negative that may not pass.
        above = np.searchsorted(ranked, np.append(alarms, np.inf), "left")[allowed]
        usable = flagged[-1] > 0
        found += usable * np.take_along_axis(passed, above[None], axis=0)[0]
        positives += usable * passed[-1]
    return _divide(found, positives)


def aurc(y: Ints, score: AnyFloats, weights: AnyFloats, folds: Sequence[Ints]) -> AnyFloats:
    """Area under the curve of risk against coverage, ``[resamples]``; less is better.

    Answers are kept in order of rising score. The risk is the share of positives among those that
    are kept, and the area its mean over all coverages (Geifman and El-Yaniv 2017,
    arXiv:1705.08500). Answers with equal scores are kept together. The folds are weighted by their
    answers.
    """
    area = np.zeros(len(weights))
    answers = np.zeros(len(weights))
    for part in folds:
        positive, kept = _by_rising_score(y[part], score[part], weights.T[part])
        risk = _divide(np.cumsum(positive, axis=0), np.cumsum(kept, axis=0), empty=0.0)
        area += (kept * risk).sum(axis=0)
        answers += kept.sum(axis=0, dtype=np.float64)
    return _divide(area, answers)


def risk_at_coverage(
    y: Ints, score: AnyFloats, folds: Sequence[Ints], coverage: AnyFloats
) -> npt.NDArray[np.float64]:
    """The risk among the answers of lowest score, ``[coverage]``: the curve of :func:`aurc`.

    Args:
        y: classes, ``[n]``.
        score: of each answer, ``[n]``.
        folds: within which the answers are ranked.
        coverage: shares of the answers to keep, above 0.
    """
    risk = np.zeros(len(coverage))
    for part in folds:
        positive, both = _by_rising_score(y[part], score[part], np.ones((len(part), 1)))
        kept = np.cumsum(both)
        # The fewest answers that are at least this share.
        at = np.searchsorted(kept, coverage * len(part) * (1 - 1e-12))
        risk += len(part) * (np.cumsum(positive) / kept)[at]
    return risk / sum(len(part) for part in folds)


def accuracy(y: Ints, predicted: Ints, weights: AnyFloats) -> AnyFloats:
    """Share of the answers whose class was predicted, ``[resamples]``."""
    return share((predicted == y).astype(np.float64), np.ones(len(y)), weights)


def share(values: AnyFloats, counts: AnyFloats, weights: AnyFloats) -> AnyFloats:
    """Mean of ``values`` ``[n]``, of which each counts ``counts`` ``[n]``, ``[resamples]``."""
    return _divide(weights @ (values * counts), weights @ counts)


def expected_calibration_error(
    y: Ints, probability: AnyFloats, weights: AnyFloats, bins: int = CALIBRATION_BINS
) -> AnyFloats:
    """Mean distance of probability and frequency over equally wide bins, ``[resamples]``.

    Guo et al. 2017, arXiv:1706.04599, on the probability of the positive class.
    """
    gap = np.zeros(len(weights))
    for inside in calibration_bins(probability, bins):
        gap += np.abs(weights[:, inside] @ (probability[inside] - y[inside]))
    return _divide(gap, weights.sum(axis=1))


def calibration_bins(probability: AnyFloats, bins: int = CALIBRATION_BINS) -> list[Ints]:
    """The indices in each of ``bins`` equally wide bins of probability."""
    bin_of = np.clip((probability * bins).astype(np.int64), 0, bins - 1)
    return [np.flatnonzero(bin_of == number) for number in range(bins)]


def best_f1_threshold(y: Ints, probability: AnyFloats) -> float:
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
        weight: what each counts for, ``[n]``; 1 if left out.
    """

    def __init__(
        self,
        groups: npt.NDArray[np.str_],
        *,
        draws: int = 1000,
        seed: int = 0,
        weight: Floats | None = None,
    ) -> None:
        names, member = np.unique(groups, return_inverse=True)
        rng = np.random.default_rng(seed)
        even = np.full(len(names), 1 / len(names))
        # A column per resample: sorting answers then moves whole rows. Whole numbers below 2^24
        # and their halves are exact in half the bytes.
        counts = rng.multinomial(len(names), even, size=draws).astype(np.float32).T
        self._member, self._weight = member, weight
        step = max(1, _CHUNK // len(member))
        self._counts = [
            np.ascontiguousarray(counts[:, start : start + step]) for start in range(0, draws, step)
        ]

    def interval(self, *metrics: Callable[[AnyFloats], AnyFloats]) -> Interval:
        """The metric with its interval; it maps weights ``[resamples, n]`` to ``[resamples]``.

        Of several metrics, which are one figure under different draws of something else (a
        permutation, a split), the mean, with an interval that holds what all of them gave.
        """
        ones = np.ones((1, len(self._member)))
        point = float(np.mean([metric(self._weighted(ones))[0] for metric in metrics]))
        drawn = np.concatenate(
            [
                metric(self._weighted(counts[self._member].T))
                for metric in metrics
                for counts in self._counts
            ]
        )
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Interval(point, float("nan"), float("nan"))
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(point, float(low), float(high))

    def _weighted(self, counts: AnyFloats) -> AnyFloats:
        # Sums of such as 1/3 need double precision.
        return counts if self._weight is None else counts * self._weight


def _cumulated(score: AnyFloats, weights: AnyFloats, rows: Ints) -> tuple[AnyFloats, AnyFloats]:
    """The rising scores of some answers, and the weight of the first 0, 1, ... of them.

    ``[rows]`` and ``[rows + 1, resamples]``.
    """
    rising = rows[np.argsort(score[rows], kind="stable")]
    total = np.zeros((len(rows) + 1, len(weights)), weights.dtype)
    np.cumsum(weights.T[rising], axis=0, out=total[1:])
    return score[rising], total


def _by_rising_score(y: Ints, score: AnyFloats, weights: AnyFloats) -> tuple[AnyFloats, AnyFloats]:
    """Weight of the positives and of all at each distinct score, ``[distinct, resamples]``.

    ``weights`` is ``[n, resamples]`` here.
    """
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    both = weights[order]
    positive = both * y[order, None].astype(both.dtype)
    if len(starts) < len(ranked):
        positive, both = (np.add.reduceat(each, starts, axis=0) for each in (positive, both))
    return positive, both


def _divide(top: AnyFloats, bottom: AnyFloats, empty: float = np.nan) -> AnyFloats:
    out = np.full(np.shape(top), empty)
    return np.divide(top, bottom, out=out, where=bottom > 0, dtype=np.float64)
