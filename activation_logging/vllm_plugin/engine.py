"""Marking an engine's configuration, and attaching the front-end tap: the patches of vLLM.

What is wrapped, each once per process: ``EngineArgs.create_engine_config`` puts our worker
class in; the constructors of the two engines attach the tap, ``AsyncLLM.shutdown`` closes it.
Where a server has been imported, ``build_app`` gets the routes and the middleware, and the
engine's context manager waits for the rows before it ends. Where messages and ids come without
HTTP (offline chat, ``run-batch``), they are noted, and so are the parsers of answers. Executors
refuse to start a worker that is not ours: whatever way an engine is made, it logs or it stops.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from activation_logging.exposure import warn_if_open
from activation_logging.settings import Settings, resolve_layers
from activation_logging.vllm_plugin import gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vllm.config import ModelConfig, VllmConfig

logger = logging.getLogger(f"vllm.{__name__}")

_ARGUMENTS = "vllm.engine.arg_utils"
_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_WORKER = "vllm.v1.worker.worker_base"
_EXECUTOR = "vllm.v1.executor.abstract"
_BATCH_COMMAND = "vllm.entrypoints.cli.run_batch"
_BATCH = "vllm.entrypoints.launchers.run_batch"
_OFFLINE = "vllm.entrypoints.common.offline"
_WRITE_S = 30.0
"""Workers may write for so long when they are told to end."""
_drained: WeakSet[Any] = WeakSet()
"""Engines whose rows are all in the store: their workers may be killed."""


def install() -> None:
    """Wrap what the process uses of vLLM: all of it where engines are configured.

    A process that vLLM starts for an engine or a worker gets a finished configuration. It has
    the workers' module, but not that of the arguments, and nothing else is imported for it.

    Raises:
        UnsupportedEngineError: this version of vLLM cannot be logged.
    """
    import vllm

    gate.check_version(vllm.__version__)
    if _ARGUMENTS not in sys.modules and _WORKER in sys.modules:
        gate.check_modules()
    else:
        gate.check_symbols()
        arguments = import_module(_ARGUMENTS)
        _wrap(arguments.EngineArgs, "create_engine_config", _create_engine_config)
        _extend_server()
        _watch_batch()
    if _EXECUTOR in sys.modules:
        _wrap(sys.modules[_EXECUTOR].Executor, "__init__", _init_executor)


def _extend_server() -> None:
    """Wrap vLLM's server, if there is one in this process.

    Best before it makes its engine: a context manager that is already running stays as it is.
    """
    server = sys.modules.get(_SERVER)
    if server is not None:
        _wrap(server, "build_app", _build_app)
        _wrap(server, "build_async_engine_client_from_engine_args", _build_client)


def _create_engine_config(original: Callable[..., VllmConfig], *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)
    settings = Settings.from_env()
    if settings.enabled:
        gate.check_config(config)
        _prepare(config, settings)
        _attach_taps()
        _extend_server()
        _watch_requests()
    return config


def _prepare(config: VllmConfig, settings: Settings) -> None:
    """Put our worker in, and refuse a store or layers that cannot be before a model loads."""
    from activation_logging.store import open_store

    depth = _depth(config.model_config)
    layers = resolve_layers(settings.layers, depth)
    path = Path(settings.lmdb_path).expanduser().resolve()
    open_store(path, writable=True).close()
    # Workers inherit the environment, but not always the working directory; Ray's copy only
    # what they are told to.
    os.environ["ACTIVATION_LMDB_PATH"] = str(path)
    copied = os.environ.get("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "")
    if "ACTIVATION_" not in copied.split(","):
        os.environ["VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"] = f"{copied},ACTIVATION_".lstrip(",")
    # What an engine gives its workers before it kills them.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", str(round(_WRITE_S)))
    parallel = config.parallel_config
    parallel.worker_cls = f"{gate.PACKAGE}.{gate.WORKERS[parallel.worker_cls]}"
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


def _depth(model: ModelConfig) -> int:
    return int(model.hf_text_config.num_hidden_layers)


def _attach_taps() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    _wrap(AsyncLLM, "__init__", _init_engine)
    _wrap(AsyncLLM, "shutdown", _shut_down_engine)
    _wrap(LLMEngine, "__init__", _init_engine)
    _wrap(Executor, "__init__", _init_executor)


def _watch_batch() -> None:
    """Know each line of ``run-batch``; vLLM 0.33 reads them before it makes its engine.

    The command line has the command before what it runs, and imports that for its flags.
    """
    if _BATCH_COMMAND in sys.modules or _BATCH in sys.modules:
        from activation_logging.vllm_plugin import run_batch

        batch = import_module(_BATCH)
        batch.BatchRequestInput = run_batch.LoggedLine  # type: ignore[attr-defined]
        _wrap(batch, "run_request", run_batch.run_request)


def _watch_requests() -> None:
    """Note what is known of requests before the engine gets them, where this process makes any."""
    _watch_batch()
    if _SERVER in sys.modules:
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

        from activation_logging.vllm_plugin.parsing import note_parser

        _wrap(OpenAIServingChat, "_make_parser", note_parser)
        _wrap(OpenAIServingResponses, "_make_response_parser", note_parser)
    if _OFFLINE in sys.modules:
        from activation_logging.vllm_plugin import offline_chat

        mixin = sys.modules[_OFFLINE].OfflineInferenceMixin
        _wrap(mixin, "_add_chat_requests", offline_chat.add_conversations)
        _wrap(mixin, "_preprocess_chat_one", offline_chat.note_conversation)


def _init_engine(
    original: Callable[..., None], engine: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any
) -> None:
    gate.check_worker(vllm_config)
    original(engine, vllm_config, *args, **kwargs)
    if gate.is_logged(vllm_config):
        from activation_logging.vllm_plugin.frontend import FrontEndTap

        FrontEndTap(engine, Settings.from_env()).attach()


def _init_executor(
    original: Callable[..., None],
    executor: Any,
    vllm_config: VllmConfig,
    *args: Any,
    **kwargs: Any,
) -> None:
    gate.check_worker(vllm_config)
    original(executor, vllm_config, *args, **kwargs)


def _shut_down_engine(
    original: Callable[..., None], engine: Any, timeout: float | None = None
) -> None:
    """End an engine, but let its workers write first: vLLM would kill them at once, or soon.

    They write when their process is told to end, and the wait is over when it has.
    """
    tap = getattr(getattr(engine, "output_processor", None), "tap", None)
    if tap is None:
        original(engine, timeout)
        return
    if engine not in _drained and not engine.errored:
        timeout = max(timeout or 0.0, _WRITE_S)
    try:
        original(engine, timeout)
    finally:
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
                _drained.add(engine)


def _build_app(
    original: Callable[..., Any],
    args: Any,
    supported_tasks: Any = None,
    model_config: ModelConfig | None = None,
) -> Any:
    from activation_logging.vllm_plugin.middleware import extend_app

    app = original(args, supported_tasks, model_config)
    if Settings.from_env().enabled:
        _watch_requests()
        extend_app(app, num_layers=None if model_config is None else _depth(model_config))
        if args.uds is None:
            has_key = bool(args.api_key or os.environ.get("VLLM_API_KEY"))
            warn_if_open(args.host, has_key=has_key, logger=logger)
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
