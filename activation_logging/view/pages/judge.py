"""Labelling by hand: one answer after the other, and how far those who label agree."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.errors import ViewError
from activation_logging.records import LABELS, SPAN_LABELS, checked_spans
from activation_logging.strict_json import dumps
from activation_logging.tags import ANSWER, GOLD
from activation_logging.view.addresses import address, key_of
from activation_logging.view.finding import Search
from activation_logging.view.judging import (
    ORDERS,
    agreement,
    check_name,
    give,
    next_answer,
    take_back,
)
from activation_logging.view.pages.answers import evaluators, reading, scores_of
from activation_logging.view.pages.entry import answer_parts
from activation_logging.view.state import Form, State, base_of, page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.records import Evaluation, Span

router = APIRouter()
Text = Annotated[str, Query(max_length=300)]


@router.get("/label")
def label(
    request: Request,
    state: State,
    by: Text = "",
    order: Text = "unlabelled",
    threshold: float = 0.5,
    after: Text = "",
    key: Text = "",
    colour: Text = "",
) -> Response:
    """The next answer to label, or the one with this key; first, who labels.

    What probes and others say of it is not shown: it would be said again.
    """
    state.up_to_date()
    index = state.index
    if not index.ready:
        return page(request, state, "reading.html.j2", **reading(index))
    pairs = [pair for pair in request.query_params.multi_items() if pair[0] in _NARROWING]
    search = Search.of(pairs)
    common: dict[str, Any] = {
        "by": by,
        "order": order,
        "orders": ORDERS,
        "threshold": threshold,
        "search": search,
        "scores": scores_of(index),
        "evaluators": evaluators(index),
        "narrowed": pairs,
    }
    if not by:
        return page(request, state, "who.html.j2", **common, key=key)
    check_name(state.store, by)
    queue = urlencode(
        [("by", by), ("order", order), ("threshold", f"{threshold:g}"), *pairs], errors="replace"
    )
    following = next_answer(index, search, by=by, order=order, threshold=threshold, after=after)
    entry = index.entry(following.slot) if following.slot is not None else None
    if key:
        entry = state.store[key_of(key)]
    if entry is None:
        return page(request, state, "done.html.j2", **common, queue=queue, skipped=bool(after))
    mine = entry.evaluations.get(by)
    parts = answer_parts(state, entry, colour, by, blind=True)
    return page(
        request,
        state,
        "label.html.j2",
        **common,
        **parts,
        queue=queue,
        left=following.left,
        skip=after if key else following.after,
        after=after,
        marks=dict(zip("hcri", LABELS, strict=True)),
        span_marks=dict(zip("sxv", SPAN_LABELS, strict=True)),
        mine=mine,
        my_spans=dumps([span.as_json() for span in mine.spans] if mine else []),
        expected=next((entry.tags[name] for name in (ANSWER, GOLD) if name in entry.tags), None),
    )


_NARROWING = ("q", "model", "status", "label", "tag", "since", "until", "score", "low", "high")


@router.post("/label")
def save(request: Request, state: State, form: Form) -> Response:
    """Save a label, or spans, and go on to the next answer."""
    fields = dict(form)
    by, key, given = fields.get("by", ""), key_of(fields.get("key", "")), fields.get("label", "")
    spans = None
    if "spans" in fields:
        spans = checked_spans(_parsed(fields["spans"]))
    with state.writable() as store:
        mine = store[key].evaluations.get(by)
        if spans is not None and "known" in fields:
            spans = _merged(mine, checked_spans(_parsed(fields["known"])), spans)
        if not given and spans is not None:
            # A span that is wrong makes the answer wrong, until its person says otherwise.
            wrong = any(one.label == "contradicted" for one in spans)
            given = mine.label if mine is not None else "hallucinated" if wrong else "correct"
        if given not in LABELS:
            raise ViewError(f"label: {given[:80]!r} is not one of {', '.join(LABELS)}")
        give(state.index, store, key, by=by, label=given, spans=spans)
    return _back(request, fields, key if spans is not None else "")


@router.post("/label/undo")
def undo(request: Request, state: State, form: Form) -> Response:
    """Take the latest label of a person back, and show its answer again."""
    fields = dict(form)
    with state.writable() as store:
        key = take_back(state.index, store, fields.get("by", ""))
    return _back(request, fields, key)


def _merged(
    mine: Evaluation | None, known: Sequence[Span], given: Sequence[Span]
) -> tuple[Span, ...]:
    """The marks that there are by now, with what a page has changed that was opened with ``known``.

    The same person may have marked something else in another tab meanwhile.
    """
    there = mine.spans if mine is not None else ()
    taken = [one for one in known if one not in given]
    return (
        *(one for one in there if one not in taken),
        *(one for one in given if one not in known and one not in there),
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ViewError("the spans are no list of JSON") from None


def _back(request: Request, fields: dict[str, str], key: str) -> Response:
    """To the queue again: to one answer of it, or to the next."""
    pairs = parse_qsl(fields.get("queue", ""))
    if fields.get("after"):
        pairs.append(("after", fields["after"]))
    if key:
        pairs.append(("key", address(key)))
    return RedirectResponse(f"{base_of(request)}/label?{urlencode(pairs, errors='replace')}", 303)


@router.get("/agreement")
def agree(request: Request, state: State, first: Text = "", second: Text = "") -> Response:
    """How far two evaluators agree, and where not."""
    state.up_to_date()
    names = evaluators(state.index)
    first, second = _two(names, first, second)
    with state.index.reading() as columns:
        found = agreement(columns, first, second)
    return page(
        request, state, "agreement.html.j2", names=names, first=first, second=second, found=found
    )


def _two(names: list[str], first: str, second: str) -> tuple[str, str]:
    """Two names: those that are asked for, else the first that there are."""
    first = first or next(iter(names), "")
    return first, second or next((one for one in names if one != first), "")
