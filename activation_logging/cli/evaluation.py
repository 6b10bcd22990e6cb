"""Commands that ask and judge: eval, label."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activation_logging.cli.options import AsJson, StorePath
from activation_logging.cli.terminal import output, print_json

if TYPE_CHECKING:
    from collections.abc import Callable


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("eval")(evaluate)
    app.command("label")(label)


def evaluate(  # noqa: PLR0917 - typer passes them by name
    benchmark: Annotated[
        str, typer.Argument(help="nonsense_mixed_entities or short_facts.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(help="The model, as the server calls it.", show_default=False)
    ],
    base_url: Annotated[str, typer.Option(help="The server's address.")] = (
        "http://localhost:8000/v1"
    ),
    exp: Annotated[
        str | None,
        typer.Option(help="A part of the benchmark, such as nonsense_animal or short_facts_city."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", "--N", help="Questions for each domain or stratum.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="At most so many questions in all, balanced over strata.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often each question is asked.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the answers; above 0 they are sampled.")
    ] = 0.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer, at most; else the benchmark's own.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Above the run's folder.")] = Path("output"),
    lmdb_path: Annotated[
        Path | None,
        typer.Option(help="The store, if it is on this machine; else labels go by the server."),
    ] = None,
    judge: Annotated[str, typer.Option(help="'rules', or a model.")] = "rules",
    judge_base_url: Annotated[
        str | None, typer.Option(help="Where that model is served, if not at --base-url.")
    ] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="Questions open at once.")] = 32,
    overwrite: Annotated[bool, typer.Option(help="Forget the answers that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a served model a benchmark's questions, judge the answers, and label them in the store.

    The same command goes on with a run that was broken off.
    """
    run_benchmark, print_result = _benchmarks()
    result = run_benchmark(
        benchmark,
        model=model,
        base_url=base_url,
        output_base_dir=output_dir,
        store=lmdb_path,
        exp=exp,
        n=n,
        seed=seed,
        limit=limit,
        epochs=epochs,
        temperature=temperature,
        max_tokens=max_tokens,
        judge=judge,
        judge_base_url=judge_base_url or (None if judge == "rules" else base_url),
        infer_overwrite=overwrite,
        max_connections=max_connections,
        display="none" if as_json else "rich" if sys.stdout.isatty() else "plain",
    )
    if as_json:
        written = result.labels.written if result.labels else 0
        summary = {"folder": result.folder, "labels_written": written, "notes": result.notes}
        print_json({**summary, **result.results})
        return
    print_result(result, output)


def label(
    path: StorePath,
    run_dir: Annotated[
        Path, typer.Argument(help="The folder with generation.jsonl and raw_eval_res.jsonl.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write the labels of a finished run beside its entries, by request id."""
    _benchmarks()
    from activation_logging.benchmarks.labels import label_run

    report = label_run(run_dir, store=path)
    if as_json:
        print_json(asdict(report))
        return
    output.print(f"{report.written} labels written to {report.where}")


def _benchmarks() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from activation_logging.errors import ActivationLoggingError

    try:
        from activation_logging.benchmarks.runs import run_benchmark
        from activation_logging.benchmarks.table import print_result
    except ImportError as error:
        raise ActivationLoggingError(str(error)) from None
    return run_benchmark, print_result
