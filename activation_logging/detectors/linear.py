"""Detectors that project a state on one direction: logistic regression and class means."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from activation_logging.detectors.calibration import Calibrated, Scorer
from activation_logging.detectors.registry import Detector

if TYPE_CHECKING:
    from activation_logging.arrays import AnyFloats

LINEAR_C = 0.01
"""Inverse L2 penalty of the linear probe on standardised states. With as many dimensions as
answers, less of a penalty only fits noise; see docs/detectors.md for the comparison."""


class LinearProbe(LogisticRegression):
    """Logistic regression on standardised states (Alain and Bengio 2016, arXiv:1610.01644).

    After fitting, ``coef_`` ``[1, hidden]`` and ``intercept_`` ``[1]`` apply to raw states: the
    standardisation is folded into them.
    """

    coef_: npt.NDArray[np.float64]
    intercept_: npt.NDArray[np.float64]
    reads = np.float32
    """What :func:`.fit_score` hands it: the scaler sums in double precision by itself."""

    def __init__(self, C: float = LINEAR_C) -> None:
        super().__init__(C=C, max_iter=2000)

    def fit(self, X: AnyFloats, y: npt.NDArray[np.int64]) -> LinearProbe:
        """Fit on states ``[n, hidden]`` and classes 0 and 1, ``[n]``."""
        scaler = StandardScaler().fit(X)
        # Standardised, half the bytes are enough, and twice as fast.
        super().fit(scaler.transform(X).astype(np.float32, copy=False), y)
        self.coef_ = self.coef_.astype(np.float64) / scaler.scale_
        self.intercept_ = self.intercept_ - self.coef_ @ scaler.mean_
        return self

    def decision_function(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        """Log-odds of class 1, ``[n]``; NaN for a state that is not finite."""
        return np.asarray(X, np.float64) @ self.coef_[0] + self.intercept_[0]


class MassMeanProbe(Scorer):
    """Projection on the difference of the class means (Marks and Tegmark 2023, arXiv:2310.06824).

    ``direction_`` is mean(positive) - mean(negative). With ``whiten`` it is multiplied by the
    inverse of the covariance within the classes (Ledoit and Wolf's, of standardised states): the
    paper's variant for test data distributed as the training data. scikit-learn's linear
    discriminant analysis shrinks the covariance of each class by itself instead, which gives other
    numbers.
    """

    def __init__(self, whiten: bool = False) -> None:
        self.whiten = whiten

    def fit(self, X: AnyFloats, y: npt.NDArray[np.int64]) -> MassMeanProbe:
        """Fit on states ``[n, hidden]`` and classes 0 and 1, ``[n]``."""
        X = np.asarray(X, np.float64)
        self.classes_ = np.array([0, 1])
        means = np.stack([X[y == 0].mean(axis=0), X[y == 1].mean(axis=0)])
        self.direction_ = means[1] - means[0]
        if self.whiten:
            # Shrinking pulls variances together, which only makes sense where they are alike.
            scale = StandardScaler().fit(X).scale_
            within = ledoit_wolf((X - means[y]) / scale, assume_centered=True)[0]
            inverse = solve(within, self.direction_ / scale, assume_a="pos") / scale
            # In units of the projection's spread within a class, whatever the sample size.
            self.direction_ = inverse / np.sqrt(inverse @ self.direction_)
        return self

    def decision_function(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        """The projection, ``[n]``."""
        return np.asarray(X, np.float64) @ self.direction_


LINEAR_PROBE = Detector(
    "linear_probe",
    "Linear probe",
    "Alain & Bengio 2016, arXiv:1610.01644",
    "state",
    lambda _seed: LinearProbe(),
    in_curves=True,
)
LINEAR_PROBE_LAST = replace(
    LINEAR_PROBE,
    name="linear_probe_last",
    title="Linear probe, last layer",
    where="last",
    in_curves=False,
)
LINEAR_PROBE_BEFORE = replace(
    LINEAR_PROBE,
    name="linear_probe_before",
    title="Linear probe, before the answer",
    where="before",
    in_curves=False,
)
MASS_MEAN = Detector(
    "mass_mean",
    "Mass-mean probe",
    "Marks & Tegmark 2023, arXiv:2310.06824",
    "state",
    lambda _seed: Calibrated(MassMeanProbe()),
    fit_with=("groups",),
)
MASS_MEAN_WHITENED = replace(
    MASS_MEAN,
    name="mass_mean_whitened",
    title="Mass-mean probe, whitened",
    make=lambda _seed: Calibrated(MassMeanProbe(whiten=True)),
)
