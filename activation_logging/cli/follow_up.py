"""The command that asks a served model about answers: follow-up."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from activation_logging.cli.options import AsJson, Model, StorePaths, Tags
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import as_row, short_key, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.store.query import parse_tags

if TYPE_CHECKING:
    from activation_logging.follow_up import FollowUpReport

_SHOWN = 5
"""Reasons that the terminal shows."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("follow-up")(follow_up)


def follow_up(
    path: StorePaths,
    *,
    ask: Annotated[
        Literal["p_true", "entails"],
        typer.Option(
            help="What to ask: p_true, whether each answer is right; entails, which of several "
            "answers to one prompt mean the same.",
            show_default=False,
        ),
    ],
    base_url: Annotated[
        str, typer.Option(help="The server's address.")
    ] = "http://localhost:8000/v1",
    by: Annotated[
        str | None,
        typer.Option(
            help="Whom to ask, of `entails`: a served model. Otherwise it is the model that "
            "answered."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Only about answers that this evaluator has judged.")
    ] = None,
    model: Model = None,
    tag: Tags = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="About no more answers, or prompts, than this.")
    ] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="Questions open at once.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Ask a served model about the answers in a store, for the detectors that need it.

    `p_true` is needed by the detector of that name, `entails` by semantic_entropy_asked. The server
    must log to the same store: each question becomes an entry of its own, without a label, tagged
    with what it is about. What the store has is not asked again, so the same command goes on after
    a break. A server behind a key gets it from VLLM_API_KEY.

    The exit code is 1 if a question got no reply.
    """
    from activation_logging.follow_up import ask_follow_ups

    with show_progress() as progress:
        report = ask_follow_ups(
            path,
            ask,
            base_url=base_url,
            model=model,
            by=by,
            label=label,
            tags=parse_tags(tag or ()),
            limit=limit,
            max_connections=max_connections,
            progress=progress,
        )
    if as_json:
        print_json({**asdict(report), "failures": [each._asdict() for each in report.failures]})
    else:
        _show(report, "answers" if ask == "p_true" else "prompts with different answers")
    if report.failures:
        raise typer.Exit(1)


def _show(report: FollowUpReport, what: str) -> None:
    if report.failures:
        reasons = Counter(failure.reason for failure in report.failures)
        first = {failure.reason: failure.key for failure in reversed(report.failures)}
        shown = table(">failed", "first", "because")
        for reason, number in reasons.most_common(_SHOWN):
            shown.add_row(*as_row((number, short_key(first[reason]), reason)))
        output.print(shown)
    output.print(
        f"{report.subjects} {what}: {report.known} known before, {report.asked} questions asked, "
        f"{report.undecided} of them without True or False among the likeliest words"
    )
    if report.unlogged:
        errors.print(f"{report.unlogged} replies are not in the store, and will be asked again")
    left = report.subjects - report.known - report.done - len(report.failures)
    if left:
        errors.print(f"gave up after failures in a row; {left} are left for the same command")
