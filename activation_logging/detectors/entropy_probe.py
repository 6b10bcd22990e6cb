"""Semantic entropy probes (Kossen et al. 2024, arXiv:2406.15927).

They read from the state of one answer how much the other answers to its prompt would differ. Labels
of right and wrong are not used to fit the direction, only to set a probability beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.calibration import Calibrated, Scorer
from activation_logging.detectors.linear import LinearProbe
from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing

if TYPE_CHECKING:
    from activation_logging.arrays import AnyFloats


class SemanticEntropyProbe(Scorer):
    """A linear probe of high against low semantic entropy.

    ``threshold_`` divides the two, see :func:`best_split`; it is set on the training answers.
    """

    def fit(
        self,
        X: AnyFloats,
        y: npt.NDArray[np.int64],
        semantic_entropy: npt.NDArray[np.float64],
    ) -> SemanticEntropyProbe:
        """Fit on states ``[n, hidden]`` and semantic entropies ``[n]``.

        Raises:
            InputMissing: the entropies are all equal.
        """
        del y  # what is right does not count
        self.classes_ = np.array([0, 1])
        self.threshold_ = best_split(semantic_entropy)
        high = (semantic_entropy > self.threshold_).astype(np.int64)
        self.probe_ = LinearProbe().fit(X, high)
        return self

    def decision_function(self, X: AnyFloats) -> npt.NDArray[np.float64]:
        """Log-odds of a high semantic entropy, ``[n]``."""
        return self.probe_.decision_function(X)


def best_split(values: npt.NDArray[np.float64]) -> float:
    """The threshold that leaves the least squared deviation from the means of its two sides.

    Halfway between two neighbouring values; the lowest of several equally good ones.

    Raises:
        InputMissing: the values are all equal.
    """
    ranked = np.sort(values)
    cuts = np.flatnonzero(ranked[1:] > ranked[:-1]) + 1
    if not len(cuts):
        raise InputMissing("the semantic entropy of all answers to learn from is the same")
    sums, squares = np.cumsum(ranked), np.cumsum(ranked**2)
    below = squares[cuts - 1] - sums[cuts - 1] ** 2 / cuts
    rest = len(ranked) - cuts
    above = squares[-1] - squares[cuts - 1] - (sums[-1] - sums[cuts - 1]) ** 2 / rest
    best = cuts[int(np.argmin(np.round(below + above, 12)))]
    return float((ranked[best - 1] + ranked[best]) / 2)


SEMANTIC_ENTROPY_PROBE = Detector(
    "semantic_entropy_probe",
    "Semantic entropy probe",
    "Kossen et al. 2024, arXiv:2406.15927",
    "state",
    lambda _seed: Calibrated(SemanticEntropyProbe()),
    fit_with=("semantic_entropy", "groups"),
)
