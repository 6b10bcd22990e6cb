"""Marking an engine's configuration, and attaching the front-end tap: the patches of vLLM.

What is wrapped, each once per process: ``EngineArgs.create_engine_config`` puts our worker
class in; the constructors of the two engines attach the tap, ``AsyncLLM.shutdown`` closes it.
Where a server has been imported, ``build_app`` gets the routes and the middleware, and the
engine's context manager waits for the rows before it ends.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.exposure import warn_if_open
from activation_logging.settings import Settings, resolve_layers
from activation_logging.vllm_plugin import gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vllm.config import VllmConfig

logger = logging.getLogger("vllm.activation_logging")

_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_PACKAGE = "activation_logging.vllm_plugin"


def install() -> None:
    """Wrap ``create_engine_config`` where engines are configured: in front-end processes.

    vLLM loads plugins there only after it has imported ``arg_utils``; its other processes
    get a finished configuration, and have nothing to wrap.
    """
    import vllm

    gate.check_version(vllm.__version__)
    arguments = sys.modules.get("vllm.engine.arg_utils")
    if arguments is not None:
        _wrap(arguments.EngineArgs, "create_engine_config", _create_engine_config)
    # Before a server makes its engine: a context manager that is already running stays as it is.
    server = sys.modules.get(_SERVER)
    if server is not None:
        _wrap(server, "build_app", _build_app)
        _wrap(server, "build_async_engine_client_from_engine_args", _build_client)


def _create_engine_config(original: Callable[..., VllmConfig], *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)
    settings = Settings.from_env()
    if settings.enabled:
        gate.check_symbols()
        gate.check_config(config)
        _prepare(config, settings)
        _attach_taps()
    return config


def _prepare(config: VllmConfig, settings: Settings) -> None:
    """Put our worker in, and refuse a store or layers that cannot be before a model loads."""
    from activation_logging.store import open_store

    depth = int(config.model_config.hf_text_config.num_hidden_layers)
    layers = resolve_layers(settings.layers, depth)
    path = Path(settings.lmdb_path).expanduser().resolve()
    open_store(path, writable=True).close()
    # Workers inherit the environment, but not always the working directory; Ray's copy only
    # what they are told to.
    os.environ["ACTIVATION_LMDB_PATH"] = str(path)
    copied = os.environ.get("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "")
    if "ACTIVATION_" not in copied.split(","):
        os.environ["VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"] = f"{copied},ACTIVATION_".lstrip(",")
    parallel = config.parallel_config
    parallel.worker_cls = f"{_PACKAGE}.{gate.WORKERS[parallel.worker_cls]}"
    if layers != (depth,) and isinstance(config.additional_config, dict):
        # A compiled graph that returns inner layers is another graph: keep their caches apart.
        config.additional_config["activation_layers"] = list(layers)
    logger.info(
        "logging activations of layers %s (%s tokens, %s) to %s",
        settings.layers,
        settings.tokens,
        settings.dtype,
        path,
    )


def _attach_taps() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    _wrap(AsyncLLM, "__init__", _init_engine)
    _wrap(AsyncLLM, "shutdown", _shut_down_engine)
    _wrap(LLMEngine, "__init__", _init_engine)


def _init_engine(original: Callable[..., None], engine: Any, *args: Any, **kwargs: Any) -> None:
    original(engine, *args, **kwargs)
    if engine.vllm_config.parallel_config.worker_cls.startswith(_PACKAGE):
        from activation_logging.vllm_plugin.frontend import FrontEndTap

        FrontEndTap(engine, Settings.from_env()).attach()


def _shut_down_engine(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(engine, *args, **kwargs)
    finally:
        tap = getattr(getattr(engine, "output_processor", None), "tap", None)
        if tap is not None:
            tap.close()


@asynccontextmanager
async def _build_client(
    original: Callable[..., Any], *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    """A server's engine. vLLM kills its processes when it goes: their rows are fetched before."""
    async with original(*args, **kwargs) as engine:
        try:
            yield engine
        finally:
            tap = getattr(engine.output_processor, "tap", None)
            if tap is not None and not engine.errored:
                await tap.drain()


def _build_app(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from activation_logging.vllm_plugin.middleware import extend_app

    app = original(*args, **kwargs)
    if Settings.from_env().enabled:
        extend_app(app)
        options = args[0] if args else kwargs["args"]
        if options.uds is None:
            has_key = bool(options.api_key or os.environ.get("VLLM_API_KEY"))
            warn_if_open(options.host, has_key=has_key, logger=logger)
    return app


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``wrapper(original, ...)``, unless that has been done."""
    original = getattr(owner, name)
    if getattr(original, "_activation_logging", False):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped._activation_logging = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)
