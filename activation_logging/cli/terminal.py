"""Where every command prints, and how ``--json`` looks."""

from __future__ import annotations

import sys
from typing import Any

import typer

from activation_logging.console import PlainConsole
from activation_logging.strict_json import dumps

# Into a pipe or a file rich would fold everything to 80 columns.
output = PlainConsole(width=None if sys.stdout.isatty() else 140)
errors = PlainConsole(stderr=True)


def print_json(value: Any) -> None:
    """Strict JSON on standard output: no colours, no wrapping."""
    typer.echo(dumps(value, indent=2))
