"""Options that choose entries of a store, the same for every command that takes them."""

from __future__ import annotations

from typing import Annotated

import typer

from activation_logging.errors import SettingsError

Model = Annotated[
    str | None,
    typer.Option(help="Only this model: its name as served, or the last part of it."),
]
Status = Annotated[
    str | None, typer.Option(help="Only this status: complete, pending, failed or dropped.")
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
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def parse_tags(pairs: list[str] | None) -> dict[str, str]:
    """Read ``NAME=VALUE`` options.

    Raises:
        SettingsError: one has no equals sign.
    """
    tags = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"--tag {pair!r} is not NAME=VALUE")
        tags[name] = value
    return tags
