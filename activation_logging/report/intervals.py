"""Intervals as JSON has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from activation_logging.detectors.metrics import Interval


def as_json(interval: Interval | None) -> dict[str, float | None] | None:
    """``value``, ``low`` and ``high``, each None where it is not a number; None without any."""
    if interval is None:
        return None
    # NaN is not JSON.
    return {
        name: None if value != value else round(value, 6)  # noqa: PLR0124 - only NaN differs from itself
        for name, value in interval._asdict().items()
    }
