"""One page from a labelled store: what the activations know, where, and how sure that is.

:func:`build_comparison` puts the reports of several labels, models or stores beside each other.

Needs the extra ``detect``: ``pip install 'activation-logging[detect]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.lazy import lazy_names

if TYPE_CHECKING:
    from activation_logging.report.build import ReportResult, TableRow, build_report
    from activation_logging.report.comparison import ComparisonResult, build_comparison

__all__ = ["ComparisonResult", "ReportResult", "TableRow", "build_comparison", "build_report"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ComparisonResult": ".comparison",
        "ReportResult": ".build",
        "TableRow": ".build",
        "build_comparison": ".comparison",
        "build_report": ".build",
    },
)
