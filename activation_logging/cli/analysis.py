"""Commands that turn a labelled store into a finding: export, report, score."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
