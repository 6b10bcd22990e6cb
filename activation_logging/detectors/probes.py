"""Detectors that read one state of the network: ``X`` is ``[n, hidden]``, ``y`` 0 or 1.

All are scikit-learn classifiers. Those that give a distance or a projection turn it into a
probability with a logistic curve fitted on the training part (Platt 1999).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve, solve_triangular
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler, normalize

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]

LINEAR_C = 0.01
"""Inverse L2 penalty of the linear probe on standardised states. With as many dimensions as
answers, less of a penalty only fits noise; see docs/detectors.md for the comparison."""


class _Probe(ClassifierMixin, BaseEstimator):
    """What all share: two classes, and probabilities from :meth:`_positive`."""

    def fit(self, X: Floats, y: npt.NDArray[np.int64]) -> Any:
        """Fit on states ``[n, hidden]`` and classes 0 and 1, ``[n]``."""
        self.classes_ = np.array([0, 1])
        self.n_features_in_ = X.shape[1]
        self._fit(np.asarray(X, np.float64), np.asarray(y))
        return self

    def _calibrate(
        self,
        X: npt.NDArray[np.float64],
        y: npt.NDArray[np.int64],
        score: Callable[[Any, npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    ) -> None:
        """Set ``curve_`` from scores of answers that were not fitted, in five parts.

        With as many dimensions as answers, a direction or a covariance fits its own training
        answers too well: a curve through those would be far too sure of itself. The parts are
        shuffled: answers come in order of their kind, and one kind says little of another.
        """
        scores = np.zeros(len(y))
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
            part = clone(self)
            part._fit_score(X[train], y[train])
            scores[test] = score(part, X[test])
        self.curve_ = LogisticCurve().fit(scores, y)

    def predict_proba(self, X: Floats) -> npt.NDArray[np.float64]:
        """Probabilities of both classes, ``[n, 2]``."""
        positive = self._positive(np.asarray(X, np.float64))
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Floats) -> npt.NDArray[np.int64]:
        """The likelier class of each row, ``[n]``."""
        return (self.predict_proba(X)[:, 1] > 0.5).astype(np.int64)

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _fit_score(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        raise NotImplementedError

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        raise NotImplementedError


class LinearProbe(_Probe):
    """Logistic regression on standardised states (Alain and Bengio 2016, arXiv:1610.01644).

    After fitting, ``weight_`` ``[hidden]`` and ``bias_`` give the log-odds of a raw state ``x``
    as ``weight_ @ x + bias_``; the standardisation is folded in.
    """

    def __init__(self, C: float = LINEAR_C) -> None:
        self.C = C

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        scaler = StandardScaler().fit(X)
        # Standardised, half the bytes are enough, and twice as fast.
        scaled = scaler.transform(X).astype(np.float32)
        model = LogisticRegression(C=self.C, max_iter=2000).fit(scaled, y)
        self.weight_ = model.coef_[0].astype(np.float64) / scaler.scale_
        self.bias_ = float(model.intercept_[0] - self.weight_ @ scaler.mean_)

    def decision_function(self, X: Floats) -> npt.NDArray[np.float64]:
        """Log-odds of the positive class, ``[n]``."""
        return np.asarray(X, np.float64) @ self.weight_ + self.bias_

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sigmoid(self.decision_function(X))


class MassMeanProbe(_Probe):
    """Projection on the difference of the class means (Marks and Tegmark 2023, arXiv:2310.06824).

    ``direction_`` is mean(positive) - mean(negative). With ``whiten`` it is multiplied by the
    inverse of the covariance within the classes (Ledoit and Wolf's, of standardised states): the
    paper's variant for test data distributed as the training data, which is linear discriminant
    analysis.
    """

    def __init__(self, whiten: bool = False) -> None:
        self.whiten = whiten

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        self._calibrate(X, y, lambda part, rows: rows @ part.direction_)
        self._fit_score(X, y)

    def _fit_score(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        means = np.stack([X[y == 0].mean(axis=0), X[y == 1].mean(axis=0)])
        self.direction_ = means[1] - means[0]
        if self.whiten:
            # Shrinking pulls variances together, which only makes sense where they are alike.
            scale = StandardScaler().fit(X).scale_
            within = ledoit_wolf((X - means[y]) / scale, assume_centered=True)[0]
            inverse = solve(within, self.direction_ / scale, assume_a="pos") / scale
            # In units of the projection's spread within a class, whatever the sample size.
            self.direction_ = inverse / np.sqrt(inverse @ self.direction_)

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.curve_(X @ self.direction_)


class MahalanobisDetector(_Probe):
    """Distance from the negative class (Lee et al. 2018, arXiv:1807.03888).

    The squared distance to a Gaussian fitted on the negative class, less, with ``relative``, that
    to one fitted on all answers (Ren et al. 2023, arXiv:2209.15558), which takes out directions in
    which every answer varies. Covariances are Ledoit and Wolf's, of standardised states.
    """

    def __init__(self, relative: bool = True) -> None:
        self.relative = relative

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        self._calibrate(X, y, lambda part, rows: part.distance(rows))
        self._fit_score(X, y)

    def _fit_score(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        scale = StandardScaler().fit(X).scale_
        self.negative_ = _Gaussian(X[y == 0], scale)
        self.all_ = _Gaussian(X, scale) if self.relative else None

    def distance(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Squared distance, ``[n]``."""
        away = self.negative_.distance(X)
        return away if self.all_ is None else away - self.all_.distance(X)

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.curve_(self.distance(X))


class _Gaussian:
    """Mean and shrunk covariance, kept as its Cholesky factor: no inverse is ever formed."""

    def __init__(self, X: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> None:
        self.mean, self.scale = X.mean(axis=0), scale
        self.factor = cholesky(ledoit_wolf(X / scale)[0], lower=True)

    def distance(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        away = solve_triangular(self.factor, ((X - self.mean) / self.scale).T, lower=True)
        return np.asarray((away**2).sum(axis=0))


class NearestNeighbours(_Probe):
    """Share of positives among the nearest training states (Cover and Hart 1967).

    States are standardised and scaled to unit length, as for deep nearest neighbours (Sun et al.
    2022, arXiv:2204.06507); neighbours count by the inverse of their distance.
    """

    def __init__(self, neighbours: int = 20) -> None:
        self.neighbours = neighbours

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        self.scaler_ = StandardScaler().fit(X)
        count = min(self.neighbours, len(X))
        self.model_ = KNeighborsClassifier(count, weights="distance").fit(self._unit(X), y)

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(self.model_.predict_proba(self._unit(X))[:, 1])

    def _unit(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(normalize(self.scaler_.transform(X)))


class Saplma(_Probe):
    """A small network on one state (SAPLMA; Azaria and Mitchell 2023, arXiv:2304.13734).

    As in the paper: three hidden layers of 256, 128 and 64 with ReLU, Adam, five epochs. The
    states are standardised first, since layers differ in scale by orders of magnitude.
    """

    def __init__(
        self, hidden: tuple[int, ...] = (256, 128, 64), epochs: int = 5, seed: int = 0
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.seed = seed

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        self.scaler_ = StandardScaler().fit(X)
        self.model_ = MLPClassifier(
            self.hidden, max_iter=self.epochs, batch_size=min(32, len(X)), random_state=self.seed
        )
        with warnings.catch_warnings():
            # Five epochs are the method, not a failure to converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model_.fit(self.scaler_.transform(X), y)

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(self.model_.predict_proba(self.scaler_.transform(X))[:, 1])


class ScoreDetector(_Probe):
    """One number per answer, ``X`` is ``[n, 1]``; its direction is learned with its curve."""

    def _fit(self, X: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> None:
        self.curve_ = LogisticCurve().fit(X[:, 0], y)

    def _positive(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.curve_(X[:, 0])


class LogisticCurve:
    """A probability from a score: a logistic curve with two parameters (Platt 1999)."""

    def fit(self, score: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> LogisticCurve:
        """Fit on scores ``[n]`` and classes ``[n]``."""
        self.mean = float(score.mean())
        self.scale = float(score.std()) or 1.0
        model = LogisticRegression(C=1e3, max_iter=1000).fit(self._column(score), y)
        self.slope, self.offset = float(model.coef_[0, 0]), float(model.intercept_[0])
        return self

    def __call__(self, score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities of scores, both ``[n]``."""
        return sigmoid(self.slope * self._column(score)[:, 0] + self.offset)

    def _column(self, score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((score - self.mean) / self.scale)[:, None]


def sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``1 / (1 + exp(-x))`` without overflow."""
    return np.exp(-np.logaddexp(0, -x))
