"""Detectors of one class of answers: fitted, compared on the same folds, saved, applied.

::

    from activation_logging.detectors import Options, run_study

    study = run_study(store, "short_facts", Options(folds=5))
    study.result("linear_probe").auroc

Fitting needs the extra ``detect``; applying a :class:`SavedProbe` needs numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.lazy import lazy_names

if TYPE_CHECKING:
    from activation_logging.detectors.probe_fitting import fit_answer_probe, fit_probe
    from activation_logging.detectors.registry import DETECTORS, Detector
    from activation_logging.detectors.results import Options, Study
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.detectors.store_scores import score_store
    from activation_logging.detectors.study import run_study

__all__ = [
    "DETECTORS",
    "Detector",
    "Options",
    "SavedProbe",
    "Study",
    "fit_answer_probe",
    "fit_probe",
    "run_study",
    "score_store",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DETECTORS": ".registry",
        "Detector": ".registry",
        "Options": ".results",
        "SavedProbe": ".saved_probe",
        "Study": ".results",
        "fit_answer_probe": ".probe_fitting",
        "fit_probe": ".probe_fitting",
        "run_study": ".study",
        "score_store": ".store_scores",
    },
)
