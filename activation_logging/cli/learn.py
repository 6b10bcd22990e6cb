"""Commands that learn from a labelled store, or take it elsewhere: export, report, score."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from activation_logging.cli.options import (
    AsJson,
    Layers,
    Model,
    OnRay,
    RayAddress,
    StorePaths,
    Tags,
    given_path,
)
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import (
    as_row,
    print_comparison,
    print_report,
    short_key,
    shorten,
    size,
    table,
)
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.errors import OutputExists, SettingsError
from activation_logging.store.query import parse_tags

if TYPE_CHECKING:
    from activation_logging.detectors.store_scores import Scored
    from activation_logging.report import ComparisonResult, ReportResult, TableRow

_SHOWN_SCORES = 20


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("export", cls=_Export)(export)
    app.command("report")(report)
    app.command("score")(score)


def report(
    path: Annotated[
        list[Path],
        typer.Argument(
            parser=given_path,
            help="The store's folder, or several: their reports are compared. A folder of stores, "
            "or a pattern in quotes such as 'data/*.lmdb', is one store. The folder or address "
            "(s3://bucket/folder) of an export will do.",
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder for the page and its figures, or an address."
        ),
    ] = Path("report"),
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="The evaluator whose labels count; needed where several have judged. May be "
            "repeated: the reports are compared."
        ),
    ] = None,
    positive: Annotated[str, typer.Option(help="The label to detect.")] = "hallucinated",
    negative: Annotated[str, typer.Option(help="The label to tell it from.")] = "correct",
    layers: Layers = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Only these positions, separated by commas: prompt_last, response_first, "
            "response_last, response_mean, response_max, answer_span, or numbers."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this model: its name as served, or the last part of it. May be repeated: "
            "the reports are compared."
        ),
    ] = None,
    tag: Tags = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="A tag that names what an answer is about, so that it is never on both sides of "
            "a split; may be repeated. Without it: group and entity."
        ),
    ] = None,
    transfer_by: Annotated[
        str | None,
        typer.Option(help="The tag for the transfer matrix, such as domain or benchmark."),
    ] = None,
    save_probe: Annotated[
        Path | None,
        typer.Option(help="Also write the best linear probe here (safetensors and JSON)."),
    ] = None,
    token_probe: Annotated[
        Path | None,
        typer.Option(
            help="A saved probe of tokens, which colours the answers where the label has no spans."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the cross-validation.")] = 5,
    folds_by: Annotated[
        str,
        typer.Option(
            metavar="group|template|tag:NAME",
            help="What is never on both sides of a split: only what an answer is about; also the "
            "wording of its question; or each value of a tag in turn, such as tag:domain.",
        ),
    ] = "group",
    match_length: Annotated[
        bool,
        typer.Option(
            "--match-length",
            help="Leave out answers until both classes have the same lengths.",
        ),
    ] = False,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.")] = 0,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out answers with missing or NaN activations."),
    ] = False,
    on_ray: OnRay = False,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether the activations tell a hallucination from a fact, and where.

    Fits linear probes at every layer and position and other detectors besides, and compares them
    with what can be told without activations: the words, the length, the log-probabilities. Writes
    a page that opens in any browser, with the same numbers as JSON and CSV.

    With several stores, labels or models, each has its report in a folder of the output, and the
    page puts them beside each other in one table.

    With `--ray` the probes are fitted on a cluster, whose nodes must reach the store under the same
    path. The numbers are the same.
    """
    from activation_logging.report import build_comparison, build_report

    paths = list(dict.fromkeys(path))
    labels, models = list(dict.fromkeys(label or ())), list(dict.fromkeys(model or ()))
    is_comparison = max(len(paths), len(labels), len(models)) > 1
    if is_comparison and save_probe is not None:
        raise SettingsError(
            "--save-probe writes the probe of one report; name one store, one label and one model"
        )
    options: dict[str, Any] = {}
    if layers is not None:
        options["layers"] = layers.split(",")
    if positions is not None:
        options["positions"] = [part.strip() for part in positions.split(",") if part.strip()]
    if group:
        options["group"] = tuple(group)
    options |= {
        "positive": positive,
        "negative": negative,
        "tags": parse_tags(tag or ()),
        "transfer_by": transfer_by,
        "token_probe": token_probe,
        "folds": folds,
        "folds_by": folds_by,
        "match_length": match_length,
        "draws": draws,
        "seed": seed,
        "broken": "skip" if skip_broken else "error",
    }
    if on_ray or ray_address is not None:
        from activation_logging.ray.sweep import fit_on_ray

        options["fit"] = fit_on_ray(ray_address)
    with show_progress() as progress:
        if is_comparison:
            compared = build_comparison(
                paths, out, labels=labels, models=models, progress=progress, **options
            )
        else:
            result = build_report(
                paths[0],
                out,
                label=next(iter(labels), None),
                model=next(iter(models), None),
                save_probe=save_probe,
                progress=progress,
                **options,
            )
    if is_comparison:
        _show_comparison(compared, as_json=as_json)
    elif as_json:
        print_json(_report_as_json(result))
    else:
        print_report(result)


def _report_as_json(result: ReportResult) -> dict[str, Any]:
    return {
        "page": str(result.page),
        "headline": result.headline,
        "table": [_table_row(row) for row in result.table],
        "left_out": dict(result.left_out),
        "files": [str(file) for file in result.files],
    }


def _show_comparison(result: ComparisonResult, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "page": str(result.page),
                "studies": {t: _report_as_json(one) for t, one in result.reports.items()},
                "left_out": dict(result.left_out),
                "files": [str(file) for file in result.files],
            }
        )
    else:
        print_comparison(result)


def _table_row(row: TableRow) -> dict[str, Any]:
    over = row.over_best_control
    return {**row._asdict(), "over_best_control": over and over._asdict()}


def score(
    path: StorePaths,
    *,
    probe: Annotated[
        Path,
        typer.Option(
            help="What `report --save-probe` or `probe fit` wrote: FOLDER/NAME.", show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="What the scores are called in the store; otherwise as the probe's file."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print: write no scores into the store.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace scores that another probe gave under that name."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the scores here, as CSV.")
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also store each answer's score as an evaluation of this name.",
        ),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Only entries without a label.")
    ] = False,
    model: Model = None,
    tag: Tags = None,
    as_json: AsJson = False,
) -> None:
    """Apply a saved probe to the answers in a store.

    The probability at each row is kept beside its entry, as `entry.scores[NAME]`: of a probe of
    tokens from the state that starts the answer on, of a probe of answers where it looks.

    Prints the most suspicious answers first. Entries without the layer or position that the probe
    needs are counted and left out; with nothing left to score, the exit code is 1.
    """
    from activation_logging.detectors.probe_format import paths_of
    from activation_logging.detectors.store_scores import responses, score_store

    if dry_run and write is not None:
        raise SettingsError("--write stores labels, --dry-run stores nothing; give one of them")
    if out is not None and out.is_dir():
        raise OutputExists(f"{out} is a folder; name a file for the scores")
    with show_progress() as progress:
        scored, left_out = score_store(
            path,
            probe,
            name=name,
            keep=not dry_run,
            overwrite=overwrite,
            write=write,
            unlabelled=unlabelled,
            model=model,
            tags=parse_tags(tag or ()),
            progress=progress,
        )
    if out is not None:
        _write_csv(out, scored)
    if as_json:
        texts = responses(path, scored)
        rows = [{**row._asdict(), "response": texts.get(row.key)} for row in scored]
        print_json({"scores": rows, "left_out": left_out})
    else:
        _print_scores(path, scored, left_out)
        if scored and not dry_run:
            kept = name or paths_of(probe)[0].stem
            errors.print(f"their rows' scores are kept as entry.scores[{kept!r}]")
    if not scored:
        raise typer.Exit(1)


def _print_scores(path: list[Path], scored: list[Scored], left_out: dict[str, int]) -> None:
    from activation_logging.detectors.store_scores import responses

    made = table("key", ">probability", "label", "response")
    ranked = sorted(scored, key=lambda row: -row.probability)[:_SHOWN_SCORES]
    texts = responses(path, ranked)
    for row in ranked:
        text = shorten(texts.get(row.key, ""), 70)
        made.add_row(*as_row((short_key(row.key), f"{row.probability:.3f}", row.label, text)))
    if scored:
        output.print(made)
    if len(scored) > _SHOWN_SCORES:
        output.print(f"the first {_SHOWN_SCORES} of {len(scored)}; --output FILE has them all")
    for reason, count in left_out.items():
        errors.print(f"left out: {count} {reason}")


def _write_csv(path: Path, scored: list[Scored]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "probability", "label"])
        writer.writerows((row.key, f"{row.probability:.6f}", row.label) for row in scored)


class _Export(TyperCommand):
    """Its help lists the formats. They are looked up for that alone: a plugin may be broken."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from activation_logging.export import FORMATS

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "format_":
                lines = [f"- {found.name}: {found.description}" for found in FORMATS]
                option.help = "\n".join([*lines, "Without it: parquet."])
        super().format_help(ctx, formatter)


def export(
    path: StorePaths,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The folder to make, or an address such as s3://bucket/folder.",
            show_default=False,
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="What to write, parquet if left out: `--help` lists all."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Only these layers: numbers, ranges and 'last', such as 8,15-20,last."),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="Only these sites, such as attn_out@8;12,heads@15,resid_prenorm."),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(
            help="One row per answer instead of all: prompt_last, response_first, response_last, "
            "response_mean, response_max, answer_span, or a number."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Only entries that this evaluator has judged.")
    ] = None,
    model: Model = None,
    tag: Tags = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export of that name.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add what is new to an export, or go on with one that was interrupted.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a store in another format.

    Prompts, answers, labels and tags go along. Parquet is what Hugging Face datasets loads:
    `load_dataset("parquet", data_files="OUT/*.parquet")`. Entries without all of their rows are
    left out and counted. The folder appears when everything is in it.

    An address (s3://, gs://, ...) needs the extra s3, or its own package for fsspec, and takes its
    credentials from the environment. What is sent there, and what --append adds to a folder, goes
    out in parts; export.json, which lists them with their sums, is written last. `report` and
    `open_store` read an export like a store.
    """
    from activation_logging.export import export_store

    with show_progress() as progress:
        result = export_store(
            path,
            out,
            format=format_,
            layers=None if layers is None else layers.split(","),
            sites=None if sites is None else sites.split(","),
            position=position,
            label=label,
            model=model,
            tags=parse_tags(tag or ()),
            overwrite=overwrite,
            append=append,
            progress=progress,
        )
    if as_json:
        print_json(vars(result))
        return
    output.print(
        f"{result.entries} entries, {result.rows} rows of layers "
        f"{', '.join(map(str, result.layers))} ({result.dtype}), {size(result.bytes)} in "
        f"{result.folder}"
    )
    if result.there:
        errors.print(
            f"{result.there} entries were there already; the labels and arrays of "
            f"{result.refreshed} of them were brought up to date"
        )
    for reason, count in result.left_out.items():
        errors.print(f"left out: {count} {reason}")
