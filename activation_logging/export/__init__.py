"""A store in other formats, for programs that do not read LMDB."""

from __future__ import annotations

from activation_logging.export.export import ExportResult, export_store
from activation_logging.export.registry import FORMATS, Format

__all__ = ["FORMATS", "ExportResult", "Format", "export_store"]
