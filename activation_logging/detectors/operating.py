"""Calibration and thresholds of a probe, from log-odds of examples that it was not fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.calibration import logistic_curve
from activation_logging.detectors.metrics import (
    FALSE_POSITIVE_RATES,
    Bootstrap,
    Interval,
    expected_calibration_error,
)
from activation_logging.detectors.saved_probe import Calibration, OperatingPoint, probability_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.arrays import Floats, Ints


SMALLEST_SLOPE = 1e-3
"""Of a calibration: log-odds that say nothing must not turn the ranking around."""


def calibrate(log_odds: Floats, y: Ints) -> Calibration:
    """The logistic curve through held-out log-odds ``[n]`` and classes ``[n]`` (Platt 1999).

    Where they point the wrong way, the probability is about the share of positives everywhere.
    """
    curve = logistic_curve().fit(log_odds[:, None], y)
    scaler, line = curve[0], curve[-1]
    a = float(line.coef_[0, 0] / scaler.scale_[0])
    b = float(line.intercept_[0] - a * scaler.mean_[0])
    if a < SMALLEST_SLOPE:
        share = y.mean()
        a, b = SMALLEST_SLOPE, float(np.log(share / (1 - share)))
    return Calibration(a, b)


def calibration_error(
    log_odds: Floats, y: Ints, folds: Sequence[Ints], bootstrap: Bootstrap
) -> Interval:
    """Expected calibration error where each fold is calibrated on the others.

    Args:
        log_odds: of examples as part of the test side, ``[n]``.
        y: classes, ``[n]``.
        folds: the examples of each test side.
        bootstrap: gives the interval.
    """
    probability = np.empty(len(y))
    for part in folds:
        others = np.setdiff1d(np.arange(len(y)), part)
        probability[part] = probability_of(log_odds[part], calibrate(log_odds[others], y[others]))
    return bootstrap.interval(lambda w: expected_calibration_error(y, probability, w))


def operating_points(
    y: Ints,
    probability: Floats,
    bootstrap: Bootstrap,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> tuple[OperatingPoint, ...]:
    """For each rate the lowest threshold that at most so many of the negatives reach.

    Args:
        y: classes, ``[n]``.
        probability: of examples that the probe was not fitted on, ``[n]``.
        bootstrap: gives the intervals of the recall.
        rates: shares of false positives. With fewer than ``1 / rate`` negatives, none passes.
    """
    return tuple(_point(y, probability, bootstrap, rate) for rate in rates)


def _point(y: Ints, p: Floats, bootstrap: Bootstrap, rate: float) -> OperatingPoint:
    negatives = np.sort(p[y == 0])[::-1]
    passing, threshold = int(rate * len(negatives) * (1 + 1e-12)), 0.0
    if passing < len(negatives):
        # The highest negative that must stay below.
        bound = negatives[passing]
        above = p[p > bound]
        threshold = float((bound + (above.min() if len(above) else 1.0)) / 2)
        # Two numbers without a third between them.
        threshold = max(threshold, float(np.nextafter(bound, 2.0)))
    found = (p >= threshold) & (y == 1)

    def recall(weights: npt.NDArray[np.floating[Any]]) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ found) / (weights @ y))

    return OperatingPoint(rate, threshold, bootstrap.interval(recall)._asdict())
