"""Commands that look into a store: ls, show, stats."""

from __future__ import annotations

from typing import Annotated

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
)
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import (
    arrays_text,
    as_row,
    entries_table,
    full,
    labels_text,
    moment,
    site_numbers,
    sites_table,
    size,
    status_text,
    summary,
    table,
    tokens_table,
)
from activation_logging.cli.spans import as_records, judged_spans, marked, spans_table
from activation_logging.cli.terminal import errors, output, print_json
from activation_logging.store import Entry, Store, open_store
from activation_logging.store.query import find, parse_tags, parse_time, readable, select
from activation_logging.store.statistics import Statistics, statistics

_MOST = 1 << 48


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("ls")(ls)
    app.command("show")(show)
    app.command("stats")(stats)


def ls(
    path: StorePaths,
    *,
    model: Model = None,
    status: Status = None,
    label: Label = None,
    tag: Tags = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(help="Show at most so many.", min=1, max=_MOST)] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many first.", min=0, max=_MOST)] = 0,
    as_json: AsJson = False,
) -> None:
    """List a store's entries, newest first.

    Each line is one answer: what was asked, what came, and the shape of the rows that were
    logged. `activation-logging show PATH KEY` has the rest; the beginning of a key is enough.
    """
    with open_store(path) as store:
        found = list(
            select(
                store,
                model=model,
                status=status,
                label=label,
                tags=parse_tags(tag or ()),
                since=parse_time(since),
                until=parse_time(until),
                limit=limit + 1,
                offset=offset,
            )
        )
        entries, more = found[:limit], len(found) > limit
        shown = list(readable(entries))
        if damaged := len(entries) - len(shown):
            errors.print(f"{damaged} of them cannot be read: see `activation-logging verify`")
        if as_json:
            print_json([summary(entry) for entry in shown])
            return
        if not entries:
            output.print(_nothing(store, filtered=any((model, status, label, tag, since, until))))
            return
        output.print(entries_table(shown))
        last = offset + len(entries)
        rest = f"; more with --offset {last}" if more else ""
        output.print(f"{offset + 1} to {last} of {len(store)} in the store{rest}", style="dim")


def show(
    path: StorePath,
    key: Annotated[
        str, typer.Argument(help="The entry's key or the beginning of it, or a request id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show one entry in full, with the numbers of every layer and site.

    Spans of the answer that were judged are underlined, red where they contradict what is known.
    Where there is no colour they are marked `[1>so<1]`. A list says what each one claims.

    A request id shows every choice of that answer.
    """
    with open_store(path) as store:
        entries = find(store, key)
        if as_json:
            records = [{**full(entry), "spans": as_records(entry)} for entry in entries]
            print_json(records[0] if len(records) == 1 else records)
            return
        for entry in entries:
            _show(entry)


def stats(path: StorePaths, as_json: AsJson = False) -> None:
    """Count a store's entries by status, model and label, and its bytes by site.

    Of several stores, each is listed, also one that is missing or broken.
    """
    with open_store(path) as store, show_progress() as progress:
        found = statistics(store, progress)
    if as_json:
        print_json(found.as_dict())
    else:
        _show_statistics(found)


def _nothing(store: Store, *, filtered: bool) -> str:
    if filtered and len(store):
        return f"none of the {len(store)} entries matches"
    return f"{store.path} has no entries" if not len(store) else "no entries so far down the list"


def _show(entry: Entry) -> None:
    facts = table("", "", show_header=False)
    for name, value in _facts(entry):
        facts.add_row(Text(name, style="bold"), *as_row((value,)))
    output.print(facts)
    spans = judged_spans(entry)
    response = marked(entry.response, spans, styled=output.color_system is not None)
    texts = [("prompt", entry.prompt), ("response", response)]
    if entry.content != entry.response:
        texts.append(("content", entry.content))
    for name, text in texts:
        output.print(Text(name, style="bold"))
        output.print(text)
        output.print()
    if spans:
        output.print(spans_table(entry.response, spans))
    output.print(tokens_table(entry))
    numbers = site_numbers(entry)
    if numbers:
        output.print(sites_table(numbers))
    else:
        output.print(f"no activations: {entry.status_reason}", style="yellow")


def _facts(entry: Entry) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text | None]] = [
        ("key", entry.key),
        ("request id", entry.request_id),
        ("choice", None if entry.choice is None else str(entry.choice)),
        ("created", moment(entry.created)),
        ("model", entry.model),
        ("status", status_text(entry.status)),
        ("", entry.status_reason),
        ("finish reason", entry.finish_reason),
        ("tokens", f"{len(entry.prompt_token_ids)} + {len(entry.response_token_ids)}"),
        ("sampling", ", ".join(f"{k}={v}" for k, v in entry.sampling.items()) or None),
        ("tags", ", ".join(f"{k}={v}" for k, v in entry.tags.items()) or None),
        ("labels", labels_text(entry) or None),
        ("arrays", arrays_text(entry) or None),
        ("vLLM", entry.vllm_version),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _show_statistics(found: Statistics) -> None:
    facts = table("", ">", show_header=False)
    facts.add_row("entries", str(found.entries))
    facts.add_row("rows", str(found.rows))
    facts.add_row("bytes of rows", size(found.rows_bytes))
    facts.add_row("file", size(found.file_bytes))
    facts.add_row("on disk", size(found.disk_bytes))
    facts.add_row("free in it", size(found.free_bytes))
    for note in found.notes:
        output.print(f"note: {note}", style="yellow")
    for reader in found.readers:
        facts.add_row(f"a view of process {reader['pid']}", f"{reader['commits_behind']} behind")
    output.print(facts)
    if found.stores:
        stores = table("store", ">entries", ">file", "")
        for name, one in found.stores.items():
            stores.add_row(*as_row((name, one.entries, size(one.file_bytes), one.problem or "")))
        output.print(stores)
    counts = table("entries by", "", ">number")
    labels = {
        f"label of {name}": labels.most_common() for name, labels in sorted(found.labels.items())
    }
    spans = {f"span of {name}": found.most_common() for name, found in sorted(found.spans.items())}
    arrays = [(name, each.number) for name, each in found.arrays.items()]
    groups = {
        "status": found.statuses.most_common(),
        "model": found.models.most_common(),
        **labels,
        **spans,
        "array": arrays,
    }
    for group, members in groups.items():
        for index, (name, number) in enumerate(members):
            first = "" if index else group
            counts.add_row(*as_row((first, name, number)))
    if counts.row_count:
        output.print(counts)
    if found.rows_bytes:
        sites = table(">layer", ">bytes")
        for site, number in (*sorted(found.layer_bytes.items()), *found.site_bytes.items()):
            sites.add_row(str(site), size(number))
        output.print(sites)
    if found.writers:
        names = ("entries", "captures", "rows", "bytes", "dropped", "unkept", "lost", "errors")
        writers = table("writer", "role", ">pid", "started", "stopped", *(f">{n}" for n in names))
        ordered = sorted(found.writers.items(), key=lambda item: item[1]["started"])
        for name, record in ordered:
            stopped = moment(record["stopped"]) if "stopped" in record else "-"
            who = (name[:8], record["role"], record["pid"], moment(record["started"]), stopped)
            writers.add_row(*as_row((*who, *(record.get(n, 0) for n in names))))
        output.print(writers)
