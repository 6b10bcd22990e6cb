"""The numbers behind every chart, as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging import tags
from activation_logging.detectors.metrics import CALIBRATION_BINS, calibration_bins
from activation_logging.text import brief

if TYPE_CHECKING:
    from activation_logging.arrays import Floats
    from activation_logging.detectors.results import Result, Study

GRID = np.linspace(0, 1, 101)
HISTOGRAM_BINS = 25
PCA_POINTS = 1500


def curves(study: Study, result: Result) -> dict[str, list[float]]:
    """ROC and precision-recall, averaged over the test folds at 101 points of the first axis.

    The area under the averaged ROC is the mean of the folds' areas (Fawcett 2006, vertical
    averaging).
    """
    y, score = study.examples.y, result.scores.probability
    roc, precision = [], []
    for fold in study.folds:
        truth, p = y[fold.test], score[fold.test]
        rates, found = _roc(truth, p)
        roc.append(np.interp(GRID, rates, found))
        recall, precise = _precision_recall(truth, p)
        precision.append(np.interp(GRID, recall, precise))
    true_rate = np.mean(roc, axis=0)
    return {
        "false_positive_rate": _round(np.r_[0.0, GRID]),
        "true_positive_rate": _round(np.r_[0.0, true_rate]),
        "recall": _round(GRID),
        "precision": _round(np.mean(precision, axis=0)),
    }


def calibration(study: Study, result: Result) -> list[dict[str, float]]:
    """Per bin of probability: its mean, the frequency of positives, the number of answers."""
    y, p = study.examples.y, result.scores.probability
    return [
        {
            "probability": round(float(p[inside].mean()), 4),
            "frequency": round(float(y[inside].mean()), 4),
            "answers": len(inside),
        }
        for inside in calibration_bins(p, CALIBRATION_BINS)
        if len(inside)
    ]


def histogram(study: Study, result: Result) -> dict[str, list[int]]:
    """Number of answers of each class in 25 equally wide bins of probability."""
    y, p = study.examples.y, result.scores.probability
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return {
        study.examples.positive: np.histogram(p[y == 1], edges)[0].tolist(),
        study.examples.negative: np.histogram(p[y == 0], edges)[0].tolist(),
    }


def principal_components(study: Study) -> dict[str, Any]:
    """The states at the best place on their first two principal components, standardised first.

    The components are fitted on all answers, at most 1,500 of them are shown. No label is used.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    examples, seed = study.examples, study.options.seed
    pca = PCA(2, svd_solver="randomized", random_state=seed)
    points = pca.fit_transform(StandardScaler().fit_transform(study.states[study.place]))
    shown = np.arange(len(examples))
    if len(shown) > PCA_POINTS:
        shown = np.sort(np.random.default_rng(seed).choice(shown, PCA_POINTS, replace=False))
    rows = shown.tolist()
    return {
        "explained": _round(pca.explained_variance_ratio_),
        "x": _round(points[shown, 0], 3),
        "y": _round(points[shown, 1], 3),
        "label": [examples.positive if examples.y[i] else examples.negative for i in rows],
        "key": [examples.keys[i] for i in rows],
        "text": [brief(study.signals.responses[i], 120) for i in rows],
        "about": [examples.tags[i].get(tags.ENTITY, "") for i in rows],
    }


def _roc(y: npt.NDArray[np.int64], score: Floats) -> tuple[Floats, Floats]:
    from sklearn.metrics import roc_curve

    rates, found, _ = roc_curve(y, score, drop_intermediate=False)
    return rates, found


def _precision_recall(y: npt.NDArray[np.int64], score: Floats) -> tuple[Floats, Floats]:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, score)
    # Rising recall; the artificial end point (recall 0, precision 1) is no measurement.
    return recall[:-1][::-1], precision[:-1][::-1]


def _round(values: npt.NDArray[Any], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]
