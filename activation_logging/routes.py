"""``/v1/activations``: the store over HTTP, inside vLLM's own server and behind its API key.

Reading goes through the same :class:`~activation_logging.store.Store` as everywhere else, so
what is listed is what has been committed; ``POST /v1/activations/flush`` waits for the rest.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field, field_validator

from activation_logging import store_metrics
from activation_logging.asgi import AsciiJson
from activation_logging.errors import (
    ActivationLoggingError,
    EntryNotFound,
    LabelError,
    ProbeError,
    RowsMissing,
    SettingsError,
    StoreNotFound,
)
from activation_logging.printable import printable
from activation_logging.records import MAX_LENGTH, MAX_SPANS, Label, SpanLabel, checked_spans
from activation_logging.store import Entry, Store, open_store
from activation_logging.store.query import entries_of, parse_tags, parse_time, readable, select
from activation_logging.store.rows import NUMPY_TYPES
from activation_logging.strict_json import dumps, is_deeper, to_plain
from activation_logging.text import brief, shown

PREFIX = "/v1/activations"


def refuse_unknown(request: Request) -> None:
    """Answer HTTP 400 to a parameter that the route has not: a filter may not be ignored."""
    known = [one.alias for one in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise HTTPException(
                400,
                f"unknown parameter {shown(name)}; "
                f"{'known are ' + ', '.join(known) if known else 'this path takes none'}",
            )


router = APIRouter(
    prefix=PREFIX,
    tags=["activations"],
    default_response_class=AsciiJson,
    dependencies=[Depends(refuse_unknown)],
)

T = TypeVar("T")

PAGE = 50
MAX_PAGE = 1000
MAX_OFFSET = 1 << 53
"""The numbers up to here are exact in every JSON parser."""
MAX_DETAILS_BYTES = 1 << 16
MAX_DETAILS_DEPTH = 32


def add_to(app: FastAPI, lmdb_path: str) -> None:
    """Give an application these routes, over the store at ``lmdb_path``."""
    app.state.activations_path = lmdb_path
    app.include_router(router)


def store_path(request: Request) -> str:
    """The folder of the store that :func:`add_to` was given."""
    return str(request.app.state.activations_path)


StorePath = Annotated[str, Depends(store_path)]


class NewSpan(BaseModel, extra="forbid"):
    """A claim within the response of an entry, in Unicode code points."""

    start: int = Field(ge=0, le=MAX_LENGTH, strict=True, description="Its first character.")
    end: int = Field(ge=1, le=MAX_LENGTH, strict=True, description="The character after its last.")
    label: SpanLabel
    claim: str | None = None
    gold: str | None = None
    source: str | None = None


class NewEvaluation(BaseModel):
    """A label to put beside an entry."""

    name: str = Field(min_length=1, max_length=128, description="The evaluator's name.")
    label: Label
    score: float | None = Field(default=None, allow_inf_nan=False, strict=True)
    judge: str | None = Field(default=None, max_length=1000)
    details: dict[str, Any] | None = None
    spans: list[NewSpan] | None = Field(default=None, max_length=MAX_SPANS)

    @field_validator("details")
    @classmethod
    def _details_are_small(cls, details: dict[str, Any] | None) -> dict[str, Any] | None:
        if is_deeper(details, MAX_DETAILS_DEPTH - 1):
            raise ValueError(f"nested deeper than {MAX_DETAILS_DEPTH} levels")
        if len(dumps(to_plain(details, "details"))) > MAX_DETAILS_BYTES:
            raise ValueError(f"longer than {MAX_DETAILS_BYTES} bytes of JSON")
        return details

    @field_validator("spans")
    @classmethod
    def _spans_are_valid(cls, spans: list[NewSpan] | None) -> list[NewSpan] | None:
        checked_spans(span.model_dump() for span in spans or ())
        return spans


@router.get("")
async def list_entries(
    path: StorePath,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    request_id: Annotated[str | None, Query(max_length=4096)] = None,
    prompt: Annotated[str | None, Query(max_length=100_000)] = None,
    key: Annotated[str | None, Query(max_length=100)] = None,
    model: Annotated[str | None, Query(max_length=4096)] = None,
    status: Annotated[str | None, Query(max_length=100)] = None,
    label: Annotated[str | None, Query(max_length=300)] = None,
    tag: Annotated[list[str], Query(max_length=16)] = [],  # noqa: B006 - FastAPI copies it
    since: Annotated[str | None, Query(max_length=100)] = None,
    until: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Entries, newest first, as summaries; filters may be combined.

    Those of one ``request_id`` come in the order of its choices, those of one ``prompt`` oldest
    first. A ``key`` without ``#`` is that of every answer to its prompt. ``tag`` is ``NAME=VALUE``
    and may be repeated; ``label`` is ``LABEL`` or ``EVALUATOR=LABEL``; ``since`` and ``until`` are
    dates with a time of day (ISO 8601) or ages (``2h``).
    """
    with http_errors():
        tags = parse_tags(tag)

    def read(store: Store) -> dict[str, Any]:
        page = list(
            select(
                store,
                model=model,
                status=status,
                label=label,
                tags=tags or None,
                since=parse_time(since),
                until=parse_time(until),
                among=_asked_for(store, request_id, prompt, key),
                limit=limit + 1,
                offset=offset,
            )
        )
        more = len(page) > limit
        return {
            "object": "list",
            "data": [_summary(entry) for entry in readable(page[:limit])],
            "next": offset + limit if more else None,
        }

    nothing: dict[str, Any] = {"object": "list", "data": [], "next": None}
    return AsciiJson(await _in_store(path, read, nothing=nothing))


def _asked_for(
    store: Store, request_id: str | None, prompt: str | None, key: str | None
) -> list[Entry] | None:
    """Entries of one request, prompt or key, or of all that is given; None where nothing is."""
    ways: list[tuple[str | None, Callable[[str], list[Entry]]]] = [
        (key, partial(entries_of, store)),
        (prompt, store.for_prompt),
        (request_id, store.for_request),
    ]
    found: list[Entry] | None = None
    for given, look_up in ways:
        if given is not None:
            before = None if found is None else {entry.key for entry in found}
            found = [entry for entry in look_up(given) if before is None or entry.key in before]
    return found


@router.get("/counters")
async def counters(path: StorePath) -> Response:
    """How much has been logged: per process that writes, and in all."""
    return AsciiJson(
        await _in_store(path, store_metrics.counters, nothing=store_metrics.summed(0, {}))
    )


@router.get("/stores")
async def stores(request: Request, path: StorePath) -> Response:
    """The stores that this server writes to: its own first, then those of workers elsewhere.

    ``rows_of_engines`` has the numbers of the engines whose rows a store gets. An entry of another
    engine has the status ``elsewhere`` here. To read all as one, open these stores together.
    """
    tap = _tap(request)
    alone = [{"host": socket.gethostname(), "path": path, "entries": True, "rows_of_engines": []}]
    return AsciiJson({"object": "list", "data": alone if tap is None else tap.hosts.as_json()})


def _tap(request: Request) -> Any:
    """The front end of the application's engine; None without a model."""
    engine = getattr(request.app.state, "engine_client", None)
    return getattr(getattr(engine, "output_processor", None), "tap", None)


@router.post("/flush")
async def flush(request: Request, path: StorePath) -> Response:
    """Return once everything answered before this call is in the store, rows included.

    Rows of workers on other hosts are then in the stores that ``/v1/activations/stores`` lists.
    """
    # Without a model nothing is on its way: an engine leaves nothing behind when it ends.
    tap = _tap(request)
    if tap is not None:
        with http_errors():
            await tap.flush_async()
    return AsciiJson({"flushed": True, "entries": await _in_store(path, len, nothing=0)})


@router.get("/{key}")
async def get_entry(key: str, path: StorePath) -> Response:
    """One entry whole, without its tensor. ``key`` may also be the id of a request, here and below.

    That is the ``id`` of the answer; of several choices each has a key of its own.
    """
    return AsciiJson(await _in_store(path, lambda store: _whole(_entry(store, key))))


@router.get("/{key}/tensor")
async def get_tensor(
    key: str,
    path: StorePath,
    layer: Annotated[str | None, Query(pattern=r"^(last|\d{1,5})$")] = None,
    site: Annotated[str | None, Query(max_length=100)] = None,
    derived: Annotated[str | None, Query(max_length=128)] = None,
    format: Annotated[Literal["npy", "safetensors"], Query()] = "npy",  # noqa: A002 - the query's name
) -> Response:
    """The last layer's rows: ``npy`` (bfloat16 widened to float32) or ``safetensors`` (as stored).

    The safetensors file holds ``activations`` ``[rows, hidden]`` and ``positions`` ``[rows]``.
    Instead, ``layer`` is for another layer, ``site``, such as ``heads@15`` or ``heads`` with
    ``layer``, for another site, ``[rows, *shape]``, and ``derived``, such as ``score/NAME``, for an
    array beside the entry, ``values`` in the safetensors file.
    """
    if derived is not None and not (layer is None and site is None):
        raise HTTPException(400, "derived: an array beside the entry has no layer and no site")
    wanted = "@".join(one for one in (site, layer) if one is not None) or "last"

    def read(store: Store) -> bytes:
        entry = _entry(store, key)
        if derived is not None:
            values = _derived(entry, derived)
            return _npy(values) if format == "npy" else _safetensors(entry, {"values": values})
        return _npy(entry.site(wanted)) if format == "npy" else _as_safetensors(entry, wanted)

    what = derived or (f"layer_{wanted}" if site is None else wanted.replace("@", "_"))
    name = f"{key.replace('#', '_')}_{what}.{format}"
    return Response(
        await _in_store(path, read),
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{_ascii(name)}"'},
    )


@router.post("/{key}/evaluations", status_code=201)
async def add_evaluation(key: str, evaluation: NewEvaluation, path: StorePath) -> Response:
    """Put one evaluator's label beside an entry, replacing only its own earlier one."""

    def put(store: Store) -> str:
        entry = _entry(store, key)
        store.put_evaluation(entry.key, **evaluation.model_dump())
        return entry.key

    written = await _in_store(path, put, writable=True)
    said = {"key": written, "name": evaluation.name, "label": evaluation.label}
    return AsciiJson(said, status_code=201)


def _entry(store: Store, key: str) -> Entry:
    """The entry of a key, or of a request with one choice.

    Raises:
        EntryNotFound: there is none. LabelError: the request has several.
    """
    choices = [] if key in store else store.for_request(key)
    if len(choices) > 1:
        keys = brief(", ".join(entry.key for entry in choices), 500)
        raise LabelError(
            f"the request {printable(key)} has {len(choices)} choices: name a key, {keys}"
        )
    return choices[0] if choices else store[key]


async def _in_store(
    path: str, action: Callable[[Store], T], *, writable: bool = False, nothing: T | None = None
) -> T:
    """Run ``action`` on the store in a thread, turning our errors into HTTP's.

    Before the first model is loaded there may be no store: then the answer is ``nothing``, or 404.
    """

    def run() -> T:
        try:
            # Opened for writing, a store that is not there would be made.
            with open_store(path) as store:
                if not writable:
                    return action(store)
        except StoreNotFound:
            if nothing is None:
                raise
            return nothing
        with open_store(path, writable=True) as store:
            return action(store)

    with http_errors():
        return await asyncio.to_thread(run)


@contextmanager
def http_errors() -> Iterator[None]:
    try:
        yield
    except (EntryNotFound, RowsMissing, StoreNotFound) as error:
        raise HTTPException(404, printable(str(error))) from None
    except (SettingsError, LabelError, ProbeError) as error:
        raise HTTPException(400, printable(str(error))) from None
    except ActivationLoggingError as error:
        raise HTTPException(503, printable(str(error))) from None


def _summary(entry: Entry) -> dict[str, Any]:
    found = entry.evaluations
    labels = {name: one.label for name, one in found.items()}
    spans = {name: one.as_json()["spans"] for name, one in found.items() if one.spans}
    shown = {"content": entry.content, "question": entry.question, "derived": entry.derived_names}
    return {**entry.summary(), **shown, "evaluations": labels, "spans": spans}


def _whole(entry: Entry) -> dict[str, Any]:
    whole = {
        **entry.document,
        **entry.summary(),
        "content": entry.content,
        "evaluations": {name: found.as_json() for name, found in entry.evaluations.items()},
        "derived": {name: head.as_json() for name, head in entry.derived_headers().items()},
        "status_reason": entry.status_reason,
        "rows_in": (entry.capture_record() or {}).get("rows_in"),
    }
    if entry.status == "complete":
        whole["activations"] = {
            "layers": entry.layers,
            "sites": [str(site) for site in entry.sites],
            "num_layers": entry.num_layers,
            "dtype": entry.dtype,
            "shape": [len(entry.positions), entry.hidden_size],
            "positions": entry.positions.tolist(),
        }
    return whole


def _npy(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _as_safetensors(entry: Entry, site: str) -> bytes:
    dtype = entry.shape_of(site).dtype
    rows = entry.stored(site).view(NUMPY_TYPES[dtype])
    tensors = {"activations": rows, "positions": entry.positions}
    return _safetensors(entry, tensors, layer=site, dtype=dtype)


def _safetensors(entry: Entry, tensors: dict[str, npt.NDArray[Any]], **notes: str) -> bytes:
    from safetensors.numpy import save

    return save(tensors, metadata={"key": entry.key, **notes})


def _derived(entry: Entry, name: str) -> npt.NDArray[Any]:
    try:
        return entry.derived(name).values
    except KeyError:
        shown = printable(name)
        raise HTTPException(404, f"entry {entry.key} has no array {shown} beside it") from None


def _ascii(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)
