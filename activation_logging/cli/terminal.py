"""What every command shares: where to print, and how ``--json`` looks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from activation_logging.console import PlainConsole
from activation_logging.strict_json import dumps

# Into a pipe or a file rich would fold everything to 80 columns.
output = PlainConsole(width=None if sys.stdout.isatty() else 140)
errors = PlainConsole(stderr=True)

StorePath = Annotated[
    Path, typer.Argument(help="The store's folder, such as lmdb_data/activations.lmdb.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def print_json(value: Any) -> None:
    """Strict JSON on standard output: no colours, no wrapping."""
    typer.echo(dumps(value, indent=2))
