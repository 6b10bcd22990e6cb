"""Commands that look into a store: ls, show, stats, verify, repair, delete."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from activation_logging.cli.terminal import AsJson, StorePath, errors, output, print_json
from activation_logging.errors import EntryNotFound, SettingsError
from activation_logging.store import Store, open_store
from activation_logging.store.filters import select

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.store import Entry

_KEY_SHOWN = 12
_TEXT_SHOWN = 40
_PROBLEMS_SHOWN = 20

ModelName = Annotated[str | None, typer.Option("--model", help="Only this model's answers.")]
StatusName = Annotated[
    str | None, typer.Option(help="Only complete, pending, failed or dropped ones.")
]
LabelName = Annotated[
    str | None, typer.Option(help="Only ones with this label: LABEL, or EVALUATOR=LABEL.")
]
Tags = Annotated[
    list[str], typer.Option("--tag", help="Only ones with this tag, NAME=VALUE; repeatable.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (ls, show, stats, verify, repair, delete):
        app.command()(command)


def ls(  # noqa: PLR0917 - typer passes them by name
    path: StorePath,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many first.")] = 0,
    model: ModelName = None,
    status: StatusName = None,
    label: LabelName = None,
    tag: Tags = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """List answers, the newest first."""
    with open_store(path) as store:
        found = select(
            store,
            model=model,
            status=status,
            label=label,
            tags=_tags(tag),
            limit=limit,
            offset=offset,
        )
        rows = [_summary(entry) for entry in found]
        total = len(store)
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("key", "created", "prompt", "answer", "rows", "status", "labels"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in rows:
        shape = row["shape"]
        table.add_row(
            _short_key(row["key"]),
            _when(row["created"]),
            _plain(row["prompt"], last=True),
            _plain(row["response"]),
            f"{shape[0]} x {shape[1]}" if shape else "-",
            row["status"],
            escape(", ".join(f"{name}: {found}" for name, found in row["labels"].items())),
        )
    output.print(table)
    output.print(f"{len(rows)} shown of {total} in {escape(str(path))}", style="dim")


def show(
    path: StorePath,
    key: Annotated[str, typer.Argument(help="A key, the beginning of one, or a request id.")],
    as_json: AsJson = False,
) -> None:
    """Show one answer whole: texts, tokens, labels, and its activations in numbers."""
    with open_store(path) as store:
        entry = _find(store, key)
        layers = list(_layer_numbers(entry))
        if as_json:
            print_json({**_summary(entry), **entry.document, "layer_numbers": layers})
            return
        _print_entry(entry, layers)


def stats(path: StorePath, as_json: AsJson = False) -> None:
    """Count answers by status, model and label, and what was written by whom."""
    with open_store(path) as store:
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("status", "model", "label")}
        for entry in _progress(store.entries(), len(store), "Counting"):
            counts["status"][entry.status] += 1
            counts["model"][entry.model] += 1
            for name, found in entry.evaluations.items():
                counts["label"][f"{name}: {found.label}"] += 1
        size = (path / "data.mdb").stat()
        found = {
            "entries": len(store),
            **{name: dict(count.most_common()) for name, count in counts.items()},
            "bytes_on_disk": size.st_blocks * 512,
            "writers": store.writers(),
        }
    if as_json:
        print_json(found)
        return
    output.print(f"{found['entries']} answers, {found['bytes_on_disk'] / 1e6:,.1f} MB on disk")
    for name, count in counts.items():
        table = Table(name, "answers", box=None, header_style="bold", pad_edge=False)
        for value, number in count.most_common():
            table.add_row(escape(value), str(number))
        output.print(table if count else f"no {name}", "")
    table = Table(*("writer", *_COUNTERS), box=None, header_style="bold", pad_edge=False)
    for record in found["writers"].values():
        table.add_row(record["role"], *(f"{record.get(name, 0):,}" for name in _COUNTERS))
    output.print(table)


def verify(
    path: StorePath,
    model: Annotated[
        str | None,
        typer.Option(help="Folder (or cached name) of the model: also prove alignment."),
    ] = None,
    served_as: Annotated[
        str | None, typer.Option(help="The model's name in the store, if it is another.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every answer is whole and finite and, with --model, that rows fit their tokens.

    The model's output head applied to row p of the last layer must give token p+1 wherever the
    answer was greedy. The exit code is 1 if anything is wrong.
    """
    from activation_logging.alignment import match_model
    from activation_logging.lm_head import load_lm_head
    from activation_logging.verify import verify as check

    with open_store(path) as store:
        head = None if model is None else load_lm_head(model)
        belongs = (lambda _: True) if model is None else match_model(store, model, served_as)
        report = check(
            store,
            head,
            checks_alignment=belongs,
            progress=lambda keys: _progress(keys, len(store), "Checking"),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def repair(path: StorePath, yes: Yes = False) -> None:
    """Remove what killed processes left half written: answers without rows, rows without answers.

    Halves whose writer is still running are left alone; the other half may be on its way.
    """
    from activation_logging.store.halves import find_halves, remove_half

    with open_store(path, writable=True) as store:
        halves = [half for half in find_halves(store) if half.final]
        for half in halves:
            what = "answer without rows" if half.kind == "entry" else "rows without an answer"
            output.print(f"{what}: {escape(half.id)}", highlight=False)
        if not halves:
            output.print("Nothing to repair.")
            return
        if not yes:
            typer.confirm(f"Remove these {len(halves)}?", abort=True)
        removed = sum(remove_half(store, half) for half in halves)
    output.print(f"{removed} removed.")


def delete(  # noqa: PLR0917 - typer passes them by name
    path: StorePath,
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys; or choose with the options.")
    ] = None,
    model: ModelName = None,
    status: StatusName = None,
    label: LabelName = None,
    tag: Tags = [],  # noqa: B006 - typer copies it
    yes: Yes = False,
) -> None:
    """Remove answers with their labels, and the rows that no other answer shares."""
    filtered = any((model, status, label, tag))
    if bool(keys) == filtered:
        raise SettingsError("give keys, or choose with --model, --status, --label or --tag")
    with open_store(path, writable=True) as store:
        if keys:
            chosen = [_find(store, key).key for key in keys]
        else:
            found = select(store, model=model, status=status, label=label, tags=_tags(tag))
            chosen = [entry.key for entry in found]
        if chosen and not yes:
            typer.confirm(f"Delete {len(chosen)} answers from {path}?", abort=True)
        for key in _progress(chosen, len(chosen), "Deleting"):
            store.delete(key)
    output.print(f"{len(chosen)} deleted.")


_COUNTERS = ("entries", "captures", "rows", "bytes", "dropped", "errors")


def _summary(entry: Entry) -> dict[str, Any]:
    complete = entry.status == "complete"
    return {
        "key": entry.key,
        "request_id": entry.request_id,
        "choice": entry.choice,
        "created": entry.created,
        "model": entry.model,
        "prompt": entry.prompt,
        "response": entry.response,
        "finish_reason": entry.finish_reason,
        "status": entry.status,
        "status_reason": entry.status_reason,
        "shape": [len(entry.positions), entry.hidden_size] if complete else None,
        "layers": entry.layers if complete else None,
        "dtype": entry.dtype if complete else None,
        "labels": {name: found.label for name, found in entry.evaluations.items()},
        "tags": entry.tags,
    }


def _layer_numbers(entry: Entry) -> Iterator[dict[str, Any]]:
    if entry.status != "complete":
        return
    for layer in entry.layers:
        rows = entry.layer(layer).astype(np.float32)
        yield {
            "layer": layer,
            "shape": list(rows.shape),
            "min": float(rows.min(initial=np.inf)),
            "max": float(rows.max(initial=-np.inf)),
            "mean_norm": float(np.linalg.norm(rows, axis=1).mean()) if len(rows) else None,
        }


def _print_entry(entry: Entry, layers: list[dict[str, Any]]) -> None:
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("key", entry.key),
        ("request", f"{entry.request_id}, choice {entry.choice}"),
        ("model", f"{entry.model}, vLLM {entry.vllm_version}"),
        ("created", _when(entry.created)),
        ("status", " - ".join(filter(None, (entry.status, entry.status_reason)))),
        ("finish", str(entry.finish_reason)),
        ("tokens of the prompt", str(len(entry.prompt_token_ids))),
        ("tokens of the answer", str(len(entry.response_token_ids))),
        ("sampling", str(entry.sampling)),
        ("tags", str(entry.tags)),
    ):
        facts.add_row(f"[dim]{name}[/]", escape(value))
    output.print(facts)
    output.rule("prompt", align="left")
    output.print(_printable(entry.prompt), markup=False, highlight=False)
    output.rule("answer", align="left")
    output.print(_printable(entry.response), markup=False, highlight=False)
    output.rule("labels", align="left")
    for name, found in entry.evaluations.items():
        output.print(f"{name}: {found.label} (score {found.score}, by {found.judge})", markup=False)
    output.rule("activations", align="left")
    table = Table("layer", "rows", "hidden", "min", "max", "mean norm", box=None)
    for row in layers:
        name = f"{row['layer']} (last)" if row["layer"] == entry.num_layers else str(row["layer"])
        table.add_row(
            name,
            *map(str, row["shape"]),
            *(f"{row[number]:.3g}" for number in ("min", "max", "mean_norm")),
        )
    output.print(table)
    if layers:
        positions = entry.positions
        output.print(f"{entry.dtype}, positions {positions[:1]} to {positions[-1:]}", style="dim")


def _print_report(report: Any) -> None:
    statuses = ", ".join(f"{count} {status}" for status, count in report.statuses.items())
    output.print(f"{report.entries} answers ({statuses or 'none'}), {report.rows} rows, finite.")
    for kind, text in (
        ("greedy", "follow from the row before them (greedy answers)"),
        ("sampled", "are the likeliest after the row before them (sampled answers)"),
    ):
        share = report.share(kind)
        if share is not None:
            output.print(f"{100 * share:.2f} % of the tokens {text}.")
    ranks = [found.median_rank for found in report.alignments if found.kind == "sampled"]
    if ranks:
        output.print(f"Median rank of sampled tokens: {np.median(ranks):.0f} (0 is the likeliest).")
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        errors.print(f"[red]{_short_key(problem.key)}[/] {escape(problem.what)}", highlight=False)
    hidden = len(report.problems) - _PROBLEMS_SHOWN
    if hidden > 0:
        errors.print(f"... and {hidden} more; --json names all")
    output.print("[green]All is well.[/]" if report.ok else "[red]Something is wrong.[/]")


def _find(store: Store, key: str) -> Entry:
    """The entry with that key, beginning of a key, or request id, if there is exactly one."""
    if key in store:
        return store[key]
    found = store.for_request(key)
    if not found:
        found = [store[name] for name in store if name.startswith(key)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise EntryNotFound(f"there is no entry or request {key[:100]!r} in {store.path}")
    names = ", ".join(entry.key for entry in found[:5])
    raise SettingsError(f"{key[:100]!r} may be any of {len(found)} entries: {names}")


def _progress(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    """A bar on standard error, gone when it is done; nothing where nobody watches."""
    if not errors.is_terminal:
        return items
    return track(items, text, total=total, console=errors, transient=True)


def _tags(pairs: list[str]) -> dict[str, str] | None:
    for pair in pairs:
        if "=" not in pair:
            raise SettingsError(f"--tag: {pair[:80]!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs) or None


def _short_key(key: str) -> str:
    base, hash_sign, number = key.partition("#")
    return f"{base[:_KEY_SHOWN]}{hash_sign}{number}"


def _when(created: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))


def _plain(text: str, *, last: bool = False) -> str:
    """One short line of a text; of prompts the end says more, behind the same template."""
    line = " ".join(_printable(text).split())
    if len(line) > _TEXT_SHOWN:
        line = f"…{line[1 - _TEXT_SHOWN :]}" if last else f"{line[: _TEXT_SHOWN - 1]}…"
    return escape(line)


def _printable(text: str) -> str:
    """Control characters made visible, so that a prompt cannot move the cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
