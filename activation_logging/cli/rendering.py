"""Entries and results for people and for programs; no prompt can disturb a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from activation_logging.cli.terminal import errors, output
from activation_logging.errors import StoreError
from activation_logging.printable import printable
from activation_logging.text import last_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from activation_logging.report import ComparisonResult, ReportResult
    from activation_logging.sites import Site
    from activation_logging.store import Entry

SHORT_KEY = 10
_STATUS_STYLE = {"complete": "green", "pending": "yellow", "unkept": "dim", "elsewhere": "cyan"}
_TOKENS_SHOWN = 16
_CELL = 200


def shorten(text: str, width: int) -> str:
    """The beginning of a text, on one line of at most ``width`` characters."""
    line = printable(text[: width + 1])
    return line if len(line) <= width and len(text) <= width else line[: width - 1] + "…"


def moment(seconds: float) -> str:
    """A date and the time of day, local."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(*columns: str, **options: Any) -> Table:
    """An empty table in the style of all others; a column named ``>x`` is one of numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, **options)
    for name in columns:
        numeric = name.startswith(">")
        made.add_column(name.removeprefix(">"), justify="right" if numeric else "left")
    return made


def as_row(values: Iterable[Any]) -> list[Text]:
    """Cells as they are, each on one line: what would disturb the terminal is an escape."""
    return [value if isinstance(value, Text) else Text(printable(str(value))) for value in values]


LINES = 20
"""So many lines of a long list are printed; ``--json`` has all."""


def reasons_table(what: str, found: Sequence[tuple[str, str]]) -> Table:
    """The first entries that something is said about: key and text."""
    made = table(what, "")
    for key, text in found[:LINES]:
        made.add_row(*as_row((short_key(key), text)))
    return made


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=_STATUS_STYLE.get(status, "red"))


def labels_text(entry: Entry) -> str:
    """All labels of an entry, ``NAME=LABEL`` each."""
    return ", ".join(f"{k}={v.label}" for k, v in entry.evaluations.items())


def arrays_text(entry: Entry) -> str:
    """The arrays beside an entry with their shapes: ``score/NAME [12]``."""
    return ", ".join(f"{k} {list(v.shape)}" for k, v in entry.derived_headers().items())


def print_report(result: ReportResult) -> None:
    """The AUROC table, the finding, and the page's path."""
    made = table("detector", "layer", "position", ">AUROC", "95 % interval", "over best control")
    for row in result.table:
        interval, over = f"{row.low:.3f} to {row.high:.3f}", row.over_best_control
        compared = f"{over.value:+.3f} ({over.low:+.3f} to {over.high:+.3f})" if over else ""
        where = (row.detector, row.layer, row.position)
        made.add_row(*as_row((*where, f"{row.auroc:.3f}", interval, compared)))
    output.print(made)
    if result.left_out:
        errors.print(
            "left out, as the page explains, for want of what they read: "
            f"{', '.join(result.left_out)}",
            style="dim",
        )
    output.print(result.headline)
    output.print(f"page: {result.page}")


def print_comparison(result: ComparisonResult) -> None:
    """The AUROC of each detector in each study, the findings, and the page's path."""
    made = table("detector", *(f">{printable(title)}" for title in result.reports))
    tables = [{row.detector: row.auroc for row in one.table} for one in result.reports.values()]
    for detector in dict.fromkeys(name for one in tables for name in one):
        found = [one.get(detector) for one in tables]
        cells = ["" if auroc is None else f"{auroc:.3f}" for auroc in found]
        made.add_row(*as_row((detector, *cells)))
    output.print(made)
    for title, reason in result.left_out.items():
        errors.print(f"left out: {title}: {reason}", style="dim")
    for title, one in result.reports.items():
        output.print(f"{title}: {one.headline}")
    output.print(f"page: {result.page}")


def entries_table(entries: Sequence[Entry]) -> Table:
    """The table of ``ls``, a line per entry; a model that all share stands below it."""
    models = {entry.model for entry in entries}
    shared = len(models) == 1
    made = table("key", "created", expand=True, collapse_padding=True)
    if shared:
        made.caption = Text(f"model: {printable(models.pop())}", style="dim")
        made.caption_justify = "left"
    else:
        made.add_column("model")
    for name in ("prompt", "response"):
        made.add_column(name, ratio=1, overflow="ellipsis")
    for name in ("rows", "dtype", "status", "labels"):
        made.add_column(name)
    for column in made.columns:
        column.no_wrap = True
    for entry in entries:
        rows, dtype = _shape(entry)
        model = () if shared else (shorten(last_part(entry.model), 20),)
        asked, answered = shorten(entry.question, _CELL), shorten(entry.response, _CELL)
        created = moment(entry.created)[len("2000-") :]
        status, labels = status_text(entry.status), labels_text(entry)
        row = (short_key(entry.key), created, *model, asked, answered, rows, dtype, status, labels)
        made.add_row(*as_row(row))
    return made


def short_key(key: str) -> str:
    """Enough of a key to tell it from others, with the number of the repetition."""
    name, colon, own = key.rpartition(":")
    base, mark, number = own.partition("#")
    return name + colon + base[:SHORT_KEY] + mark + number


def summary(entry: Entry) -> dict[str, Any]:
    """An entry for ``ls --json``: everything but long lists."""
    has_rows = _has_rows(entry)
    return {
        **entry.summary(),
        "status_reason": entry.status_reason,
        "rows": len(entry.positions) if has_rows else None,
        "hidden_size": entry.hidden_size if has_rows else None,
        "layers": list(entry.layers) if has_rows else None,
        "sites": [str(site) for site in entry.sites] if has_rows else None,
        "dtype": entry.dtype if has_rows else None,
        "labels": {name: found.label for name, found in entry.evaluations.items()},
        "derived": entry.derived_names,
    }


def full(entry: Entry) -> dict[str, Any]:
    """An entry for ``show --json``: the stored record, its labels, and numbers per site."""
    return {
        **entry.document,
        "key": entry.key,
        "status": entry.status,
        "status_reason": entry.status_reason,
        "evaluations": {name: found.as_json() for name, found in entry.evaluations.items()},
        "derived": {name: head.as_json() for name, head in entry.derived_headers().items()},
        "first_position": int(entry.positions[0]) if _row_count(entry) else None,
        "layers": site_numbers(entry),
    }


def site_numbers(entry: Entry) -> list[dict[str, Any]]:
    """Shape, stored type, least and greatest value, and mean length of the rows, per site.

    ``layer`` is a number for the residual stream, else a text such as ``heads@15``.
    """
    return [_numbers(entry, site) for site in entry.sites] if _has_rows(entry) else []


def sites_table(numbers: Iterable[Mapping[str, Any]]) -> Table:
    """The numbers of :func:`site_numbers`, for people."""
    made = table(">layer", "shape", "dtype", ">min", ">max", ">mean norm of rows")
    for found in numbers:
        shape = " x ".join(map(str, found["shape"]))
        values = [
            "-" if found[k] is None else f"{found[k]:.4g}" for k in ("min", "max", "mean_norm")
        ]
        made.add_row(*as_row((found["layer"], shape, found["dtype"], *values)))
    return made


def tokens_table(entry: Entry) -> Table:
    """The first and last tokens of the answer, and the row that each was predicted from."""
    ids, pieces, logprobs = entry.response_token_ids, entry.response_tokens, entry.logprobs
    made = table(">response token", ">row", ">id", "text", ">logprob")
    half = _TOKENS_SHOWN // 2
    cut = len(ids) > _TOKENS_SHOWN
    shown = [*range(half), *range(len(ids) - half, len(ids))] if cut else range(len(ids))
    for index in shown:
        if cut and index == len(ids) - half:
            made.add_row("...")
        logprob = logprobs[index] if logprobs and index < len(logprobs) else None
        piece = pieces[index] if pieces and index < len(pieces) else ""
        made.add_row(
            *as_row(
                (
                    index,
                    len(entry.prompt_token_ids) - 1 + index,
                    ids[index],
                    shorten(piece, 30),
                    "" if logprob is None else f"{logprob:.3f}",
                )
            )
        )
    return made


def _numbers(entry: Entry, site: Site) -> dict[str, Any]:
    rows = entry.rows(site)
    values: dict[str, Any] = {"min": None, "max": None, "mean_norm": None}
    if rows.size:
        norms = np.sqrt(np.einsum("nh,nh->n", rows, rows, dtype=np.float64))
        values = dict(zip(values, map(float, (rows.min(), rows.max(), norms.mean())), strict=True))
    shape, dtype = entry.shape_of(site)
    return {"layer": site.label, "shape": [len(rows), *shape], "dtype": dtype, **values}


def _shape(entry: Entry) -> tuple[str, str]:
    if not _has_rows(entry):
        return "-", "-"
    return f"{len(entry.positions)} x {entry.hidden_size}", entry.dtype


def _row_count(entry: Entry) -> int:
    return len(entry.positions) if _has_rows(entry) else 0


def _has_rows(entry: Entry) -> bool:
    try:
        entry.positions  # noqa: B018 - asked for what it raises
    except StoreError:
        return False
    return True
