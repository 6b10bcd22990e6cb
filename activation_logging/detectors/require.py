"""Naming the extra that is missing, rather than the module."""

from __future__ import annotations

from importlib.util import find_spec

from activation_logging.errors import ExtraMissing


def require_scikit_learn() -> None:
    """Raise ExtraMissing unless scikit-learn is installed."""
    if find_spec("sklearn") is None:
        raise ExtraMissing("detectors need scikit-learn: pip install 'activation-logging[detect]'")
