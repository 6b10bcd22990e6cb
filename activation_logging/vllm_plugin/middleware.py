"""The HTTP side inside vLLM's own application: request bodies, routes and metrics.

The middleware sits innermost, behind vLLM's authentication. It takes ``auth_token`` out of
bodies before anything else sees it, answers HTTP 400 where ``activation_*`` arguments make no
sense, and leaves what only HTTP knows for the front-end tap. Answers pass untouched.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from vllm.v1.metrics.prometheus import get_prometheus_registry

from activation_logging.errors import RequestOptionError
from activation_logging.settings import RequestOptions, Settings
from activation_logging.vllm_plugin.context import HttpRequest, http_request

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_FIELD = "auth_token"  # noqa: S105 - the field's name, not a secret


def extend_app(app: FastAPI) -> None:
    """Add the middleware and the ``/v1/activations`` routes to vLLM's application."""
    from activation_logging import routes

    # The end of the list is the innermost place.
    app.user_middleware.append(Middleware(RequestMiddleware, layers=Settings.from_env().layers))
    app.include_router(routes.router)
    # With several API servers ``/metrics`` knows only what goes through files of its own: answer
    # in its place, with the same and ours.
    app.router.routes.insert(0, Route("/metrics", _metrics))
    # vLLM has already built its stack, and Starlette builds it only once by itself.
    app.middleware_stack = app.build_middleware_stack()


async def _metrics(_request: Request) -> Response:
    from activation_logging import routes

    vllms = generate_latest(get_prometheus_registry())
    ours = await asyncio.to_thread(routes.metrics)
    return Response(vllms + ours, headers={"content-type": CONTENT_TYPE_LATEST})


class RequestMiddleware:
    """Reads the JSON body of every POST once, and passes it on."""

    def __init__(self, app: ASGIApp, layers: str) -> None:
        self._app = app
        self._layers = layers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _is_ours(scope["path"]):
            await self._app(scope, receive, send)
            return
        raw = await read_body(receive)
        body = parse_object(raw)
        if body is not None:
            try:
                raw = self._checked(body, raw)
            except RequestOptionError as error:
                await openai_error(str(error), param=error.parameter)(scope, receive, send)
                return
            request = HttpRequest(body, scope.setdefault("state", {}))
            http_request.set(request)
        await self._app(scope, replay(raw, receive), send)

    def _checked(self, body: dict[str, Any], raw: bytes) -> bytes:
        """The body to pass on: as it came, unless something has to be taken out of it.

        Raises:
            RequestOptionError: an ``activation_*`` argument makes no sense.
        """
        changed = body.pop(TOKEN_FIELD, None) is not None
        extra = body.get("vllm_xargs")
        if isinstance(extra, dict):
            RequestOptions.parse(extra, allowed_layers=self._layers)
            # vLLM's schema takes no nested objects here, users of JSON will write one.
            for name, value in extra.items():
                if name.startswith("activation_") and isinstance(value, dict):
                    extra[name] = json.dumps(value)
                    changed = True
        return json.dumps(body).encode() if changed else raw


def _is_ours(path: str) -> bool:
    return path.startswith("/v1/activations")


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, or None: then it is vLLM's to say what is wrong with it."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            break
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(chunks)


def replay(raw: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once more, then what comes after it: a disconnect."""
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": raw, "more_body": False}
        return await receive()

    return replayed


def openai_error(
    message: str,
    *,
    status: int = 400,
    kind: str = "BadRequestError",
    param: str | None = None,
) -> JSONResponse:
    """An error in the form that OpenAI's clients understand."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)
