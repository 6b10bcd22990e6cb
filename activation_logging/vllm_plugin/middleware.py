"""The HTTP side inside vLLM's own application: request bodies, routes and metrics.

The middleware sits innermost, behind vLLM's authentication. It takes ``auth_token`` out of
bodies before anything else sees it, answers HTTP 400 where ``activation_*`` arguments make no
sense or stand where they would be ignored, and leaves what only HTTP knows for the front-end tap.
Answers pass untouched.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from vllm.v1.metrics.prometheus import get_prometheus_registry

from activation_logging import routes
from activation_logging.asgi import dump_object, openai_error, parse_object, read_body, replay
from activation_logging.errors import RequestOptionError
from activation_logging.settings import TOKEN_FIELD, RequestOptions, Settings, refuse_misplaced
from activation_logging.vllm_plugin.context import HttpRequest, http_request

logger = logging.getLogger(f"vllm.{__name__}")

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send


def extend_app(app: FastAPI, num_layers: int | None = None) -> None:
    """Add the middleware and the ``/v1/activations`` routes to vLLM's application.

    Args:
        app: what vLLM's ``build_app`` has made.
        num_layers: the model's decoder layers, if there is a model: no request may ask for others.
    """
    settings = Settings.from_env()
    # The end of the list is the innermost place.
    app.user_middleware.append(
        Middleware(RequestMiddleware, layers=settings.layers, num_layers=num_layers)
    )
    _warn_of_others(app)
    routes.add_to(app, settings.lmdb_path)
    # With several API servers ``/metrics`` knows only what goes through files of its own: answer
    # in its place, with the same and ours.
    app.router.routes.insert(0, Route("/metrics", _metrics))
    # vLLM has already built its stack, and Starlette builds it only once by itself.
    app.middleware_stack = app.build_middleware_stack()


def _warn_of_others(app: FastAPI) -> None:
    """Name who else answers under our prefix, such as vllm-lens 1.3: the first route wins."""
    for route in app.routes:
        path, handler = getattr(route, "path", ""), getattr(route, "endpoint", None)
        if path == routes.PREFIX or path.startswith(f"{routes.PREFIX}/"):
            logger.warning(
                "%s is answered by %s, not by activation logging: uninstall or switch off one of "
                "the two, or read the store by its path",
                path,
                getattr(handler, "__module__", handler),
            )


async def _metrics(request: Request) -> Response:
    vllms = generate_latest(get_prometheus_registry())
    ours = await asyncio.to_thread(routes.metrics, routes.store_path(request))
    return Response(vllms + ours, headers={"content-type": CONTENT_TYPE_LATEST})


class RequestMiddleware:
    """Reads the JSON body of every POST once, and passes it on."""

    def __init__(self, app: ASGIApp, layers: str, num_layers: int | None) -> None:
        self._app = app
        self._layers = layers
        self._num_layers = num_layers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        raw = await read_body(receive)
        try:
            body = parse_object(raw)
            if body is not None:
                raw = checked_body(body, raw, layers=self._layers, num_layers=self._num_layers)
        except RequestOptionError as error:
            refusal = openai_error(str(error), param=error.parameter)
            await refusal(scope, receive, send)
            return
        if body is not None:
            path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
            http_request.set(HttpRequest(path, body, scope.setdefault("state", {})))
        await self._app(scope, replay(raw, receive), send)


def checked_body(body: dict[str, Any], raw: bytes, *, layers: str, num_layers: int | None) -> bytes:
    """The body to pass on: as it came, unless something has to be taken out of it.

    Args:
        body: its JSON, which is changed in the same way.
        raw: as it came.
        layers: the server's own setting.
        num_layers: the model's decoder layers, where they are known.

    Raises:
        RequestOptionError: an ``activation_*`` argument makes no sense.
    """
    # An empty one counts too: in a body that has the field twice, the other may not be empty.
    changed = TOKEN_FIELD in body
    body.pop(TOKEN_FIELD, None)
    refuse_misplaced(body)
    extra = body.get("vllm_xargs")
    if isinstance(extra, dict):
        RequestOptions.parse(extra, allowed_layers=layers, num_layers=num_layers)
        # vLLM's schema takes no nested objects here, users of JSON will write one.
        for name, value in extra.items():
            if name.startswith("activation_") and isinstance(value, dict):
                extra[name] = json.dumps(value)
                changed = True
    return dump_object(body) if changed else raw
