"""From a score to a probability: a logistic curve with two parameters (Platt 1999)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


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


class Calibrated(ClassifierMixin, BaseEstimator):
    """Makes probabilities of the decision values of another classifier.

    With as many dimensions as answers, a direction or a covariance fits its own training answers
    too well: a curve through those would be far too sure of itself. So the curve is fitted on
    decision values of answers that were held out, in five parts. The parts are shuffled: answers
    come in order of their kind, and one kind says little of another.

    scikit-learn's CalibratedClassifierCV does the same, but smooths the targets, which costs
    calibration on few answers: see docs/detectors.md.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(
        self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64], **fit_with: npt.NDArray[Any]
    ) -> Calibrated:
        """Fit on ``[n, hidden]`` and classes ``[n]``; ``fit_with`` is for the estimator's fit."""
        parts = StratifiedKFold(5, shuffle=True, random_state=0)
        held_out = cross_val_predict(
            self.estimator, X, y, cv=parts, method="decision_function", params=fit_with
        )
        self.curve_ = logistic_curve().fit(held_out[:, None], y)
        self.estimator_ = clone(self.estimator).fit(X, y, **fit_with)
        self.classes_ = self.curve_.classes_
        return self

    def predict_proba(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities of both classes, ``[n, 2]``."""
        return self.curve_.predict_proba(self.estimator_.decision_function(X)[:, None])

    def predict(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The likelier class, ``[n]``."""
        return self.curve_.predict(self.estimator_.decision_function(X)[:, None])
