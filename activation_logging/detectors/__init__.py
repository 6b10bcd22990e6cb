"""Detectors of one class of answers: fitted, compared on the same folds, saved, applied.

::

    from activation_logging.detectors import Options, run_study

    study = run_study(store, "short_facts", Options(folds=5))
    study.result("linear_probe").auroc

Fitting needs the extra ``detect``; applying a :class:`SavedProbe` needs numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activation_logging.detectors.registry import DETECTORS, Detector
    from activation_logging.detectors.results import Options, Study
    from activation_logging.detectors.saved_probe import SavedProbe, score_store
    from activation_logging.detectors.study import fit_probe, run_study

__all__ = [
    "DETECTORS",
    "Detector",
    "Options",
    "SavedProbe",
    "Study",
    "fit_probe",
    "run_study",
    "score_store",
]

_HOMES = {
    "DETECTORS": "registry",
    "Detector": "registry",
    "Options": "results",
    "SavedProbe": "saved_probe",
    "Study": "results",
    "fit_probe": "study",
    "run_study": "study",
    "score_store": "saved_probe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
