"""The command line: one module per group of commands, assembled here."""

from __future__ import annotations

import io
import sys

import typer

from activation_logging.cli import (
    browse,
    change,
    check,
    evaluation,
    follow_up,
    label,
    learn,
    probe,
    probe_upkeep,
    replay,
    serve,
    view,
)
from activation_logging.cli.terminal import errors
from activation_logging.console import sentence
from activation_logging.errors import ActivationLoggingError

_app = typer.Typer(
    name="activation-logging",
    help="Log the activations of a language model while vLLM serves it, label its answers, "
    "and find out what tells a hallucination from a fact.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@_app.callback()
def _group() -> None:
    """Keeps the command's name on the line, however few commands are installed."""


for group in (
    serve, browse, view, check, change, evaluation, label, follow_up, replay, learn, probe,
    probe_upkeep,
):  # fmt: skip
    group.register(_app)


def app() -> None:
    """Entry point of ``activation-logging``: a wrong input is one sentence and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where standard output is not UTF-8, what it cannot show becomes an escape, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _app()
    except ActivationLoggingError as error:
        errors.print(sentence("error:", error))
        sys.exit(1)
