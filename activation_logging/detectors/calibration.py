"""From a score to a probability: a logistic curve with two parameters (Platt 1999)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

PARTS = 5
"""Of the training answers, each scored by a fit on the others, for a :class:`Calibrated`."""


def logistic_curve() -> Pipeline:
    """A classifier of a number or two, ``[n, k]``; which way they point is learned too."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1e3, max_iter=1000))


class Scorer(ClassifierMixin, BaseEstimator):
    """A classifier of classes 0 and 1 by a decision value alone, to be :class:`Calibrated`."""

    def decision_function(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """A value that rises with the likelihood of class 1, ``[n]``."""
        raise NotImplementedError

    def predict(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """1 where the decision value is positive, ``[n]``."""
        return (self.decision_function(X) > 0).astype(np.int64)


def held_out_values(
    estimator: Any,
    X: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    groups: npt.NDArray[Any],
    parts: int,
    **fit_with: npt.NDArray[Any],
) -> npt.NDArray[np.float64]:
    """The decision value of each answer by fits on answers about other things, ``[n]``.

    Args:
        estimator: a classifier with ``decision_function``.
        X: ``[n, hidden]``.
        y: classes, ``[n]``.
        groups: what each answer is about, ``[n]``.
        parts: how many, or as many as there are things.
        fit_with: what else its ``fit`` takes by name, ``[n]`` each.

    Returns:
        NaN where the others are of one class.
    """
    values = np.full(len(y), np.nan)
    count = min(parts, len(np.unique(groups)))
    if count < 2:
        return values
    for train, test in StratifiedGroupKFold(count, shuffle=True, random_state=0).split(
        X, y, groups
    ):
        if len(np.unique(y[train])) > 1:
            own = {name: given[train] for name, given in fit_with.items()}
            fitted = clone(estimator).fit(X[train], y[train], **own)
            values[test] = fitted.decision_function(X[test])
    return values


class Calibrated(ClassifierMixin, BaseEstimator):
    """Makes probabilities of the decision values of another classifier.

    With as many dimensions as answers, a direction or a covariance fits its own training answers
    too well: a curve through those would be far too sure of itself. So the curve is fitted on
    decision values of answers that were held out, in five parts. Answers about one thing are in one
    part: of several samples of an answer each would know the others. The parts are shuffled:
    answers come in order of their kind, and one kind says little of another.

    scikit-learn's CalibratedClassifierCV does the same, but smooths the targets, which costs
    calibration on few answers: see docs/detectors.md. Where too few things are asked about to hold
    one out, each answer counts as one.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(
        self,
        X: npt.NDArray[np.float64],
        y: npt.NDArray[np.int64],
        groups: npt.NDArray[Any] | None = None,
        **fit_with: npt.NDArray[Any],
    ) -> Calibrated:
        """Fit on answers.

        Args:
            X: ``[n, hidden]``.
            y: classes, ``[n]``.
            groups: what each answer is about, ``[n]``; without it each about something else.
            fit_with: for the estimator's fit.
        """
        alone = np.arange(len(y))
        of_groups = alone if groups is None else groups
        values = held_out_values(self.estimator, X, y, of_groups, PARTS, **fit_with)
        there = np.isfinite(values)
        if len(np.unique(y[there])) < 2:  # too few things to hold one out
            values = held_out_values(self.estimator, X, y, alone, PARTS, **fit_with)
            there = np.isfinite(values)
        self.curve_ = logistic_curve().fit(values[there, None], y[there])
        self.estimator_ = clone(self.estimator).fit(X, y, **fit_with)
        self.classes_ = self.curve_.classes_
        return self

    def predict_proba(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities of both classes, ``[n, 2]``."""
        return self.curve_.predict_proba(self.estimator_.decision_function(X)[:, None])

    def predict(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The likelier class, ``[n]``."""
        return self.curve_.predict(self.estimator_.decision_function(X)[:, None])
