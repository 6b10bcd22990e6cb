"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def given_path(text: str) -> Path:
    """A path of an argument; an empty one is a variable of the shell that is not set."""
    if not text:
        raise typer.BadParameter("it is empty; give a folder, and '.' for this one")
    return Path(text)


StorePath = Annotated[
    Path,
    typer.Argument(
        parser=given_path,
        help="The store's folder, such as lmdb_data/activations.lmdb. A folder of stores, or a "
        "pattern in quotes such as 'data/*.lmdb', stands for all of them as one.",
    ),
]
StorePaths = Annotated[
    list[Path],
    typer.Argument(
        parser=given_path,
        metavar="PATH...",
        help="The store's folder, such as lmdb_data/activations.lmdb. Several, a folder of stores, "
        "or a pattern such as 'data/*.lmdb' are one.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

Model = Annotated[
    str | None,
    typer.Option(help="Only this model: its name as served, or the last part of it."),
]
Status = Annotated[
    str | None,
    typer.Option(help="Only this status: complete, pending, failed, dropped, unkept or elsewhere."),
]
Label = Annotated[
    str | None,
    typer.Option(
        help="Only this label: hallucinated, correct, refused or invalid; "
        "NAME=LABEL for one evaluator's."
    ),
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="Only entries with this tag, as NAME=VALUE; may be repeated."),
]
Since = Annotated[
    str | None,
    typer.Option(
        help="Only entries asked at this time or later: a date and perhaps a time of day "
        "(2026-05-31T18:00, local unless it says a zone), or an age (90s, 30m, 2h, 7d)."
    ),
]
Until = Annotated[str | None, typer.Option(help="Only entries asked before this time.")]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Only these layers: numbers, ranges and 'last', such as 8,15-20,last. Also other "
        "sites (attn_out@8;12), one head (heads@15.3), or every head by itself (heads@15.*)."
    ),
]
OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="On a Ray cluster (extra `ray`): that of `RAY_ADDRESS`, one that runs on this "
        "machine, or else one that is started here.",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(help="On the Ray cluster at this address, HOST:PORT.")
]
