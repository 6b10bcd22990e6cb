"""Detectors that compare a state with those of the training answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from activation_logging.detectors.calibration import Calibrated, Scorer
from activation_logging.detectors.registry import Detector

if TYPE_CHECKING:
    from activation_logging.arrays import AnyFloats

NEIGHBOURS = 20


class MahalanobisDetector(Scorer):
    """Distance from the negative class (Lee et al. 2018, arXiv:1807.03888).

    The squared distance to a Gaussian fitted on the negative class, less, with ``relative``, that
    to one fitted on all answers (Ren et al. 2023, arXiv:2209.15558), which takes out directions in
    which every answer varies. Covariances are Ledoit and Wolf's, of standardised states.
    """

    def __init__(self, relative: bool = True) -> None:
        self.relative = relative

    def fit(self, X: AnyFloats, y: npt.NDArray[np.int64]) -> MahalanobisDetector:
        """Fit on states ``[n, hidden]`` and classes 0 and 1, ``[n]``."""
        states = np.asarray(X, np.float64)
        self.classes_ = np.array([0, 1])
        scale = StandardScaler().fit(states).scale_
        self.negative_ = _Gaussian(states[y == 0], scale)
        self.all_ = _Gaussian(states, scale) if self.relative else None
        return self

    def decision_function(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        """The squared distance, ``[n]``."""
        away = self.negative_.distance(X)
        return away if self.all_ is None else away - self.all_.distance(X)


class _Gaussian:
    """Mean and shrunk covariance, kept as its Cholesky factor.

    scikit-learn's ``LedoitWolf().mahalanobis`` gives the same numbers from a pseudo-inverse, and
    takes about five times as long.
    """

    def __init__(self, X: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> None:
        self.mean, self.scale = X.mean(axis=0), scale
        self.factor = cholesky(ledoit_wolf(X / scale)[0], lower=True)

    def distance(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        away = solve_triangular(self.factor, ((X - self.mean) / self.scale).T, lower=True)
        return np.asarray((away**2).sum(axis=0))


class _Neighbours(KNeighborsClassifier):
    """Takes all training states where there are fewer than the neighbours asked for."""

    def kneighbors(self, X: Any, n_neighbors: Any = None, return_distance: bool = True) -> Any:
        count = min(n_neighbors or self.n_neighbors, self.n_samples_fit_)
        return super().kneighbors(X, count, return_distance)


def nearest_neighbours(neighbours: int = NEIGHBOURS) -> Pipeline:
    """Share of positives among the nearest training states (Cover and Hart 1967).

    States are standardised and scaled to unit length, as for deep nearest neighbours (Sun et al.
    2022, arXiv:2204.06507); neighbours count by the inverse of their distance.
    """
    return make_pipeline(
        StandardScaler(), Normalizer(), _Neighbours(neighbours, weights="distance")
    )


MAHALANOBIS = Detector(
    "mahalanobis",
    "Mahalanobis distance, relative",
    "Lee et al. 2018, arXiv:1807.03888; Ren et al. 2023, arXiv:2209.15558",
    "state",
    lambda _seed: Calibrated(MahalanobisDetector()),
    fit_with=("groups",),
)
NEAREST_NEIGHBOURS = Detector(
    "nearest_neighbours",
    "Nearest neighbours",
    "Cover & Hart 1967; Sun et al. 2022, arXiv:2204.06507",
    "state",
    lambda _seed: nearest_neighbours(),
)
