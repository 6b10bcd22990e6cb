"""A small network on one state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from activation_logging.detectors.registry import Detector

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HIDDEN = (256, 128, 64)
EPOCHS = 5
BATCH = 32


class _Network(MLPClassifier):
    """Trains for a fixed number of epochs, and does not warn of that."""

    def fit(self, X: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.int64]) -> _Network:
        with warnings.catch_warnings():
            # Five epochs are the method, not a failure to converge.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", message="Got `batch_size` less than 1 or larger")
            return super().fit(X, y)


def saplma(seed: int = 0) -> Pipeline:
    """SAPLMA (Azaria and Mitchell 2023, arXiv:2304.13734).

    As in the paper: three hidden layers of 256, 128 and 64 with ReLU, Adam, five epochs. The
    states are standardised first, since layers differ in scale by orders of magnitude.
    """
    network = _Network(HIDDEN, max_iter=EPOCHS, batch_size=BATCH, random_state=seed)
    return make_pipeline(StandardScaler(), network)


SAPLMA = Detector(
    "saplma",
    "SAPLMA network",
    "Azaria & Mitchell 2023, arXiv:2304.13734",
    "state",
    saplma,
    in_curves=True,
)
