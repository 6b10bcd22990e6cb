"""The command that labels what has been judged already: a run of our own, or a file of others."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activation_logging.cli.options import AsJson, given_path
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import as_row, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.errors import SettingsError

if TYPE_CHECKING:
    from activation_logging.benchmarks.elsewhere.labelling import Outcome

_SHOWN = 5
"""Reasons that the terminal shows."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("label")(label)


def label(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=given_path,
            metavar="PATH RUN_DIR",
            help="The store's folder, unless there is --base-url; and the folder of a finished "
            "run, with generation.jsonl and raw_eval_res.jsonl, unless there is --from.",
            show_default=False,
        ),
    ] = None,
    *,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A file of verdicts made elsewhere: an Inspect log (.eval or .json), samples of "
            "lm-evaluation-harness (--log_samples), or JSON lines or CSV with request_id, key or "
            "prompt (and response), and label (and score, name, judge, details, spans).",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Reach the entries through this server, such as http://localhost:8000/v1, "
            "instead of the store's folder."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The evaluator's name for the labels. Otherwise it is Inspect's scorer, the "
            "harness's task, or the file's column `name` or the file itself."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Which of several scores: of lm-evaluation-harness a metric (else its first), "
            "of Inspect a SCORER, or SCORER.PART of a score with several values."
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="What a value stands for, as VALUE=LABEL (P=correct) or with a bound "
            "('>=0.5=correct'); may be repeated, and the first that fits counts.",
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a text file that is not UTF-8, such as latin-1.")
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(help="Write all that became no label to this file, one JSON object a line."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be labelled, and label nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write labels beside the entries of answers that have been judged already.

    They are those of a finished run of ours, or with `--from` of another tool. Answers are found by
    the id of their request, by their key, or else by prompt and response themselves. What finds no
    answer, or stands for no label, is listed with the reason. Labels by another evaluator are never
    touched, and the same command may be given again.

    The exit code is 1 if a file had no label that could be written.
    """
    paths = list(places or ())
    store = paths.pop(0) if base_url is None and paths else None
    run_dir = paths.pop(0) if source is None and paths else None
    if paths or (store is None) == (base_url is None) or (run_dir is None) == (source is None):
        raise SettingsError(
            "give the store's folder or --base-url, and the folder of a run or --from FILE"
        )
    from activation_logging.benchmarks.entries import reach

    if run_dir is not None:
        _label_run(run_dir, store, base_url, as_json=as_json)
        return
    assert source is not None
    from activation_logging.benchmarks.elsewhere.apply import label_from

    with show_progress() as progress:
        outcome = label_from(
            source,
            reach(store, base_url),
            name=name,
            metric=metric,
            given=given or (),
            encoding=encoding,
            dry_run=dry_run,
            problems=problems,
            progress=progress,
        )
    if as_json:
        print_json(outcome.as_dict())
    else:
        _show(outcome, dry_run=dry_run, all_in=problems)
    if outcome.problems and not outcome.written:
        raise typer.Exit(1)


def _label_run(run_dir: Path, store: Path | None, base_url: str | None, *, as_json: bool) -> None:
    from activation_logging.benchmarks.labels import label_run

    with show_progress() as progress:
        report = label_run(run_dir, store=store, base_url=base_url, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        output.print(f"{report.written} labels written to {report.where}")
        if report.note:
            output.print(f"note: {report.note}")


def _show(outcome: Outcome, *, dry_run: bool, all_in: Path | None) -> None:
    if outcome.labels:
        shown = table("evaluator", "label", ">answers")
        for evaluator, counts in outcome.labels.items():
            for one, number in counts.most_common():
                shown.add_row(*as_row((evaluator, one, number)))
        output.print(shown)
    if outcome.problems:
        reasons = Counter(problem.reason for problem in outcome.problems)
        first = {problem.reason: problem.place for problem in reversed(outcome.problems)}
        shown = table(">verdicts", "first", "became no label because")
        for reason, number in reasons.most_common(_SHOWN):
            shown.add_row(*as_row((number, first[reason], reason)))
        output.print(shown)
        left = len(reasons) - _SHOWN
        more = f"{left} more reasons; " if left > 0 else ""
        output.print(f"{more}each by itself: {all_in or 'with --problems FILE, or --json'}")
    repeated = f", {outcome.repeated} said the same again" if outcome.repeated else ""
    errors.print(
        f"{outcome.written} entries {'would be labelled' if dry_run else 'labelled'} in "
        f"{outcome.where} by {outcome.marks} verdicts; {len(outcome.problems)} became no label"
        f"{repeated}"
    )
