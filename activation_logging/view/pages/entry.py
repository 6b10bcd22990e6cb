"""One answer: its tokens, prompt and labels, other answers to the same prompt, and heat maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.errors import EntryNotFound, ViewError
from activation_logging.report.examples import shown_span
from activation_logging.view.addresses import address, key_of
from activation_logging.view.differences import compared
from activation_logging.view.heat import make_map, maps
from activation_logging.view.inspect_link import samples_of
from activation_logging.view.state import State, base_of, page
from activation_logging.view.tokens import choices, make_tokens

if TYPE_CHECKING:
    from activation_logging.records import Evaluation
    from activation_logging.store import Entry, Store
    from activation_logging.view.state import ViewState

router = APIRouter()

MOST_OTHERS = 12
"""So many other answers to a prompt are shown beside one."""
Text = Annotated[str | None, Query(max_length=300)]


@router.get("/entry/{name}")
def entry(
    request: Request, state: State, name: str, colour: Text = None, spans: Text = None
) -> Response:
    """An answer. ``colour`` is one of its choices, ``spans`` an evaluator whose spans are shown."""
    found = state.store[key_of(name)]
    others = _others(state.store, found)
    return page(
        request,
        state,
        "entry.html.j2",
        **answer_parts(state, found, colour, spans),
        maps=maps(found, state.probes),
        samples=[(one, one.address(state.inspect)) for one in samples_of(found)],
        others=[
            {
                "entry": one,
                "parts": compared(found.response, one.response),
                "labels": one.evaluations,
            }
            for one in (state.store[key] for key in others[:MOST_OTHERS] if key in state.store)
        ],
        more_others=max(len(others) - MOST_OTHERS, 0),
    )


def _others(store: Store, entry: Entry) -> list[str]:
    """The keys of the other answers to an answer's prompt, the oldest first; there may be many."""
    found = [one for one in store.keys_beginning(entry.prompt_key) if one != entry.key]
    return sorted(found, key=lambda one: int(one.partition("#")[2] or 0))


def answer_parts(
    state: ViewState,
    found: Entry,
    colour: str | None,
    spans: str | None,
    *,
    blind: bool = False,
) -> dict[str, Any]:
    """What a template needs to show an answer with its tokens; ``blind`` for who is to judge it."""
    labels = found.evaluations
    options = choices(found, state.probes)
    by = default_colour(found, options) if colour is None else colour
    verdict = _with_spans(labels, spans)
    shown = [] if verdict is None else [shown_span(found, one, ()) for one in verdict.spans]
    pieces = partial(state.index.pieces, found.model)
    make = partial(make_tokens, spans=shown, pieces=pieces, blind=blind)
    problem = None
    try:
        tokens = make(found, by, state.probes)
    except ViewError as error:
        problem, by = str(error), ""
        tokens = make(found, "", state.probes)
    return {
        "entry": found,
        "labels": labels,
        "choices": options,
        "colour": by,
        "tokens": tokens,
        "spans": shown,
        "spans_by": None if verdict is None else verdict.name,
        "problem": problem,
    }


def default_colour(found: Entry, options: list[Any]) -> str:
    """The first choice that says something of many tokens; log-probabilities before norms."""
    for choice in options:
        kind, _, name = choice.name.partition("/")
        # A probe of answers has one number, which colours nothing.
        if kind != "score" or (found.scores[name] == found.scores[name]).sum() > 1:
            return "" if kind == "norm" else choice.name
    return ""


def _with_spans(labels: dict[str, Evaluation], name: str | None) -> Evaluation | None:
    if name is not None:
        return labels.get(name)
    return next((one for one in labels.values() if one.spans), None)


@router.get("/entry/{name}/map")
def heat_map(
    request: Request,
    state: State,
    name: str,
    of: Text = None,
    start: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
) -> Response:
    """A heat map of an answer, a part of its page."""
    found = state.store[key_of(name)]
    options = maps(found, state.probes)
    of = of or next((choice.name for choice in options), "")
    made = make_map(found, of, state.probes, start) if options else None
    return page(
        request, state, "map.html.j2", entry=found, map=made, of=of, maps=options, start=start
    )


@router.get("/request/{request_id}")
def of_request(request: Request, state: State, request_id: str) -> Response:
    """The first answer of a request, by the id that the server gave it."""
    found = state.store.for_request(request_id)
    if not found:
        raise EntryNotFound(f"there is no answer to a request {request_id[:100]!r}")
    return RedirectResponse(f"{base_of(request)}/entry/{address(found[0].key)}", 303)
