"""``uvicorn activation_logging.server:app``: one address that serves any model, loaded on request.

The application wraps vLLM's own application for the loaded model and forwards every request to it.
A request that names another model waits for the requests in flight; then the models are swapped. If
a model is not allowed, does not exist or fails to load, the client gets an error in OpenAI's
format, and the server goes on.

vLLM's OpenAPI schema says which requests may name a model. It is taken from a second vLLM
application, which has no model. All other requests go to the loaded model and never load one. With
an API key, only the open paths are answered without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Match

from activation_logging.asgi import (
    OPEN_PATHS,
    WHOLE_APP,
    KeyGuard,
    dump_object,
    is_below,
    is_preflight,
    openai_error,
    parse_object,
    read_body,
    replay,
    route_path,
)
from activation_logging.errors import ActivationLoggingError, RequestOptionError
from activation_logging.exposure import uvicorn_host, warn_if_open, without_token
from activation_logging.routes import PREFIX
from activation_logging.settings import TOKEN_FIELD, ServerSettings, check_token
from activation_logging.view.addresses import PREFIX as PAGES
from activation_logging.vllm_plugin.gate import check_plugin_is_loaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("uvicorn.error")

_MAX_ERROR = 300
_MAX_SEARCHED = 10_000
_HUB_TIMEOUT_S = 10.0
_NEED_NO_MODEL = OPEN_PATHS | {"/version", "/docs", "/redoc", "/openapi.json"}


class ModelNotServed(ActivationLoggingError):
    """The model is not allowed, does not exist, or could not be loaded."""

    def __init__(self, model: str, reason: str, *, status: int = 404) -> None:
        super().__init__(f"The model `{model[:200]}` {reason}")
        self.status = status


class LoadedModel:
    """One model in vLLM's engine, and vLLM's application in front of it."""

    def __init__(self, name: str, app: FastAPI, stack: AsyncExitStack) -> None:
        self.name = name
        self.app = app
        self._stack = stack

    @property
    def dead(self) -> bool:
        return bool(self.app.state.engine_client.errored)

    @classmethod
    async def load(cls, name: str, vllm_args: tuple[str, ...]) -> LoadedModel:
        """Start an engine for the model. If a step fails, the steps before it are undone."""
        from vllm.entrypoints.launchers.api_server import entry

        args = _vllm_arguments(name, vllm_args)
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(entry.build_async_engine_client(args))
            tasks = await engine.get_supported_tasks()
            app = entry.build_app(args, tasks, engine.model_config)
            await entry.init_app_state(engine, app.state, args, tasks)
            # When the engine dies, vLLM tells its server to exit. This server loads it again.
            app.state.server = SimpleNamespace(should_exit=False)
            await stack.enter_async_context(app.router.lifespan_context(app))
            return cls(name, app, stack.pop_all())
        raise AssertionError("unreachable")

    async def unload(self) -> None:
        await self._stack.aclose()


class ModelSwitch:
    """The one loaded model, shared by its requests. A swap waits until none of them is left."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._loaded: LoadedModel | None = None
        self._in_use = 0
        self._swapping = asyncio.Lock()
        self._idle = asyncio.Condition()

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model, unless its engine has died."""
        return None if self._loaded is None or self._loaded.dead else self._loaded

    @asynccontextmanager
    async def use(self, name: str, token: str | None) -> AsyncIterator[LoadedModel]:
        """The named model, loaded if necessary, for as long as the block runs.

        Raises:
            ModelNotServed: the model is not allowed, does not exist, or could not be loaded.
        """
        if not self._serves(name):
            # Check that the new model exists before the old one is unloaded, without the lock.
            if not self._settings.allows(name):
                raise ModelNotServed(name, "is not among the models that this server may load.")
            await asyncio.to_thread(_check_exists, name, self._settings.vllm_args, token)
        async with AsyncExitStack() as held:
            # A swap holds the lock, so later requests for the old model wait here.
            async with self._swapping:
                if not self._serves(name):
                    await self._swap(name, token)
                model = self._loaded
                assert model is not None
                await held.enter_async_context(self.hold())
            yield model

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Keep the loaded model from being swapped while the block runs."""
        self._in_use += 1
        try:
            yield
        finally:
            async with self._idle:
                self._in_use -= 1
                self._idle.notify_all()

    async def close(self) -> None:
        async with self._swapping:
            await self._unload()

    def _serves(self, name: str) -> bool:
        """Whether the loaded model, or one of its adapters, has this name."""
        model = self.loaded
        if model is None:
            return False
        return name == model.name or name in model.app.state.openai_serving_models.lora_requests

    async def _swap(self, name: str, token: str | None) -> None:
        await self._unload()
        logger.info("loading %s", name)
        try:
            with _token_in_environment(token):
                self._loaded = await LoadedModel.load(name, self._settings.vllm_args)
        except Exception as error:  # noqa: BLE001 - the server goes on after any failure
            reason = f"could not be loaded: {_sentence(error, token)}"
            logger.error("%s %s", name, reason)  # noqa: TRY400 - a traceback may hold the token
            raise ModelNotServed(name, reason, status=503) from None
        logger.info("loaded %s", name)

    async def _unload(self) -> None:
        async with self._idle:
            await self._idle.wait_for(lambda: self._in_use == 0)
        model, self._loaded = self._loaded, None
        if model is not None:
            logger.info("unloading %s", model.name)
            await model.unload()


class SwitchingApp:
    """The ASGI application: finds the model that a request is for, and forwards the request."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._switch = ModelSwitch(settings)
        self._without_model = _build_without_model(settings)
        self._may_name_a_model = paths_that_name_a_model(self._without_model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif is_preflight(scope):
            # vLLM's CORS middleware answers these, with or without a model.
            await self._without_model(scope, receive, send)
        elif scope.get("method") == "POST" and self._path(scope) in self._may_name_a_model:
            await self._post(scope, receive, send)
        else:
            await self._other({**scope, WHOLE_APP: self}, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may name a model; another model is loaded first."""
        raw = await read_body(receive)
        try:
            body = parse_object(raw)
            if body is None:
                await self._other(scope, replay(raw, receive), send)
                return
            name = self._model_of(body)
            if TOKEN_FIELD in body:
                token = check_token(body.pop(TOKEN_FIELD))
                raw = dump_object(body)
            else:
                token = None
        except RequestOptionError as error:
            await openai_error(str(error), param=error.parameter)(scope, receive, send)
            return
        try:
            async with self._switch.use(name, token) as model:
                await model.app(scope, replay(raw, receive), send)
        except ModelNotServed as error:
            kind = "NotFoundError" if error.status == 404 else "ServiceUnavailableError"
            message = without_token(str(error), token)
            response = openai_error(message, status=error.status, kind=kind, param="model")
            await response(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that never loads a model, by the loaded model or without one."""
        model = self._switch.loaded
        app: ASGIApp = self._without_model if model is None else model.app
        if scope["type"] == "http":
            app = self._instead(scope, model) or app
        keeps = scope["type"] == "websocket" or scope["method"] == "POST"
        if model is None or not keeps or _is_ours(self._path(scope)):
            await app(scope, receive, send)
        else:
            async with self._switch.hold():
                await app(scope, receive, send)

    def _instead(self, scope: Scope, model: LoadedModel | None) -> Response | None:
        """The answer in vLLM's place if there is no such route, or no model that it needs."""
        found = find_route(self._without_model if model is None else model.app, scope)
        if found is Match.NONE:
            return openai_error(
                "this path does not exist; /openapi.json lists all paths",
                status=404,
                kind="NotFoundError",
            )
        if found is Match.PARTIAL:
            return openai_error(
                "this path does not allow this method; /openapi.json lists the methods",
                status=405,
                kind="MethodNotAllowedError",
            )
        path = self._path(scope)
        if model is not None or path in _NEED_NO_MODEL or _is_ours(path):
            return None
        if path == "/v1/models":
            return self._list_models()
        return openai_error(
            "no model is loaded; a request to /v1/chat/completions that names one loads it",
            status=503,
            kind="ServiceUnavailableError",
        )

    def _path(self, scope: Scope) -> str:
        return route_path(scope, self._without_model.root_path)

    def _model_of(self, body: Mapping[str, Any]) -> str:
        """The model that a body names; without a name, the loaded or the default model.

        Raises:
            RequestOptionError: the name is not a string.
        """
        name = body.get("model")
        if name is None or name == "":
            return self._served_by_default()
        if not isinstance(name, str):
            raise RequestOptionError("model", "must be a string; name a folder or a model")
        return name

    def _served_by_default(self) -> str:
        model = self._switch.loaded
        return model.name if model is not None else self._settings.default

    def _list_models(self) -> JSONResponse:
        """The models that could be loaded, as far as their names are known."""
        names = sorted(self._settings.allowed or ()) or [self._settings.default]
        data = [{"id": name, "object": "model", "owned_by": "vllm"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        warn_if_open(uvicorn_host(), has_key=bool(self._settings.api_keys), logger=logger)
        try:
            if self._settings.preload:
                async with self._switch.use(self._settings.preload, None):
                    pass
        except ModelNotServed as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._switch.close()
        await send({"type": "lifespan.shutdown.complete"})


def _is_ours(path: str) -> bool:
    """Whether we answer it, with a model or without one."""
    return path.startswith(PREFIX) or is_below(path, PAGES)


def _build_without_model(settings: ServerSettings) -> FastAPI:
    """VLLM's application for models that generate text, without a model."""
    args = _vllm_arguments(settings.default, settings.vllm_args)
    from vllm.entrypoints.launchers.api_server import entry

    app = entry.build_app(args, ("generate",), None)
    app.state.engine_client = None
    return app


def paths_that_name_a_model(app: FastAPI) -> frozenset[str]:
    """Paths whose POST body may name a model, from the application's OpenAPI schema."""
    document = app.openapi()
    found = set()
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if any(_names_a_model(kind["schema"], document) for kind in content.values()):
            found.add(path)
    return frozenset(found)


def _names_a_model(schema: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf", [])
    return "model" in schema.get("properties", {}) or any(
        _names_a_model(choice, document) for choice in choices
    )


def find_route(app: FastAPI, scope: Scope) -> Match:
    """The best match of the application's routes: FULL, PARTIAL (path alone) or NONE."""
    scope = {**scope, "root_path": app.root_path or scope.get("root_path", "")}
    matches = [route.matches(scope)[0] for route in app.routes]
    return max(matches, key=lambda match: match.value)


def _vllm_arguments(name: str, vllm_args: tuple[str, ...]) -> Any:
    # Import vLLM's server first: making the parser loads the plugin, which then patches the server.
    from vllm.entrypoints.launchers.api_server import entry  # noqa: F401
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from activation_logging.vllm_plugin.compat import serve_arguments

    make_arg_parser, validate_parsed_serve_args = serve_arguments()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(list(vllm_args))
    # Not as a flag: a name that a client sends may begin with dashes.
    args.model = name
    validate_parsed_serve_args(args)
    # vLLM itself does not listen here. A loopback address keeps ``build_app`` from a false warning.
    args.host = "127.0.0.1"
    return args


def _check_exists(name: str, vllm_args: tuple[str, ...], token: str | None) -> None:
    """Look the model up on the hub, unless it is a folder, and read its configuration.

    Raises:
        ModelNotServed: the model does not exist.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        if not Path(name).is_dir() and "://" not in name:
            _ask_hub(name, token)
        args = _vllm_arguments(name, vllm_args)
        args.hf_token = token
        AsyncEngineArgs.from_cli_args(args).create_model_config()
    except ModelNotServed:
        raise
    except Exception as error:  # noqa: BLE001 - vLLM, transformers and the hub raise anything
        raise ModelNotServed(name, f"does not exist: {_sentence(error, token)}") from None


def _ask_hub(name: str, token: str | None) -> None:
    """Ask the hub once, instead of vLLM's many slow requests. A cached model is not looked up."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, token=token, timeout=_HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception as error:  # noqa: BLE001 - the client's own network errors, of many classes
        reason = _sentence(error, token)
        raise ModelNotServed(
            name, f"is neither a folder nor cached, and the hub did not answer: {reason}"
        ) from None


@contextmanager
def _token_in_environment(token: str | None) -> Iterator[None]:
    """Set ``HF_TOKEN`` for the processes that load the weights, and restore it afterwards."""
    before = os.environ.get("HF_TOKEN")
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token is not None:
            if before is None:
                del os.environ["HF_TOKEN"]
            else:
                os.environ["HF_TOKEN"] = before


def _sentence(error: Exception, token: str | None) -> str:
    """An error in one line, without the token."""
    details = getattr(error, "errors", None)
    text = details()[0]["msg"] if callable(details) else str(error)
    text = " ".join(text.split())[:_MAX_SEARCHED] or type(error).__name__
    # Check before cutting: a cut text may end with only the first characters of the token.
    return without_token(text, token)[:_MAX_ERROR]


def _make_app() -> ASGIApp:
    check_plugin_is_loaded()
    settings = ServerSettings.from_env()
    application = SwitchingApp(settings)
    if not settings.api_keys:
        return application
    return KeyGuard(application, settings.api_keys, except_below=PAGES)


app = _make_app()
