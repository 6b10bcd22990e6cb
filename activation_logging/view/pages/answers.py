"""The list of answers: searched, filtered, sorted, counted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.errors import EntryNotFound
from activation_logging.store.query import find as find_entry
from activation_logging.view.addresses import address, key_of
from activation_logging.view.finding import Found, Search, find
from activation_logging.view.judging import HAND
from activation_logging.view.state import State, base_of, page

if TYPE_CHECKING:
    from activation_logging.store import Entry
    from activation_logging.view.index import SearchIndex

router = APIRouter()
_KEY = re.compile(r"([^\s:]+:)?[0-9a-f]{8,64}([#.]\d+)?")
PAGE_SIZE = 50
_BRIEF = 239
"""Characters of a text that a list shows."""
_CUT = 4 * _BRIEF


class Row(NamedTuple):
    """One answer of the list; ``entry`` is None where it cannot be read."""

    slot: int
    entry: Entry | None
    question: str
    response: str
    number: float | None


@router.get("/")
def answers(request: Request, state: State) -> Response:
    """A page of answers. A key, the beginning of one, or a request's id leads to the answer."""
    search = Search.of(request.query_params.multi_items())
    fresh = state.up_to_date()
    index = state.index
    if not index.ready:
        return page(request, state, "reading.html.j2", **reading(index))
    if (found_one := _named(state, search.q.strip())) is not None:
        where = f"{base_of(request)}/entry/{address(found_one)}"
        if "hx-request" in request.headers:
            # The form takes the list out of what comes, and an answer's page has none.
            return Response(headers={"hx-redirect": quote(where, safe="/:.")})
        return RedirectResponse(where, 303)
    found = find(index, search, size=PAGE_SIZE)
    shown = page(
        request,
        state,
        "answers.html.j2",
        search=search,
        found=found,
        rows=list(_rows(index, found)),
        scores=scores_of(index),
        evaluators=evaluators(index),
        left_out=sorted(index.left_out),
        total=len(index.store),
        fresh=fresh,
        hand=HAND,
    )
    # What the browser's address becomes, without the form's empty fields.
    query = search.link(after=search.after)
    shown.headers["hx-push-url"] = f"{base_of(request)}/{f'?{query}' if query else ''}"
    return shown


def reading(index: SearchIndex) -> dict[str, Any]:
    """How far the search index has been made."""
    return {"read": index.read, "of": max(len(index.store), index.read, 1)}


def scores_of(index: SearchIndex) -> list[tuple[str, str]]:
    """Columns of numbers that a list can be sorted by, with what people call them."""
    with index.reading() as columns:
        return [
            *((f"score/{name}", f"score {name}") for name in columns.names("score")),
            *((f"judged/{name}", f"score of label {name}") for name in columns.names("judged")),
        ]


def evaluators(index: SearchIndex) -> list[str]:
    """Names under which there are labels."""
    with index.reading() as columns:
        return columns.names("label")


def _named(state: State, text: str) -> str | None:
    """The key of the only answer that has this key, beginning of a key, or request id."""
    if not text or " " in text or len(text) > 300:
        return None
    if not (_KEY.fullmatch(text) or "-" in text):
        return None
    try:
        found = find_entry(state.store, key_of(text) if _KEY.fullmatch(text) else text)
    except EntryNotFound:
        return None
    return found[0].key


def _rows(index: SearchIndex, found: Found) -> Any:
    numbers = found.numbers or [None] * len(found.slots)
    for slot, number in zip(found.slots, numbers, strict=True):
        entry = index.entry(slot)
        if entry is None:
            yield Row(slot, None, "", "", number)
        else:
            question = entry.question
            if question == entry.prompt and len(question) > _BRIEF:
                # What is asked stands at the end of a long text.
                question = f"…{question[-_BRIEF:]}"
            yield Row(slot, entry, question[:_CUT], entry.response[:_CUT], number)
