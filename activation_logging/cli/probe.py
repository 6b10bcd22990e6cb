"""Commands for probes as things of their own: probe fit, probe eval, probe ls, probe show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from activation_logging.cli.options import AsJson, Layers, Model, StorePaths, Tags
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import as_row, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.errors import OutputExists, ProbeError
from activation_logging.printable import printable
from activation_logging.store import open_store
from activation_logging.store.query import parse_tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from activation_logging.detectors.probe_evaluation import Level, ProbeEvaluation
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.progress import Progress
    from activation_logging.store import Store

probe = typer.Typer(
    name="probe",
    help="Fit probes on labelled answers or claims, try them on others, and list them.",
    no_args_is_help=True,
)

Group = Annotated[
    list[str] | None,
    typer.Option(
        help="A tag that names what an answer is about, so that it is never on both sides of a "
        "split; may be repeated. Without it: group and entity."
    ),
]
EvaluatorName = Annotated[
    str | None,
    typer.Option(help="The evaluator whose labels count; needed where several have judged."),
]
_CLAIM_CLASSES = {("hallucinated", "correct"), ("contradicted", "supported")}
"""What a probe of claims tells apart, by the labels of answers and by those of claims."""

Draws = Annotated[int, typer.Option(min=100, help="Bootstrap resamples for intervals.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier probe of that name.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(probe)


@probe.command("fit")
def fit(
    path: StorePaths,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="What the probe is called: FOLDER/NAME, of NAME.safetensors and NAME.json.",
            show_default=False,
        ),
    ],
    label: EvaluatorName = None,
    kind: Annotated[
        Literal["answer", "token"],
        typer.Option(help="Learn from the labels of whole answers, or from claims within them."),
    ] = "answer",
    positive: Annotated[
        str, typer.Option(help="The label to detect; of claims it is contradicted.")
    ] = "hallucinated",
    negative: Annotated[
        str, typer.Option(help="The label to tell it from; of claims it is supported.")
    ] = "correct",
    form: Annotated[
        Literal["linear", "attention", "multimax"],
        typer.Option(
            help="linear: one direction. attention and multimax read all tokens of an answer, with "
            "the labels of whole answers in a store of claims."
        ),
    ] = "linear",
    layers: Layers = None,
    position: Annotated[
        str | None,
        typer.Option(
            help="Where a probe of answers may read, separated by commas: prompt_last, "
            "response_first, response_last, response_mean, response_max, answer_span, or numbers."
        ),
    ] = None,
    model: Model = None,
    tag: Tags = None,
    group: Group = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-validation.")] = 5,
    draws: Draws = 1000,
    seed: Seed = 0,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out answers with missing or NaN activations."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fit a probe, and say how good it is on answers that it has not seen.

    Layer and position are chosen within each training part. The probabilities are calibrated, and
    the thresholds for 1, 5 and 10 % false positives set, on scores of answers that were held out.
    Beside it stand the controls, such as the words alone. The probe is then fitted on all answers.
    """
    of_tokens = kind == "token" or form != "linear"
    if of_tokens and position is not None:
        raise ProbeError("a probe that reads all tokens has no --position; leave it out")
    if kind == "token" and form != "linear":
        raise ProbeError(f"{form} puts the tokens of an answer together: use --kind answer")
    if of_tokens and (positive, negative) not in _CLAIM_CLASSES:
        raise ProbeError(
            "a probe that reads all tokens learns from claims, contradicted from supported; leave "
            "--positive and --negative out"
        )
    refuse_output(out, overwrite=overwrite)
    options: dict[str, Any] = {
        "model": model,
        "tags": parse_tags(tag or ()),
        "folds": folds,
        "draws": draws,
        "seed": seed,
        "broken": "skip" if skip_broken else "error",
    }
    if layers is not None:
        options["layers"] = layers.split(",")
    if group:
        options["group"] = tuple(group)
    with open_store(path) as store, show_progress() as progress:
        if of_tokens:
            found = _fit_tokens(store, label, form, options, progress)
        else:
            from activation_logging.detectors import Options, fit_answer_probe

            if position is not None:
                options["positions"] = [one.strip() for one in position.split(",") if one.strip()]
            classes: dict[str, Any] = {"positive": positive, "negative": negative}
            found = fit_answer_probe(store, label, Options(**classes, **options), progress=progress)
    files = found.save(out)
    if as_json:
        print_json({**found.as_json(), "files": [str(file) for file in files]})
        return
    _show(found)
    output.print(f"probe: {files[0]}, {files[1].name}")


@probe.command("eval")
def evaluate(
    path: StorePaths,
    *,
    name: Annotated[
        Path, typer.Option("--probe", help="The probe: FOLDER/NAME.", show_default=False)
    ],
    label: EvaluatorName = None,
    tag: Tags = None,
    group: Group = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Try a probe on the labels of another store or benchmark.

    Answers to prompts that it was fitted on, or about the same things, are left out and counted; a
    store of nothing else is refused. The thresholds are the probe's own, so this says what they are
    worth on these answers. The controls, such as the words alone, are cross-validated on these very
    answers, which the probe has never seen.
    """
    from activation_logging.detectors.probe_evaluation import evaluate_probe
    from activation_logging.detectors.saved_probe import SavedProbe

    given = SavedProbe.load(name)
    options: dict[str, Any] = {"group": tuple(group)} if group else {}
    with open_store(path) as store, show_progress() as progress:
        found = evaluate_probe(
            store,
            given,
            label,
            tags=parse_tags(tag or ()),
            draws=draws,
            seed=seed,
            progress=progress,
            **options,
        )
    if as_json:
        print_json({"probe": str(name), "digest": given.digest, **found.as_json()})
        return
    _show_evaluation(given, found)


@probe.command("ls")
def ls(
    folder: Annotated[Path, typer.Argument(help="The folder of the probes.")],
    as_json: AsJson = False,
) -> None:
    """List the probes of a folder: what they read, and how good they were when they were fitted.

    Files that are no probes are passed over. A broken probe is named, and the exit code is 1.
    """
    from activation_logging.detectors.saved_probe import find_probes

    probes, broken = find_probes(folder)
    if as_json:
        print_json(
            {
                "probes": [{"name": name, **each.as_json()} for name, each in probes.items()],
                "broken": broken,
            }
        )
    else:
        made = table("name", "kind", "form", "layer", "position", "label", ">AUROC", "model")
        for name, each in probes.items():
            where = "" if each.position is None else each.position
            auroc = _number(each.report.get("auroc"))
            what = (each.kind, each.form, each.source, where, each.label, auroc, each.model)
            made.add_row(*as_row((name, *what)))
        output.print(made if probes else f"{folder} has no probes")
        for name, reason in broken.items():
            errors.print(f"{name}: {reason}", style="red")
    if broken:
        raise typer.Exit(1)


@probe.command("show")
def show(
    name: Annotated[Path, typer.Argument(help="The probe: FOLDER/NAME.")],
    as_json: AsJson = False,
) -> None:
    """Show all that a probe knows: what it reads, its thresholds, its data, how good it was."""
    from activation_logging.detectors.saved_probe import SavedProbe

    found = SavedProbe.load(name)
    if as_json:
        print_json(found.as_json())
    else:
        _show(found)


def _fit_tokens(
    store: Store,
    label: str | None,
    form: Literal["linear", "attention", "multimax"],
    options: Mapping[str, Any],
    progress: Progress,
) -> SavedProbe:
    from activation_logging.detectors.tokens import TokenOptions, fit_token_probe, run_token_study

    # Without what the report of a probe does not tell.
    study_options = TokenOptions(answers=form != "linear", mix=(), transfer_by=(), **options)
    study = run_token_study(store, label, study_options, progress=progress)
    return fit_token_probe(study, form)


def refuse_output(out: Path, *, overwrite: bool) -> None:
    """Say before the work starts what would keep the probe from being written."""
    from activation_logging.detectors.probe_format import paths_of, refuse_folders

    refuse_folders(out)
    for file in paths_of(out):
        if file.exists() and not overwrite:
            raise OutputExists(f"{file} exists already; --overwrite replaces it")
        there = next(one for one in file.absolute().parents if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OutputExists(f"{out} cannot be written: {there} is no folder of this user's")


def _show(found: SavedProbe) -> None:
    facts = table("", "", show_header=False)
    for name, value in _facts(found):
        facts.add_row(Text(printable(name), style="bold"), *as_row((value,)))
    output.print(facts)
    if found.operating_points:
        made = table(">false positives", ">threshold", ">recall")
        for point in found.operating_points:
            rate, recall = f"{point.false_positive_rate:.0%}", _number(point.recall)
            made.add_row(*as_row((rate, f"{point.threshold:.3f}", recall)))
        output.print(made)
    report = table("on answers not seen", ">")
    for name, text in _flat(found.report):
        report.add_row(*as_row((name, text)))
    if report.row_count:
        output.print(report)


def _facts(found: SavedProbe) -> list[tuple[str, str]]:
    data = {name: value for name, value in found.data.items() if name != "digest"}
    facts: list[tuple[str, Any]] = [
        ("kind", f"{found.kind}, {found.form}"),
        ("layer", found.source),
        ("position", found.position),
        ("model", f"{found.model}, {found.num_layers} layers"),
        ("label", f"{found.label}: {found.positive} from {found.negative}"),
        ("threshold", f"{found.threshold:.3f}"),
        (
            "calibration",
            f"1 / (1 + exp(-({found.calibration.a:.4g} x + {found.calibration.b:.4g})))",
        ),
        ("digest", found.digest),
        ("fitted on", ", ".join(f"{name} {value}" for name, value in data.items()) or None),
        ("digest of its data", found.data.get("digest")),
        *found.provenance.items(),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _show_evaluation(given: SavedProbe, found: ProbeEvaluation) -> None:
    made = table("", *(f">{level}" for level in found.levels))
    for name, cells in zip(
        _ROWS, zip(*map(_cells, found.levels.values()), strict=True), strict=True
    ):
        made.add_row(*as_row((name, *cells)))
    output.print(made)
    for name, level in found.levels.items():
        points = table(f"{name}: chosen for", ">threshold", ">false positives", ">recall")
        for point in level.points:
            rates = (point.false_positive_rate, point.recall)
            row = (f"{point.promised:.0%}", f"{point.threshold:.3f}", *map(interval_text, rates))
            points.add_row(*as_row(row))
        if level.points:
            output.print(points)
        if level.best_control is not None:
            rivals = table(f"{name}: without states, fitted here", ">AUROC")
            for rival, auroc in level.controls.items():
                rivals.add_row(*as_row((rival, interval_text(auroc))))
            output.print(rivals)
            output.print(
                f"{name}: the probe less {level.best_control}: "
                f"{interval_text(level.over_best_control)}"
            )
    for reason, count in found.left_out.items():
        errors.print(f"left out: {count} {reason}", style="dim")
    for title, why in found.controls_left_out.items():
        errors.print(f"no control {title}: {why}", style="dim")
    for warning in found.warnings:
        errors.print(warning, style="yellow")
    output.print(f"{given.source} of {found.model}, labels by {found.label}")


_ROWS = (
    *("positive", "negative", "AUROC", "AUPRC", "risk over coverage (AURC)"),
    *("recall at 1 % false positives", "recall at 5 %", "recall at 10 %"),
    *("accuracy", "calibration error"),
)


def _cells(level: Level) -> list[str]:
    intervals = (level.auroc, level.auprc, level.aurc, *level.recall_at.values())
    counts = (str(level.positives), str(level.negatives))
    return [*counts, *map(interval_text, (*intervals, level.accuracy, level.ece))]


def interval_text(found: Any) -> str:
    """A number with its 95 % interval; nothing where there is none."""
    return "" if found is None else _number(found._asdict())


def _number(found: Any) -> str:
    """A number with its interval, of a report; what a file has there may be anything."""
    if not isinstance(found, dict):
        return ""
    value, low, high = (_decimals(found.get(name)) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if value and low and high else value


def _decimals(number: Any) -> str:
    try:
        return f"{number:.3f}" if isinstance(number, (int, float)) else ""
    except OverflowError:  # an integer of hundreds of digits
        return ""


def _flat(report: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in report.items():
        if text := _number(value):
            yield f"{above}{name}", text
        elif isinstance(value, dict):
            yield from _flat(value, f"{above}{name} ")
        elif not isinstance(value, list):
            yield f"{above}{name}", str(value)
