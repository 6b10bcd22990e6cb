"""What every command shares: where to print, and how ``--json`` looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

output = Console()
errors = Console(stderr=True)

StorePath = Annotated[
    Path, typer.Argument(help="The store's folder, such as lmdb_data/activations.lmdb.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def print_json(value: Any) -> None:
    """Plain JSON on standard output: no colours, no wrapping."""
    typer.echo(json.dumps(value, indent=2, default=str))
