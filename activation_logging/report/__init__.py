"""One page from a labelled store: what the activations know, where, and how sure that is.

Needs the extra ``detect``: ``pip install 'activation-logging[detect]'``.
"""

from activation_logging.report.build import ReportResult, TableRow, build_report

__all__ = ["ReportResult", "TableRow", "build_report"]
