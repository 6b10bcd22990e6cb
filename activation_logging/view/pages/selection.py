"""What is done with a selection of answers: saved as a file, labelled, deleted."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse, StreamingResponse

from activation_logging.errors import StoreCorrupt, ViewError
from activation_logging.strict_json import dumps
from activation_logging.view.finding import Search, matching_slots
from activation_logging.view.judging import give_all
from activation_logging.view.state import Form, State, base_of, page

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.store import Entry, Store
    from activation_logging.view.state import ViewState

router = APIRouter()

MOST = 100_000
"""More answers are not changed from a page, which would not answer meanwhile."""
_SHOWN = 10
_FIELDS = (
    *("key", "created", "model", "request_id", "status", "finish_reason", "prompt", "response"),
    *("tags", "evaluations"),
)


@router.post("/selection")
def selection(request: Request, state: State, form: Form) -> Response:
    """Do with the chosen answers what the pressed button says."""
    fields = dict(form)
    action, query = fields.get("action", ""), fields.get("query", "")
    chosen = _chosen(state, form)
    if not chosen:
        raise ViewError("no answer is selected: tick some, or all that match")
    if action in ("jsonl", "csv"):
        return _file(state.store, chosen, action)
    if len(chosen) > MOST:
        raise ViewError(
            f"{len(chosen):,} answers are more than a page changes at once ({MOST:,}): narrow the "
            "list down, or use `activation-logging delete` or `label`"
        )
    if action == "label":
        _label(state, chosen, fields.get("by", ""), fields.get("label", ""))
    elif action == "delete" and fields.get("sure") != str(len(chosen)):
        # Also where the number has changed since the question.
        first = [state.store[key] for key in chosen[:_SHOWN] if key in state.store]
        return page(
            request, state, "sure.html.j2", entries=first, keys=chosen, number=len(chosen),
            query=query, everything=fields.get("all") == "1",
        )  # fmt: skip
    elif action == "delete":
        with state.writable() as store:
            store.delete_all(chosen)
        state.index.keep_up()
    else:
        raise ViewError(f"{action[:80]!r} is nothing that can be done with a selection")
    return RedirectResponse(f"{base_of(request)}/{f'?{query}' if query else ''}", 303)


def _chosen(state: ViewState, form: Iterable[tuple[str, str]]) -> list[str]:
    """Keys of the answers that are ticked, or of all that match the query of the list."""
    fields = dict(form)
    if fields.get("all") == "1":
        search = Search.of(parse_qsl(fields.get("query", "")))
        return state.index.keys(matching_slots(state.index, search).tolist())
    return list(dict.fromkeys(value for name, value in form if name == "key"))


def _label(state: ViewState, keys: list[str], by: str, label: str) -> None:
    with state.writable() as store:
        there = [key for key in keys if key in store]
        give_all(state.index, store, there, by=by, label=label)


def _file(store: Store, keys: list[str], kind: str) -> Response:
    records = (_record(store[key]) for key in keys if key in store)
    lines = _json_lines(records) if kind == "jsonl" else _csv_lines(records)
    return StreamingResponse(
        lines,
        media_type="application/x-ndjson" if kind == "jsonl" else "text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="answers.{kind}"'},
    )


def _record(entry: Entry) -> dict[str, Any]:
    try:
        return {
            **entry.summary(),
            "evaluations": {name: one.as_json() for name, one in entry.evaluations.items()},
            "scores": {name: rows.tolist() for name, rows in entry.scores.items()},
            "score_digests": entry.score_digests,
        }
    except StoreCorrupt as error:
        return {"key": entry.key, "error": str(error)}


def _json_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        yield dumps(record) + "\n"


def _csv_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line per answer; what is no text or number is JSON."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(_FIELDS)
    for record in records:
        writer.writerow([_cell(record.get(name)) for name in _FIELDS])
        yield buffer.getvalue().encode("utf-8", "replace").decode()
        buffer.seek(0)
        buffer.truncate()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        # A spreadsheet would take it for a formula.
        return f"'{value}"
    return value if isinstance(value, (str, int, float)) or value is None else dumps(value)
