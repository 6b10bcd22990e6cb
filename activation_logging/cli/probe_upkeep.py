"""Commands for probes that are at work: probe drift, probe recalibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activation_logging.cli.options import AsJson, Since, StorePath, Tags, Until
from activation_logging.cli.probe import (
    Draws,
    EvaluatorName,
    Group,
    Overwrite,
    Seed,
    interval_text,
    probe,
    refuse_output,
)
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import as_row, moment, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.store import open_store
from activation_logging.store.query import parse_tags, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.detectors.recalibration import Recalibrated
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.detectors.store_drift import StoreDrift

ProbePath = Annotated[
    Path, typer.Argument(metavar="PROBE", help="The probe: FOLDER/NAME.", show_default=False)
]
ScoresName = Annotated[
    str | None,
    typer.Option(
        help="What the probe's scores are called beside the entries. Without it: the name of the "
        "probe's file. Of entries without scores by this probe, the rows give them."
    ),
]


def register(_app: typer.Typer) -> None:
    """Nothing is left to add: these commands are in the group ``probe``."""


@probe.command("drift")
def drift(
    path: StorePath,
    name: ProbePath,
    *,
    scores: ScoresName = None,
    since: Since = None,
    until: Until = None,
    tag: Tags = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a probe's scores have moved away from those on its training data.

    Two figures compare the scores of answers: the population stability index (Siddiqi 2006; up to
    0.1 is none, above 0.25 is large) and the distance of Kolmogorov and Smirnov, from 0 to 1. Both
    stand beside what chance exceeds in one case of twenty. Answers to prompts that the probe was
    fitted on, or about the same things, are left out. A move says that the questions or the model
    are others than they were; whether the probe is still right, labels say (probe eval).
    """
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.detectors.store_drift import drift_in

    given = SavedProbe.load(name)
    with open_store(path) as store, show_progress() as progress:
        found = drift_in(
            store,
            given,
            scores or name.stem,
            since=parse_time(since),
            until=parse_time(until),
            tags=parse_tags(tag or ()),
            progress=progress,
        )
    if as_json:
        print_json({"probe": str(name), "digest": given.digest, **found.as_json()})
        return
    _show_drift(given, found)


@probe.command("recalibrate")
def recalibrate_probe(
    name: ProbePath,
    *,
    store: Annotated[Path, typer.Option(help="The store with the labels.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="What the new probe is called: FOLDER/NAME.", show_default=False
        ),
    ],
    label: EvaluatorName = None,
    scores: ScoresName = None,
    false_positives: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.5,
            help="The share of the negatives that may be above the threshold. Without it: the "
            "share that the probe's threshold was set for, or the best F1 where it was for none.",
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    tag: Tags = None,
    group: Group = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-fitting.")] = 5,
    draws: Draws = 1000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Move a probe's probabilities and threshold to labels that came later, such as feedback.

    The weights and the ranking stay. The logistic curve is fitted again (Platt 1999), and the
    threshold set at the same share of false positives. The Brier score and the expected calibration
    error say how far the probabilities are from what happened, before and after; after is of curves
    that were fitted on other answers. A probe of tokens learns from the claims of labels.
    """
    from activation_logging.detectors.recalibration import RecalibrationOptions, recalibrate
    from activation_logging.detectors.saved_probe import SavedProbe

    refuse_output(out, overwrite=overwrite)
    given = SavedProbe.load(name)
    options: dict[str, Any] = {"group": tuple(group)} if group else {}
    asked = RecalibrationOptions(
        name=scores or name.stem,
        rate=false_positives,
        since=parse_time(since),
        until=parse_time(until),
        tags=parse_tags(tag or ()),
        folds=folds,
        draws=draws,
        seed=seed,
        **options,
    )
    with open_store(store) as opened, show_progress() as progress:
        found = recalibrate(opened, given, label, asked, progress=progress)
    files = found.probe.save(out)
    if as_json:
        told = {"probe": found.probe.as_json(), "files": [str(file) for file in files]}
        print_json({**found.as_json(), **told})
        return
    _show_recalibrated(given, found)
    output.print(f"probe: {files[0]}, {files[1].name}")


def _show_drift(given: SavedProbe, found: StoreDrift) -> None:
    told, moved = found.as_json(), found.drift
    made = table("scores of answers", ">on training data", ">here")
    made.add_row(*as_row(("answers", told["before"]["answers"], told["now"]["answers"])))
    for level, value in told["before"]["quantiles"].items():
        pair = (f"{value:.3f}", f"{told['now']['quantiles'][level]:.3f}")
        made.add_row(*as_row((f"{float(level):.0%} are at most", *pair)))
    flagged = (f"{share:.1%}" for share in found.flagged)
    made.add_row(*as_row((f"flagged (from {given.threshold:.3f})", *flagged)))
    output.print(made)
    figures = table("", ">", ">by chance up to")
    rows = (
        ("population stability index", moved.psi, moved.psi_by_chance),
        ("distance of Kolmogorov and Smirnov", moved.ks, moved.ks_by_chance),
    )
    for what, value, chance in rows:
        figures.add_row(*as_row((what, f"{value:.3f}", f"{chance:.3f}")))
    output.print(figures)
    output.print(
        f"drift: {moved.verdict}; answers asked from {moment(found.first)} to {moment(found.last)}"
    )
    _show_left_out(found.left_out)


def _show_recalibrated(given: SavedProbe, found: Recalibrated) -> None:
    made = table("", ">before", ">after, cross-fitted")
    rows = (
        ("Brier score", found.before.brier, found.after.brier),
        ("calibration error", found.before.ece, found.after.ece),
    )
    for what, *sides in rows:
        made.add_row(*as_row((what, *map(interval_text, sides))))
    curves = (f"{one.calibration.a:.3f} x {one.calibration.b:+.3f}" for one in (given, found.probe))
    made.add_row(*as_row(("log-odds", *curves)))
    thresholds = (f"{one.threshold:.3f}" for one in (given, found.probe))
    made.add_row(*as_row((f"threshold, for {found.at}", *thresholds)))
    output.print(made)
    output.print(
        f"{found.positives} {given.positive}, {found.negatives} {given.negative}; the Brier score "
        f"fell by {interval_text(found.gain)}"
    )
    if found.gain.low <= 0:
        errors.print(
            "the interval of that holds 0: on these labels the new curve is not known to be better",
            style="yellow",
        )
    _show_left_out(found.left_out)


def _show_left_out(left_out: Mapping[str, int]) -> None:
    for reason, count in left_out.items():
        errors.print(f"left out: {count} {reason}", style="dim")
