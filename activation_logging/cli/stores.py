"""Commands that look into a store: ls, show, stats, verify, delete."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
