"""The answers whose states are nearest to one answer's, a part of its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.dataset import NAMED_POSITIONS
from activation_logging.errors import ActivationLoggingError, ViewError
from activation_logging.view.addresses import address, key_of
from activation_logging.view.sketches import Place
from activation_logging.view.state import Form, State, base_of, page
from activation_logging.view.tokens import named

if TYPE_CHECKING:
    from activation_logging.store import Entry
    from activation_logging.view.near import Near

router = APIRouter()
Text = Annotated[str, Query(max_length=300)]

_POSITIONS = {
    "response_last": "the last token of the answer",
    "prompt_last": "the last token of the prompt",
    "response_first": "the first token of the answer",
    "response_mean": "the mean over the answer",
    "response_max": "the maximum over the answer",
    "answer_span": "the answer given, as judged or tagged",
}
assert _POSITIONS.keys() == set(NAMED_POSITIONS)


@router.get("/entry/{name}/near")
def near(
    request: Request, state: State, name: str, site: Text = "", position: Text = ""
) -> Response:
    """The nearest answers at a place, or how far its states have been read."""
    entry = state.store[key_of(name)]
    if entry.status != "complete" or not entry.sites:
        return page(request, state, "near.html.j2", entry=entry, sites={})
    state.up_to_date()
    place = _place(entry, state.near, site, position)
    progress, found, problem = None, None, None
    try:
        progress = state.near.progress(place)
        # Before all is read, what is near would change from moment to moment.
        found = None if progress else state.near.find(entry, place)
    except ActivationLoggingError as error:
        problem = str(error)
    return page(
        request,
        state,
        "near.html.j2",
        entry=entry,
        sites={str(one): named(one) for one in entry.sites},
        positions=_POSITIONS,
        place=place,
        progress=progress,
        found=found,
        problem=problem,
    )


@router.post("/entry/{name}/near")
def read(request: Request, state: State, name: str, form: Form) -> Response:
    """Have the states of a place read."""
    entry, fields = state.store[key_of(name)], dict(form)
    place = _place(entry, state.near, fields.get("site", ""), fields.get("position", ""))
    state.near.start(place)
    here = f"{base_of(request)}/entry/{address(entry.key)}/near"
    query = urlencode({"site": place.site, "position": place.position})
    return RedirectResponse(f"{here}?{query}", 303)


def _place(entry: Entry, near: Near, site: str, position: str) -> Place:
    """The place that is asked for; else one that has been read, or the middle of the network.

    Raises:
        ViewError: this answer has no such site, or there is no such position.
    """
    sites = [str(one) for one in entry.sites]
    if site or position:
        site, position = site or _middle(entry), position or "response_last"
    else:
        usual = (_middle(entry), "response_last")
        read = [one for one in near.known(entry.model) if one[0] in sites]
        site, position = usual if usual in read or not read else read[-1]
    if site not in sites:
        raise ViewError(f"{site[:80]!r} of this answer was not logged, only {', '.join(sites)}")
    if position not in _POSITIONS:
        raise ViewError(f"{position[:80]!r} is not one of {', '.join(_POSITIONS)}")
    return Place(entry.model, site, position)


def _middle(entry: Entry) -> str:
    """The middle one of the layers that were logged, or of the sites where no layer was."""
    residual = [one for one in entry.sites if one.name == "resid"] or list(entry.sites)
    if not residual:
        raise ViewError("this answer has no states that were logged")
    return str(residual[len(residual) // 2])
