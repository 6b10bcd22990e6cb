"""Commands that check a store, and remove what a crash has left: verify, repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from activation_logging.cli.options import AsJson, StorePath, Yes
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import LINES, as_row, reasons_table, short_key, size, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.progress import track
from activation_logging.store import open_store
from activation_logging.store.repair import (
    check_segments,
    find_unmatched,
    remove_strays,
    remove_unmatched,
    remove_unreferenced,
    stray_arrays,
)
from activation_logging.verify import Problem, Report, match_model, verify, verify_file
from activation_logging.verify.alignment import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("verify")(verify_store)
    app.command("repair")(repair)


def verify_store(
    path: StorePath,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that was served, a folder or a name on the Hugging Face hub: also "
            "prove that every row belongs to its token."
        ),
    ] = None,
    served_as: Annotated[
        str | None, typer.Option(help="The name it was served under, if that was another.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every entry is complete, finite and of the right shape.

    With `--model`, the model's output head is applied to each row of the last layer that led to
    a token of the answer. Where the answer was greedy (temperature 0) this must give the very
    token that follows; the share of tokens for which it does is reported per entry, and below
    0.99 it is a problem. Two tokens whose logits are equal within rounding (bfloat16 keeps 8
    bits) count as the same. Of sampled answers the rank of their tokens is reported instead.

    The pages of the file are looked at first, without LMDB, which does not survive every damage.

    The exit code is 0 only when all is well. An entry without rows, or rows without an entry,
    is what a killed server leaves behind: `activation-logging repair PATH` removes them.
    """
    damage = verify_file(path)
    if damage is not None and not damage.ok:
        _tell(damage, as_json=as_json)
        raise typer.Exit(1)
    with open_store(path) as store:
        head, matches = None, None
        if model is not None:
            from activation_logging.verify.lm_head import load_lm_head

            head, matches = load_lm_head(model), match_model(store, model, served_as)
        with show_progress() as progress:
            report = verify(store, head, checks_alignment=matches, progress=progress)
    if damage is None:
        why = "the lmdb package is older than 3.0, which brings what looks at the pages"
        report.unchecked.append(Problem("data.mdb", why))
    _tell(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def repair(
    path: StorePath,
    pending: Annotated[
        bool,
        typer.Option(
            "--pending", help="Also what a process that still runs may yet complete, or seems to."
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove what a killed server leaves behind: unmatched records and unreferenced rows.

    Arrays, such as scores, whose entry another program has deleted are removed as well.

    Unmatched are entries whose rows never came, and rows whose entry never came. Whole entries are
    never touched, and what a server that still runs has written is left alone unless you say
    `--pending`.
    """
    with open_store(path) as store:
        unmatched = list(find_unmatched(store))
        unreferenced = check_segments(store).unreferenced
        strays = list(stray_arrays(store))
    chosen = [record for record in unmatched if record.final or pending]
    left = len(unmatched) - len(chosen)
    if unmatched:
        shown = table("what", "id", "its writer", "")
        for record in unmatched[:LINES]:
            kind = "entry without rows" if record.kind == "entry" else "rows without entry"
            writer = "is gone" if record.final else "still runs"
            action = "will be removed" if record in chosen else "stays (see --pending)"
            name = short_key(record.id) if record.kind == "entry" else record.id
            shown.add_row(*as_row((kind, name, writer, action)))
        output.print(shown)
        if len(unmatched) > LINES:
            output.print(f"and {len(unmatched) - LINES} more")
    if unreferenced:
        nbytes = sum(found.nbytes for found in unreferenced)
        output.print(f"{size(nbytes)} of rows that no entry uses, in {len(unreferenced)} pieces")
    if strays:
        output.print(f"{len(strays)} arrays of entries that are gone")
    number = len(chosen) + len(unreferenced) + len(strays)
    if not number:
        output.print("nothing to repair" + (f"; {left} may yet be completed" if left else ""))
        return
    if not yes:
        typer.confirm(f"Remove these {number}?", abort=True, err=True)
    with open_store(path, writable=True) as store, show_progress() as progress:
        records = track(chosen, "removing", len(chosen), progress)
        removed = sum(remove_unmatched(store, record) for record in records)
        segments = (found.segment for found in unreferenced)
        names = track(segments, "removing", len(unreferenced), progress)
        removed += remove_unreferenced(store, names)
        removed += remove_strays(store, track(strays, "removing", len(strays), progress))
    errors.print(f"removed {removed}" + (f"; {left} may yet be completed" if left else ""))


def _tell(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)


def _show(report: Report) -> None:
    statuses = ", ".join(f"{number} {name}" for name, number in report.statuses.most_common())
    output.print(f"{report.entries} entries ({statuses or 'none'}), {report.rows} rows")
    if report.alignments:
        output.print(_alignment_table(report))
        if len(report.alignments) > LINES:
            output.print(f"the {LINES} lowest of {len(report.alignments)}; --json has all")
        for kind in KINDS:
            share = report.share(kind)
            if share is not None:
                number = sum(found.kind == kind for found in report.alignments)
                output.print(f"{number} {kind} answers: {share:.4f} of their tokens rank first")
    _print_some("not checked", report.unchecked)
    _print_some("problem", report.problems)
    if report.ok:
        output.print("all is well", style="green")
    else:
        output.print(f"{len(report.problems)} problems", style="red")


def _alignment_table(report: Report) -> Table:
    shown = table("entry", "kind", ">tokens", ">aligned", ">share", ">median rank")
    for found in sorted(report.alignments, key=lambda found: (found.kind, found.share))[:LINES]:
        numbers = (found.tokens, found.aligned, f"{found.share:.4f}", f"{found.median_rank:g}")
        shown.add_row(*as_row((short_key(found.key), found.kind, *numbers)))
    return shown


def _print_some(what: str, found: Sequence[tuple[str, str]]) -> None:
    if not found:
        return
    output.print(reasons_table(what, found))
    if len(found) > LINES:
        output.print(f"and {len(found) - LINES} more; --json has all")
