"""Commands that change a store: delete, prune, compact, merge, upgrade."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from activation_logging.cli.options import (
    AsJson,
    Label,
    Model,
    Since,
    Status,
    StorePath,
    StorePaths,
    Tags,
    Until,
    Yes,
    given_path,
)
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import as_row, entries_table, reasons_table, size, table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.console import sentence
from activation_logging.errors import SettingsError, StoreError
from activation_logging.keep import PRUNING, Keep
from activation_logging.progress import track
from activation_logging.store import layout, open_store
from activation_logging.store.compact import compact
from activation_logging.store.merge import merge
from activation_logging.store.places import find_stores
from activation_logging.store.prune import Plan, plan_prune, prune
from activation_logging.store.query import find, parse_conditions, parse_tags, parse_time, select
from activation_logging.store.upgrade import upgrade
from activation_logging.text import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from activation_logging.store.places import Places

_SHOWN_BEFORE_DELETING = 10


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("delete")(delete)
    app.command("prune")(prune_store)
    app.command("compact")(compact_store)
    app.command("merge")(merge_stores)
    app.command("upgrade")(upgrade_store)


def delete(
    path: StorePath,
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys of entries, or beginnings of them.")
    ] = None,
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only entries with model=..., status=..., label=[NAME=]LABEL or tag=NAME=VALUE; "
            "may be repeated. The options below say the same, as in `ls`."
        ),
    ] = None,
    model: Model = None,
    status: Status = None,
    label: Label = None,
    tag: Tags = None,
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete entries with their rows and labels: by key, or all that match the filters.

    Rows that another entry shares stay. A server may go on writing meanwhile. The file does not
    shrink; later entries use the room, and `activation-logging compact` gives it back.
    """
    given = {
        "model": model,
        "status": status,
        "label": label,
        "tags": parse_tags(tag or ()),
        "since": parse_time(since),
        "until": parse_time(until),
    }
    conditions = {
        **{name: value for name, value in given.items() if value},
        **parse_conditions(where or ()),
    }
    if bool(keys) == bool(conditions):
        raise SettingsError(
            "give either keys, or filters (--where, --model, --status, --label, --tag, --since, "
            "--until)"
        )
    with open_store(path) as store:
        chosen = (
            [entry for key in keys for entry in find(store, key)]
            if keys
            else list(select(store, **conditions))
        )
        unique = {entry.key: entry for entry in chosen}
        if not as_json:
            output.print(entries_table(list(unique.values())[:_SHOWN_BEFORE_DELETING]))
            if len(unique) > _SHOWN_BEFORE_DELETING:
                output.print(f"and {len(unique) - _SHOWN_BEFORE_DELETING} more")
        if not unique and not as_json:
            output.print("nothing matches; nothing was deleted")
            return
        if not (dry_run or yes):
            typer.confirm(f"Delete {len(unique)} of {len(store)} entries?", abort=True, err=True)
    deleted, left = 0, None
    if unique and not dry_run:
        with open_store(path, writable=True) as store, show_progress() as progress:
            deleted = store.delete_all(track(unique, "deleting", len(unique), progress))
            left = len(store)
    if as_json:
        print_json({"chosen": list(unique), "deleted": deleted})
    elif dry_run:
        output.print(f"{len(unique)} entries would be deleted")
    else:
        errors.print(f"deleted {deleted} entries; {left} are left")


def prune_store(
    paths: StorePaths,
    *,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Remove the rows of what was asked longer ago: an age (90s, 2h, 30d, 8w), or "
            "before a date.",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove the oldest rows until the store holds no more than this, such as 200GB "
            "or 512MiB. It is what the file has after `compact`.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TERM",
            help="Leave alone what is labelled, tag:KEY=VALUE, finish:REASON, or "
            "score:NAME>0.8 (what the probe says of the answer); may be repeated.",
        ),
    ] = None,
    entries: Annotated[
        bool,
        typer.Option("--entries", help="Delete the entries whole, also those without rows."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove old rows, oldest first, and leave the entries: text, labels and scores stay.

    The entries' status is then `unkept`. With both limits, either is a reason. Rows that another
    entry shares stay. A server may go on writing meanwhile; a broken off run may be repeated. The
    file does not shrink: later entries use the room, and `activation-logging compact` gives it
    back. It asks only if no rows at all would be left.

    Several stores are pruned one after the other; one that is broken does not keep the others from
    it. Rows that lie in another store than their entry stay; `activation-logging merge` brings them
    together.
    """
    before = None if older_than is None else parse_time(older_than)
    limit = None if max_size is None else parse_size(max_size)
    wanted = Keep.parse(",".join(keep), PRUNING) if keep else None
    places = find_stores(paths)
    if places.several and max_size is not None:
        raise SettingsError(
            f"--max-size is the size of one store, and {places.title} is several; name one of them"
        )

    def one(folder: Path) -> dict[str, Any]:
        with open_store(folder) as store, show_progress() as progress:
            plan = plan_prune(
                store,
                before=before,
                max_size=limit,
                keep=wanted,
                entries=entries,
                progress=progress,
            )
        removed = 0
        if plan.keys and not dry_run:
            removed = _prune(folder, plan, wanted, entries=entries, yes=yes)
        if not as_json:
            if places.several:
                output.print(Text(f"{folder}:", style="bold"))
            _show_pruned(plan, removed, dry_run=dry_run, entries=entries)
        return {
            "chosen": plan.keys,
            "removed": removed,
            "bytes": plan.nbytes,
            "kept": dict(plan.kept),
            "used_bytes": plan.used,
        }

    _change_each(places, one, as_json=as_json)


def _change_each(
    places: Places, change: Callable[[Path], Mapping[str, Any]], *, as_json: bool
) -> None:
    """Change stores one after the other. Of several, one that refuses is named at the end.

    Raises:
        StoreError: it is the only one, and refuses.
    """
    problems: list[StoreError] = []

    def tried(folder: Path) -> Mapping[str, Any]:
        try:
            return change(folder)
        except StoreError as error:
            if not places.several:
                raise
            problems.append(error)
            return {"problem": str(error)}

    told = {str(folder): tried(folder) for folder in places.folders}
    if as_json:
        print_json({"stores": told} if places.several else next(iter(told.values())))
    for problem in problems:
        errors.print(sentence("error:", problem))
    if problems:
        raise typer.Exit(1)


def _prune(folder: Path, plan: Plan, wanted: Keep | None, *, entries: bool, yes: bool) -> int:
    if plan.everything and not yes:
        what = "entries" if entries else "entries' rows; no rows would be left"
        typer.confirm(f"Remove all {len(plan.keys)} {what}?", abort=True, err=True)
    reason = f"its rows were removed by `prune` on {datetime.now(tz=timezone.utc):%Y-%m-%d}"
    with open_store(folder, writable=True) as store, show_progress() as progress:
        return prune(
            store,
            plan.keys,
            reason,
            entries=entries,
            unless_labelled=wanted is not None and wanted.labelled,
            progress=progress,
        )


def _show_pruned(plan: Plan, removed: int, *, dry_run: bool, entries: bool) -> None:
    what = "entries" if entries else "entries' rows"
    if not plan.keys:
        output.print("nothing is to go; nothing was removed")
    elif dry_run:
        output.print(f"{len(plan.keys)} {what} would be removed: {size(plan.nbytes)} of rows")
    else:
        output.print(
            f"removed {removed} {what}: {size(plan.nbytes)} come free in the file, within seconds "
            "where a running server wrote them. Later entries use them; `activation-logging "
            "compact` gives them back to the disk"
        )
    for term, number in plan.kept.most_common():
        output.print(f"{number} were left alone: {term}")
    if plan.keys and plan.unknown:
        names = ", ".join(sorted(plan.unknown))
        output.print(f"nothing was left alone for a score of {names}: none has one")


def compact_store(paths: StorePaths, as_json: AsJson = False) -> None:
    """Shrink a store's file to what it holds, once entries have been deleted.

    The store is copied beside itself, so the disk needs room for the copy. The copy replaces the
    store in one step: a kill at any moment leaves a whole store. The command is refused while a
    reader or a server has the store open. A process that opens it meanwhile waits. Several stores
    are compacted one after the other; one that refuses does not keep the others from it.
    """

    def one(folder: Path) -> dict[str, Any]:
        with show_progress() as progress:
            done = compact(folder, progress=progress)
        if not as_json:
            output.print(f"{folder}: {size(done.before)} before, {size(done.after)} now")
        return done._asdict()

    _change_each(find_stores(paths), one, as_json=as_json)


def upgrade_store(
    paths: StorePaths,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Make the index anew, where `verify` says that it is wrong."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add the index to a store that version 0.1 has written, so that filters and counts are quick.

    No other process may have the store open at the start; then servers may write to it. An
    interrupted run continues where it was, and nothing is lost. Version 0.1 cannot read the store
    afterwards. Several stores are upgraded one after the other; one that refuses does not keep the
    others from it.
    """

    def one(folder: Path) -> dict[str, Any]:
        with show_progress() as progress:
            done = upgrade(folder, rebuild=rebuild, progress=progress)
        if not as_json and (done.entries or done.version == layout.WITHOUT_INDEX):
            output.print(f"{folder}: {done.entries} entries listed in its index")
        elif not as_json:
            output.print(f"{folder} has its index already")
        return done._asdict()

    _change_each(find_stores(paths), one, as_json=as_json)


def merge_stores(
    stores: Annotated[
        list[Path],
        typer.Argument(
            parser=given_path,
            help="Stores to put together: their folders, folders of stores, or patterns.",
        ),
    ],
    *,
    target: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the store to add to; made if it is not there."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Put the entries of several stores into one, with rows, labels, tags and who wrote them.

    Keys stay, and repetitions of a prompt (`#1`, `#2`) are numbered on. Rows that entries share
    are stored once. Where a server on several hosts has left entries in one store and their rows in
    another, they are joined. What is there already is not added again, so a merge that was broken
    off, or whose stores have grown, may be repeated. Servers may go on writing meanwhile; rows
    whose entries are still to come stay behind.

    The exit code is 1 if there were entries that cannot be read, which are named and left out.
    """
    with show_progress() as progress:
        done = merge(stores, target, progress=progress)
    if as_json:
        print_json(done.as_dict())
    else:
        shown = table("", ">", show_header=False)
        for name, number in done.as_dict().items():
            if name != "unreadable":
                shown.add_row(*as_row((name.replace("_", " "), number)))
        output.print(shown)
        if done.unreadable:
            output.print(reasons_table("cannot be read", list(done.unreadable.items())))
            output.print(f"{len(done.unreadable)} entries cannot be read and were left out")
    if done.unreadable:
        raise typer.Exit(1)
