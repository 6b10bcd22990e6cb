"""Commands that check a store, and remove what a crash has left: verify, repair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from activation_logging.cli.options import AsJson, StorePaths, Yes
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import LINES, as_row, reasons_table, short_key, size, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.locations import Address, located
from activation_logging.progress import track
from activation_logging.store import Store, open_store
from activation_logging.store.places import find_stores, stores_beside
from activation_logging.store.repair import (
    Unmatched,
    UnreferencedSegment,
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
    from collections.abc import Mapping, Sequence

    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("verify")(verify_store)
    app.command("repair")(repair)


def verify_store(
    paths: StorePaths,
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

    The pages of the file are looked at first, without LMDB, which does not survive every damage. Of
    several stores, one that is damaged or missing is named, and the others are checked.

    The exit code is 0 only when all is well. An entry without rows, or rows without an entry,
    is what a killed server leaves behind: `activation-logging repair PATH` removes them.
    """
    folders, several = _on_disk(paths)
    looked_at = {one: verify_file(one) for one in folders if (one / "data.mdb").exists()}
    damaged = {folder: found for folder, found in looked_at.items() if found and not found.ok}
    whole = [folder for folder in folders if folder not in damaged]
    if damaged and not (whole and several):
        _tell(_of_files(damaged, several=several), as_json=as_json)
        raise typer.Exit(1)
    with open_store(whole if damaged else paths) as store:
        head, matches = None, None
        if model is not None:
            from activation_logging.verify.lm_head import load_lm_head

            head, matches = load_lm_head(model), match_model(store, model, served_as)
        with show_progress() as progress:
            report = verify(store, head, checks_alignment=matches, progress=progress)
    report.problems += _of_files(damaged, several=several).problems
    if None in looked_at.values():
        why = "the lmdb package is older than 3.0, which brings what looks at the pages"
        report.unchecked.append(Problem("data.mdb", why))
    _tell(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _on_disk(paths: Sequence[Path]) -> tuple[tuple[Path, ...], bool]:
    """The folders that are named, none for an address, and whether there are several."""
    if len(paths) == 1 and isinstance(located(paths[0]), Address):
        return (), False
    places = find_stores(paths)
    return places.folders, places.several


def _of_files(damaged: Mapping[Path, Report], *, several: bool) -> Report:
    """What is wrong with the files of stores, of several with their paths."""
    found = [
        Problem(f"{folder}: {key}" if several else key, what)
        for folder, report in damaged.items()
        for key, what in report.problems
    ]
    return Report(problems=found)


def repair(
    paths: StorePaths,
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
    `--pending`. Of a server on several hosts each host's store has one half of some entries: such a
    half stays where the other lies in one of the stores, or in a store beside it. Bring the stores
    of all hosts into one folder first, and repair the folder.
    """
    places = find_stores(paths)
    beside = [other for folder in places.folders for other in stores_beside(folder)]
    if not places.several:
        Store(places.title).close()  # of one store, what is wrong with it is the answer
    with open_store([*places.folders, *beside]) as store:
        found = [
            _look_for(name, part, [other for other in store.parts if other is not part])
            for name, part in zip(store.names, store.parts, strict=True)
            if part.path in places.folders
        ]
        # The other halves may lie in what cannot be read.
        unread = bool(store.problems)
    chosen = {id(r): r for one in found for r in one.unmatched if pending or _is_final(r, unread)}
    _show_leftovers(found, chosen, several=places.several)
    number = len(chosen) + sum(len(one.unreferenced) + len(one.strays) for one in found)
    left = sum(len(one.unmatched) for one in found) - len(chosen)
    if not number:
        output.print("nothing to repair" + (f"; {left} may yet be completed" if left else ""))
        return
    if not yes:
        typer.confirm(f"Remove these {number}?", abort=True, err=True)
    removed = 0
    for one in found:
        some = [record for record in one.unmatched if id(record) in chosen]
        if some or one.unreferenced or one.strays:
            removed += _remove(one, some)
    errors.print(f"removed {removed}" + (f"; {left} may yet be completed" if left else ""))


class _Leftovers(NamedTuple):
    """What a killed server has left in one store."""

    name: str
    path: Path
    unmatched: list[Unmatched]
    unreferenced: list[UnreferencedSegment]
    strays: list[bytes]


def _look_for(name: str, store: Store, beside: Sequence[Store]) -> _Leftovers:
    unmatched = list(find_unmatched(store, beside))
    unreferenced = check_segments(store).unreferenced
    return _Leftovers(name, store.path, unmatched, unreferenced, list(stray_arrays(store)))


def _is_final(record: Unmatched, unread: bool) -> bool:
    return record.final and not unread


def _show_leftovers(
    found: Sequence[_Leftovers], chosen: Mapping[int, Unmatched], *, several: bool
) -> None:
    unmatched = [(one.name, record) for one in found for record in one.unmatched]
    if unmatched:
        shown = table(*(["store"] if several else []), "what", "id", "its writer", "")
        for name, record in unmatched[:LINES]:
            kind = "entry without rows" if record.kind == "entry" else "rows without entry"
            writer = "is gone" if record.final else "may still run"
            action = "will be removed" if id(record) in chosen else "stays (see --pending)"
            key = short_key(record.id) if record.kind == "entry" else record.id
            shown.add_row(*as_row((*([name] if several else []), kind, key, writer, action)))
        output.print(shown)
        if len(unmatched) > LINES:
            output.print(f"and {len(unmatched) - LINES} more")
    unreferenced = [segment for one in found for segment in one.unreferenced]
    if unreferenced:
        nbytes = sum(segment.nbytes for segment in unreferenced)
        output.print(f"{size(nbytes)} of rows that no entry uses, in {len(unreferenced)} pieces")
    strays = sum(len(one.strays) for one in found)
    if strays:
        output.print(f"{strays} arrays of entries that are gone")


def _remove(found: _Leftovers, unmatched: Sequence[Unmatched]) -> int:
    with open_store(found.path, writable=True) as store, show_progress() as progress:
        records = track(unmatched, "removing", len(unmatched), progress)
        removed = remove_unmatched(store, records)
        segments = (segment.segment for segment in found.unreferenced)
        names = track(segments, "removing", len(found.unreferenced), progress)
        removed += remove_unreferenced(store, names)
        strays = track(found.strays, "removing", len(found.strays), progress)
        return removed + remove_strays(store, strays)


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
