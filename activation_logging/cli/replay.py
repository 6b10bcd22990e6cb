"""The command that runs a model over stored answers again: replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from activation_logging.cli.options import AsJson, Label, StorePaths, Tags
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import LINES, as_row, reasons_table, size, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.store import open_store
from activation_logging.store.query import parse_tags

if TYPE_CHECKING:
    from activation_logging.replay import Plan, ReplayReport


class _Replay(TyperCommand):
    """Its help lists the kinds. They are looked up for that alone: a plugin may be broken."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from activation_logging.replay import QUANTITIES

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "kinds":
                listed = "\n".join(f"- {q.name}: {q.title}, {q.shape}" for q in QUANTITIES)
                option.help = f"Only these, separated by commas:\n\n{listed}"
        super().format_help(ctx, formatter)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("replay", cls=_Replay)(replay)


def replay(
    path: StorePaths,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that answered: its folder, or its name on the Hugging Face hub. "
            "Without it, the name of the store's only model, if that is a folder."
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(help="Only these, separated by commas: `--help` lists the kinds."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Only these decoder layers, such as 8,15-20,last."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="What to compute in: float32, float16 or bfloat16.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="As torch names it; without it a GPU, if there is one.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Only the entry with this key, or beginning of one; may be repeated."),
    ] = None,
    label: Label = None,
    tag: Tags = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many answers were replayed; run again for more."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Compute again what is there already.")
    ] = False,
    served_as: Annotated[
        str | None, typer.Option(help="The name it was served under, if that was another.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How much a logged row may differ from the replayed one, relative to its length, "
            "before the answer is refused.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and the memory it takes.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute attention features and the logit lens from stored tokens, by one pass of the model.

    What is computed stands beside each entry (`entry.derived("replay/lookback")`), and detectors
    read it. The replay proves itself: the rows of the residual stream that were logged must be the
    rows that it computes, to 2e-5 if both are float32; otherwise the difference is stated, and kept
    with the arrays. An answer of another model or of other weights is refused, and nothing is kept
    of it.

    Answers that have been replayed are passed over, so a run that was broken off goes on where it
    was. The attention of one layer is in memory at a time.

    The exit code is 1 if an answer was refused.
    """
    from activation_logging.replay import ReplayOptions, plan_replay, run_replay

    options = ReplayOptions(
        kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",")],
        layers=layers,
        dtype=dtype,
        device=device,
        keys=key or (),
        label=label,
        tags=parse_tags(tag or ()),
        served_as=served_as,
        limit=limit,
        overwrite=overwrite,
        tolerance=tolerance,
        trust_remote_code=trust_remote_code,
    )
    # Opened for writing, a store that is not there would be made.
    with open_store(path):
        pass
    with open_store(path, writable=not dry_run) as store, show_progress() as progress:
        plan = plan_replay(store, model, options, progress=progress)
        if not as_json:
            _tell_plan(plan)
        if dry_run:
            if as_json:
                print_json(plan.as_dict())
            return
        report = run_replay(store, plan, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        _tell(report)
    if report.refused:
        raise typer.Exit(1)


def _tell_plan(plan: Plan) -> None:
    """What will be done, and the memory that it takes, before it is done."""
    names = ", ".join(quantity.name for quantity in plan.quantities)
    limit = plan.options.limit
    now = f", {limit} of them now" if limit is not None and limit < len(plan.jobs) else ""
    errors.print(f"{len(plan.jobs)} answers to replay ({names}){now}")
    if plan.jobs:
        free = plan.model.bytes_free()
        there = "" if free is None else f"; {size(free)} are free"
        needed = size(plan.model.bytes_needed(plan.longest))
        errors.print(
            f"the longest has {plan.longest} tokens, and takes {needed} besides the model{there}"
        )


def _tell(report: ReplayReport) -> None:
    plan = report.plan
    if report.proofs.answers:
        shown = table("layer", ">rows", ">median difference", ">worst")
        for site, found in report.proofs.table().items():
            cells = (site.label, found.rows, f"{found.median:.1e}", f"{found.worst:.1e}")
            shown.add_row(*as_row(cells))
        output.print(shown)
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.kept.items())
        speed = report.tokens / report.seconds
        output.print(
            f"{report.proofs.answers} answers replayed in {plan.model.dtype} on "
            f"{plan.model.device}, {speed:.0f} tokens/s; kept {kinds}, {size(report.bytes)}"
        )
    else:
        output.print("nothing was replayed")
    if plan.there:
        errors.print(f"{plan.there} answers have been replayed before")
    if plan.others:
        errors.print(
            f"{plan.others} answers were replayed with other settings, which --overwrite replaces"
        )
    for reason, count in plan.left_out.items():
        errors.print(f"left out: {count} {reason}")
    if report.refused:
        output.print(reasons_table("refused", report.refused))
        if len(report.refused) > LINES:
            output.print(f"and {len(report.refused) - LINES} more; --json has all")
