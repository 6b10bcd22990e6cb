"""A chat with the server: tokens are coloured as they come, and a probe may end the answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import httpx
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from activation_logging.asgi import AsciiJson
from activation_logging.errors import ActivationLoggingError, StoreError, ViewError
from activation_logging.strict_json import dumps
from activation_logging.view.addresses import address, key_of
from activation_logging.view.state import Form, State, base_of, page
from activation_logging.view.talk import ROLES, Question, Told, events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from activation_logging.store import Entry
    from activation_logging.view.server_link import ServerLink
    from activation_logging.view.state import ViewState

router = APIRouter()

STORED_S = 6.0
"""How long an answer may take from its last token until the store has it."""
_POLL_S = 0.1


@router.get("/chat")
def chat(
    request: Request, state: State, like: Annotated[str, Query(max_length=300)] = ""
) -> Response:
    """The page; ``like`` is the key of an answer whose prompt is to be asked again."""
    earlier: list[dict[str, str]] = []
    plain = False
    if like:
        entry = state.store[key_of(like)]
        earlier, plain = _asked(entry)
    return page(request, state, "chat.html.j2", link=state.server, earlier=earlier, plain=plain)


def _asked(entry: Entry) -> tuple[list[dict[str, str]], bool]:
    """The messages of an entry, and whether they are a plain prompt instead."""
    texts = [
        {"role": one["role"], "content": one["content"]}
        for one in entry.messages or ()
        if one.get("role") in ROLES and isinstance(one.get("content"), str)
    ]
    if texts and len(texts) == len(entry.messages or ()):
        return texts, False
    return [{"role": "user", "content": entry.prompt}], True


@router.get("/chat/server")
async def server(request: Request, state: State) -> Response:
    """What the server has, as JSON: models and probes, or why it does not answer."""
    try:
        return AsciiJson(await _link(state).learn(request.scope))
    except ViewError as error:
        return AsciiJson({"error": str(error)}, 502)


@router.post("/chat/say")
async def say(request: Request, state: State, form: Form) -> Response:
    """The server's answer to a question, as lines of JSON."""
    link, question = _link(state), None
    try:
        question = Question.of(dict(form))
    except ViewError as error:
        return AsciiJson({"error": str(error)}, 400)
    lines = _lines(request, state, link, question)
    return StreamingResponse(lines, media_type="application/x-ndjson")


def _link(state: ViewState) -> ServerLink:
    if state.server is None:
        raise ViewError("these pages know no server: open them with --server URL")
    return state.server


async def _lines(
    request: Request, state: ViewState, link: ServerLink, question: Question
) -> AsyncIterator[bytes]:
    try:
        async for told in _answer(request, state, link, question):
            yield dumps(told).encode("ascii") + b"\n"
    except ActivationLoggingError as error:
        yield dumps({"error": str(error)}).encode("ascii") + b"\n"
    except httpx.HTTPError as error:
        yield dumps({"error": str(link.unreachable(error))}).encode("ascii") + b"\n"


async def _answer(
    request: Request, state: ViewState, link: ServerLink, question: Question
) -> AsyncIterator[dict[str, Any]]:
    told = Told()
    async with link.client(request.scope) as client:
        stream = client.stream("POST", question.path, json=question.body())
        async with stream as answer:
            if not answer.is_success:
                raise ViewError(link.refusal(answer.status_code, await answer.aread()))
            async for chunk in events(answer.aiter_lines()):
                if found := told.chunk(chunk):
                    yield found
        yield {"stored": await _stored(request, state, client, told.request_id)}


async def _stored(
    request: Request, state: ViewState, client: httpx.AsyncClient, request_id: str | None
) -> str | None:
    """The address of the answer in the store; None where it does not come there."""
    if request_id is None:
        return None
    with suppress(httpx.HTTPError):
        await client.post("/v1/activations/flush", timeout=STORED_S)
    for _ in range(round(STORED_S / _POLL_S)):
        with suppress(StoreError):
            found = await asyncio.to_thread(state.store.for_request, request_id)
            if found:
                return f"{base_of(request)}/entry/{address(found[0].key)}"
        await asyncio.sleep(_POLL_S)
    return None
