"""The probe and the log-probability together: does either know what the other does not?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from activation_logging.detectors.calibration import held_out_values, logistic_curve
from activation_logging.detectors.linear import LinearProbe
from activation_logging.detectors.registry import Detector

if TYPE_CHECKING:
    from activation_logging.arrays import AnyFloats

PARTS = 4
"""Of the training answers, each scored by a probe that was fitted on the others."""


class StackedProbe(ClassifierMixin, BaseEstimator):
    """Stacked generalisation (Wolpert 1992) of a linear probe and other numbers.

    A logistic regression of the probe's log-odds and the numbers. Its training answers have
    log-odds of probes that saw no answer about the same thing, so a probe that fits its own answers
    too well is not trusted for it.

    Args:
        numbers: how many of the last columns are no part of the state.
    """

    def __init__(self, numbers: int = 1) -> None:
        self.numbers = numbers

    def fit(
        self, X: AnyFloats, y: npt.NDArray[np.int64], groups: npt.NDArray[np.str_]
    ) -> StackedProbe:
        """Fit on ``[n, hidden + numbers]``, classes ``[n]``, and what each answer is about."""
        states, numbers = self._divide(X)
        log_odds = held_out_values(LinearProbe(), states, y, groups, PARTS)
        there = np.isfinite(log_odds)
        self.curve_ = logistic_curve().fit(np.column_stack([log_odds, numbers])[there], y[there])
        self.probe_ = LinearProbe().fit(states, y)
        self.classes_ = self.curve_.classes_
        return self

    def predict_proba(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        """Probabilities of both classes, ``[n, 2]``."""
        states, numbers = self._divide(X)
        both = np.column_stack([self.probe_.decision_function(states), numbers])
        return np.asarray(self.curve_.predict_proba(both))

    def predict(self, X: AnyFloats) -> npt.NDArray[np.int64]:
        """The likelier class, ``[n]``."""
        return (self.predict_proba(X)[:, 1] > 0.5).astype(np.int64)

    def _divide(self, X: AnyFloats) -> tuple[AnyFloats, AnyFloats]:
        return X[:, : -self.numbers], X[:, -self.numbers :]


STACKED = Detector(
    "stacked",
    "Linear probe and log-probability, stacked",
    "Wolpert 1992, Neural Networks 5",
    "state",
    lambda _seed: StackedProbe(),
    beside=("answer_logprob", "mean_logprob"),
    fit_with=("groups",),
    in_curves=True,
)
