"""The HTTP side inside vLLM's own application: request bodies, routes and metrics.

The middleware is the innermost one, behind vLLM's authentication. It removes ``auth_token`` from
bodies before any other code sees it. It answers HTTP 400 if ``activation_*`` arguments are invalid
or placed where vLLM would ignore them. It records what only HTTP knows for the front-end tap.
Answers pass unchanged, but for those of requests that ask for scores (:mod:`.scored_answers`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from vllm.v1.metrics.prometheus import get_prometheus_registry

from activation_logging import routes, store_metrics
from activation_logging.asgi import dump_object, openai_error, parse_object, read_body, replay
from activation_logging.errors import RequestOptionError
from activation_logging.score_options import ScoreOptions
from activation_logging.settings import TOKEN_FIELD, RequestOptions, Settings, refuse_misplaced
from activation_logging.vllm_plugin import probe_routes
from activation_logging.vllm_plugin.context import HttpRequest, http_request
from activation_logging.vllm_plugin.live_scores import shown_names
from activation_logging.vllm_plugin.probe_desk import ProbeDesk, checked_folder, engine_of, live_of
from activation_logging.vllm_plugin.scored_answers import AnswerScores, ScoredAnswer
from activation_logging.vllm_plugin.scored_outputs import check_scores, refuse_adapter

logger = logging.getLogger(f"vllm.{__name__}")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send


def extend_app(app: FastAPI, num_layers: int | None = None, keys: Sequence[str] = ()) -> None:
    """Add the middleware, the ``/v1/activations`` routes and the pages to vLLM's application.

    Args:
        app: the result of vLLM's ``build_app``.
        num_layers: number of the model's decoder layers; None without a model. A request for a
            higher layer is rejected.
        keys: the keys that vLLM asks for under ``/v1``; any of them opens the pages.
    """
    settings = Settings.from_env()
    desk = ProbeDesk(checked_folder(settings.probe_folder) if settings.probe_folder else None)
    # The end of the list is the innermost place.
    app.user_middleware.append(
        Middleware(RequestMiddleware, settings=settings, desk=desk, num_layers=num_layers)
    )
    _warn_of_others(app)
    probe_routes.add_to(app, desk)
    routes.add_to(app, settings.store_path())
    _add_pages(app, settings.store_path(), keys)
    # With several API servers ``/metrics`` knows only what goes through files of its own: answer
    # in its place, with the same and ours.
    app.router.routes.insert(0, Route("/metrics", _metrics))
    # vLLM has built the middleware stack already, and Starlette does not build it again by itself.
    app.middleware_stack = app.build_middleware_stack()


def _add_pages(app: FastAPI, lmdb_path: str, keys: Sequence[str]) -> None:
    """Add the pages below ``/activations``, where the extra ``view`` is installed."""
    if not all(map(find_spec, ("httpx", "jinja2", "python_multipart"))):
        return
    from activation_logging.view.app import mount
    from activation_logging.view.server_link import ServerLink

    link = ServerLink("this server", next(iter(keys), None), app)
    mount(app, lmdb_path, server=link, keys=keys)


def _warn_of_others(app: FastAPI) -> None:
    """Warn of other packages' routes under our prefix (vllm-lens 1.3): the first route wins."""
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
    state = request.app.state
    live = live_of(engine_of(request.app))
    if live is not None:
        state.activation_probes.learn(live)
        live.collect()
    parts = [generate_latest(get_prometheus_registry())]
    if live is not None:
        parts.append(state.activation_probes.metrics(live))
    parts.append(await asyncio.to_thread(store_metrics.metrics, routes.store_path(request)))
    return Response(b"".join(parts), headers={"content-type": CONTENT_TYPE_LATEST})


class RequestMiddleware:
    """Reads, checks and forwards the JSON body of every POST request."""

    def __init__(
        self, app: ASGIApp, settings: Settings, desk: ProbeDesk, num_layers: int | None
    ) -> None:
        self._app = app
        self._settings = settings
        self._desk = desk
        self._num_layers = num_layers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        raw = await read_body(receive)
        try:
            body = parse_object(raw)
            if body is not None:
                raw = checked_body(body, raw, self._settings, self._num_layers)
                scores = self._scores(body, scope)
        except RequestOptionError as error:
            refusal = openai_error(str(error), param=error.parameter)
            await refusal(scope, receive, send)
            return
        if body is not None:
            path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
            state = scope.setdefault("state", {})
            http_request.set(HttpRequest(path, body, state, scores=scores))
            if scores is not None:
                send = ScoredAnswer(send, scores)
        await self._app(scope, replay(raw, receive), send)

    def _scores(self, body: dict[str, Any], scope: Scope) -> AnswerScores | None:
        """Where the scores of a request are noted; None if it asks for none.

        Raises:
            RequestOptionError: it asks for what this server's probes cannot give.
        """
        live = live_of(engine_of(scope["app"]))
        if live is not None:
            self._desk.learn(live)
        extra = body.get("vllm_xargs")
        options = ScoreOptions.parse(extra if isinstance(extra, dict) else {})
        if not options:
            return None
        check_scores(options, live)
        model = body.get("model")
        models = getattr(scope["app"].state, "openai_serving_models", None)
        if isinstance(model, str) and model in getattr(models, "lora_requests", ()):
            refuse_adapter(model)
        if body.get("use_beam_search"):
            raise RequestOptionError(
                "use_beam_search", "beams have no scores; ask without one of both"
            )
        names = options.scored(() if live is None else shown_names(live.served))
        return AnswerScores(names) if names else None


def checked_body(
    body: dict[str, Any], raw: bytes, settings: Settings, num_layers: int | None = None
) -> bytes:
    """Check a body, and return the bytes to forward: unchanged, unless a field must be removed.

    Args:
        body: the body's JSON. It is changed in the same way.
        raw: the body as received.
        settings: the server's own.
        num_layers: number of the model's decoder layers, if known.

    Raises:
        RequestOptionError: an ``activation_*`` argument is invalid.
    """
    # An empty token counts too: in a body with the field twice, the other one may not be empty.
    changed = TOKEN_FIELD in body
    body.pop(TOKEN_FIELD, None)
    refuse_misplaced(body)
    extra = body.get("vllm_xargs")
    if isinstance(extra, dict):
        RequestOptions.parse(extra, settings=settings, num_layers=num_layers)
        # Users write nested objects here, but vLLM's schema does not accept them.
        for name, value in extra.items():
            nested = isinstance(value, dict) or (
                isinstance(value, list) and any(isinstance(item, dict) for item in value)
            )
            if name.startswith("activation_") and nested:
                extra[name] = json.dumps(value)
                changed = True
    return dump_object(body) if changed else raw
