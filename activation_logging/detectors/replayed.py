"""Detectors of what `activation-logging replay` has computed: attention, and the logit lens.

Each answer's tokens are averaged. Where a quantity says nothing of the first token of an answer,
before which there was no answer, that token is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing

Vector = npt.NDArray[np.float32]

COMPONENTS = 512
"""Principal components of the eigenvalues, as in the paper."""
HIDDEN = (128, 64, 32)
"""Layers of the ICR probe, as in the paper."""


def mean_ratios(values: npt.NDArray[Any]) -> Vector:
    """Of lookback ratios ``[R, L, H]`` the mean over the answer's tokens, ``[L * H]``."""
    return _mean(_after_first(values))


def all_eigenvalues(values: npt.NDArray[Any]) -> Vector:
    """Of eigenvalues ``[L, H, k]`` one vector, ``[L * H * k]``.

    Raises:
        InputMissing: prompt and answer have fewer tokens than that.
    """
    if np.isnan(values).any():
        raise InputMissing(f"fewer than {values.shape[2]} tokens in prompt and answer")
    return np.asarray(values, np.float32).ravel()


def mean_icr(values: npt.NDArray[Any]) -> Vector:
    """Of ICR scores ``[R, L]`` the mean over the answer's tokens, ``[L]``."""
    return _mean(_after_first(values))


def mean_lens(values: npt.NDArray[Any]) -> Vector:
    """Of a logit lens ``[R, L, 2]`` the mean over the answer's tokens, ``[L * 2]``."""
    return _mean(values)


def _after_first(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows that have read a token of the answer; of an answer of one token, its only row."""
    return values[1:] if len(values) > 1 else values


def _mean(values: npt.NDArray[Any]) -> Vector:
    return np.asarray(values.mean(axis=0, dtype=np.float64), np.float32).ravel()


class _Components(PCA):
    """Takes all components where there are fewer than those asked for."""

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        self.n_components = min(COMPONENTS, *X.shape)
        return super().fit_transform(X, y)


def lookback_lens() -> LogisticRegression:
    """Logistic regression on the ratios as they are (Chuang et al. 2024, arXiv:2407.07071)."""
    return LogisticRegression(max_iter=1000)


def spectral_probe(seed: int = 0) -> Pipeline:
    """Principal components, then a logistic regression (Binkowski et al. 2025, arXiv:2502.17598).

    As in the paper, both classes weigh the same. So the probabilities are not calibrated.
    """
    curve = LogisticRegression(max_iter=2000, class_weight="balanced")
    return make_pipeline(_Components(random_state=seed), curve)


def icr_probe(seed: int = 0) -> Pipeline:
    """A network of three hidden layers on the score of each layer (Zhang et al. 2025).

    The paper's has dropout and normalised batches besides, which scikit-learn's has not. Training
    ends when a tenth of the training answers, held out, is predicted no better.
    """
    network = MLPClassifier(HIDDEN, early_stopping=True, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), network)


def lens_probe() -> Pipeline:
    """Logistic regression on what each layer would answer, standardised."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


LOOKBACK_LENS = Detector(
    "lookback_lens",
    "Lookback Lens",
    "Chuang et al. 2024, arXiv:2407.07071",
    "replay",
    lambda _seed: lookback_lens(),
    of_replay=mean_ratios,
    replays="lookback",
)
LAPEIGVALS = Detector(
    "lapeigvals",
    "LapEigvals",
    "Binkowski et al. 2025, arXiv:2502.17598",
    "replay",
    spectral_probe,
    of_replay=all_eigenvalues,
    replays="lapeigvals",
)
ICR = Detector(
    "icr",
    "ICR probe",
    "Zhang et al. 2025, arXiv:2507.16488",
    "replay",
    icr_probe,
    of_replay=mean_icr,
    replays="icr",
)
LOGIT_LENS = Detector(
    "logit_lens",
    "Logit lens",
    "nostalgebraist 2020, the logit lens",
    "replay",
    lambda _seed: lens_probe(),
    of_replay=mean_lens,
    replays="logit_lens",
)
