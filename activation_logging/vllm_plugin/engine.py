"""The patches of vLLM. Each is applied once per process.

- ``EngineArgs.create_engine_config`` sets our worker class.
- The constructors of both engines attach the front-end tap. ``AsyncLLM.shutdown`` closes it.
- If the process has imported vLLM's server, ``build_app`` adds our routes and middleware, and the
  engine's context manager waits for the rows before it ends.
- Offline chat and ``run-batch`` record messages and ids, which otherwise come over HTTP.
- The server's handlers record the parser of each answer.
- ``Executor.__init__`` refuses a worker class that is not ours. This check is in place in every
  process, so an engine either logs or does not start, however it was configured. An executor of
  Ray gets a ``shutdown`` that has the workers write.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from activation_logging.exposure import warn_if_open
from activation_logging.locations import expanded
from activation_logging.placeholders import filled
from activation_logging.probe_list import absolute, parse_probes
from activation_logging.settings import Settings, named
from activation_logging.sites import RESID, Site
from activation_logging.vllm_plugin import gate
from activation_logging.vllm_plugin.served_model import depth_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from vllm.config import ModelConfig, VllmConfig

logger = logging.getLogger(f"vllm.{__name__}")

_ARGUMENTS = "vllm.engine.arg_utils"
_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_WORKER = "vllm.v1.worker.worker_base"
_EXECUTOR = "vllm.v1.executor.abstract"
_BATCH_COMMAND = "vllm.entrypoints.cli.run_batch"
_BATCH = "vllm.entrypoints.launchers.run_batch"
_WRITE_S = 30.0
"""Time that workers get to write their rows at shutdown, seconds."""
_drained: WeakSet[Any] = WeakSet()
"""Engines whose rows are all in the store. Their workers may be killed."""


def install() -> None:
    """Patch vLLM in this process.

    A process that vLLM starts for an engine or a worker receives a finished configuration. Such a
    process has imported the workers' module but not the module of the arguments, so the latter is
    not imported for it. The executor is imported and patched in every process: its check must also
    hold if a process like that configures an engine after all.

    Raises:
        UnsupportedEngineError: this version of vLLM is not supported.
    """
    import vllm

    version = gate.check_version(vllm.__version__)
    if _ARGUMENTS not in sys.modules and _WORKER in sys.modules:
        gate.check_modules(version)
    else:
        gate.check_symbols(version)
        arguments = import_module(_ARGUMENTS)
        _wrap(arguments.EngineArgs, "create_engine_config", _create_engine_config)
        _extend_server()
        _extend_batch()
    _wrap(import_module(_EXECUTOR).Executor, "__init__", _init_executor)


def _extend_server() -> None:
    """Patch vLLM's server, if this process has imported it.

    The server's engine context manager is only patched if it has not been entered yet.
    """
    server = sys.modules.get(_SERVER)
    if server is not None:
        _wrap(server, "build_app", _build_app)
        _wrap(server, "build_async_engine_client_from_engine_args", _build_client)


def _create_engine_config(original: Callable[..., VllmConfig], *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)
    settings = Settings.from_env()
    if settings.enabled:
        sites = gate.check_config(config, settings)
        _prepare(config, settings, sites)
        _attach_taps()
        _extend_server()
        _extend_request_paths()
    return config


def _prepare(config: VllmConfig, settings: Settings, sites: Sequence[Site]) -> None:
    """Set our worker class, and reject an invalid store before the model loads."""
    from activation_logging.store import open_store
    from activation_logging.store.upkeep import check_index
    from activation_logging.vllm_plugin import shared_probes
    from activation_logging.vllm_plugin.probe_desk import checked_folder

    path = expanded(settings.lmdb_path)
    gate.check_absolute(path, config)
    path = path.resolve()
    with named("ACTIVATION_LMDB_PATH"):
        store = open_store(filled(str(path)), writable=True)
    with store:
        if settings.ceiling is not None:
            check_index(store.environment, "ACTIVATION_MAX_SIZE")
    # Workers inherit the environment, but not always the working directory. Ray's workers inherit
    # only the variables whose prefixes are listed.
    os.environ["ACTIVATION_LMDB_PATH"] = str(path)
    probes = parse_probes(settings.probes)
    if probes:
        os.environ["ACTIVATION_PROBES"] = absolute(probes)
    if settings.probe_folder:
        os.environ["ACTIVATION_PROBE_FOLDER"] = str(checked_folder(settings.probe_folder))
    if config.parallel_config._api_process_count > 1:
        shared_probes.share()
    copied = os.environ.get("VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "")
    if "ACTIVATION_" not in copied.split(","):
        os.environ["VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"] = f"{copied},ACTIVATION_".lstrip(",")
    # How long an engine waits for its workers before it kills them.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", str(round(_WRITE_S)))
    parallel = config.parallel_config
    parallel.worker_cls = f"{gate.PACKAGE}.{gate.WORKERS[parallel.worker_cls]}"
    last = Site(RESID, depth_of(config.model_config))
    if sites != (last,) and isinstance(config.additional_config, dict):
        # A graph that keeps inner sites compiles differently: give it a cache key of its own.
        config.additional_config["activation_sites"] = [str(site) for site in sites]
    gate.warn_if_untested()
    logger.info(
        "logging activations of %s (%s tokens, %s) to %s",
        settings.sites or f"layers {settings.layers}",
        settings.tokens,
        settings.dtype,
        path,
    )
    if not settings.keeping.everything:
        logger.info("keeping the rows of answers for which %s holds", settings.keep)
    if settings.ceiling is not None:
        logger.info("the store stays below %s", settings.max_size)
    if probes:
        logger.info("scoring every token with %s", ", ".join(map(str, probes)))


def _attach_taps() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    _wrap(AsyncLLM, "__init__", _init_engine)
    _wrap(AsyncLLM, "shutdown", _shut_down_engine)
    _wrap(LLMEngine, "__init__", _init_engine)


def _extend_batch() -> None:
    """Patch ``run-batch``, so that the tap knows each line of its file.

    vLLM 0.33 reads the lines before it makes its engine. vLLM's command line imports the command
    first and the code behind it later, so either module is a reason to patch.
    """
    if _BATCH_COMMAND in sys.modules or _BATCH in sys.modules:
        from activation_logging.vllm_plugin import run_batch

        batch = import_module(_BATCH)
        batch.BatchRequestInput = run_batch.LoggedLine  # type: ignore[attr-defined]
        _wrap(batch, "run_request", run_batch.run_request)


def _extend_request_paths() -> None:
    """Patch the code that creates requests here, to record what the engine never gets."""
    from activation_logging.vllm_plugin import compat

    _extend_batch()
    if _SERVER in sys.modules:
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

        from activation_logging.vllm_plugin.parsing import note_parser

        _wrap(OpenAIServingChat, compat.CHAT_METHOD, compat.noting(note_parser))
        _wrap(OpenAIServingResponses, "_make_response_parser", note_parser)
    if compat.OFFLINE in sys.modules:
        from activation_logging.vllm_plugin import offline_chat

        mixin = sys.modules[compat.OFFLINE].OfflineInferenceMixin
        _wrap(mixin, "_add_chat_requests", offline_chat.add_conversations)
        _wrap(mixin, "_preprocess_chat_one", offline_chat.note_conversation)


def _init_engine(
    original: Callable[..., None], engine: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any
) -> None:
    gate.check_worker(vllm_config)
    original(engine, vllm_config, *args, **kwargs)
    if gate.is_logged(vllm_config):
        from activation_logging.vllm_plugin.frontend import FrontEndTap

        tap = FrontEndTap(engine, Settings.from_env())
        tap.attach()
        if tap.offline:
            tap.hosts.meet()


def _init_executor(
    original: Callable[..., None],
    executor: Any,
    vllm_config: VllmConfig,
    *args: Any,
    **kwargs: Any,
) -> None:
    gate.check_worker(vllm_config)
    original(executor, vllm_config, *args, **kwargs)
    if executor.uses_ray and gate.is_logged(vllm_config):
        executor.shutdown = functools.partial(_shut_down_executor, executor.shutdown, executor)


def _shut_down_executor(original: Callable[[], None], executor: Any) -> None:
    """Shut an executor down, and its workers before that: under Ray vLLM kills them unasked."""
    executor.shutdown = original
    try:
        executor.collective_rpc("shutdown", timeout=_WRITE_S)
    except Exception:
        # A worker has died, or does not answer. The others end all the same.
        logger.exception("the last activations may be missing from the store")
    original()


def _shut_down_engine(
    original: Callable[..., None], engine: Any, timeout: float | None = None
) -> None:
    """Shut an engine down, and give its workers time to write: vLLM would kill them too early.

    A worker writes its rows when its process is told to end. The wait is over when it has ended.
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
    """A server's engine. vLLM kills its workers on exit, so their rows are flushed before that."""
    async with original(*args, **kwargs) as engine:
        tap = getattr(engine.output_processor, "tap", None)
        if tap is not None:
            await tap.hosts.meet_async()
        try:
            yield engine
        finally:
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
        _extend_request_paths()
        # As vLLM itself: the flag comes before the environment.
        keys = [key for key in args.api_key or [os.environ.get("VLLM_API_KEY")] if key]
        depth = None if model_config is None else depth_of(model_config)
        extend_app(app, num_layers=depth, keys=keys)
        if args.uds is None:
            warn_if_open(args.host, has_key=bool(keys), logger=logger)
    return app


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``wrapper(original, ...)``, once."""
    original = getattr(owner, name)
    if getattr(original, "_activation_logging", False):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped._activation_logging = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)
