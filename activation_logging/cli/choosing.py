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
