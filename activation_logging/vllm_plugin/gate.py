"""Which vLLM can be logged. Whatever cannot stops at start-up, with the remedy in a sentence.

Everything of vLLM's that the plugin relies on without a public promise is listed here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from activation_logging.errors import UnsupportedEngineError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

VERSIONS = ((0, 32), (0, 33))
"""Minor versions whose internals were read and, for the first, tested."""

WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "worker_cpu.CPUActivationWorker",
    "vllm.v1.worker.gpu_worker.Worker": "worker.ActivationWorker",
}
"""vLLM's worker classes, and ours for each."""

_SYMBOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm.v1.engine.output_processor": {
        "OutputProcessor": (
            "add_request",
            "process_outputs",
            "_finish_request",
            "abort_requests",
            "propagate_error",
        ),
    },
    "vllm.v1.engine.async_llm": {"AsyncLLM": ("__init__", "shutdown", "collective_rpc")},
    "vllm.v1.engine.llm_engine": {"LLMEngine": ("__init__", "collective_rpc")},
}

_OFF = "or set ACTIVATION_LOGGING=0 to serve without logging"


def check_version(version: str) -> None:
    """Refuse versions of vLLM that nobody has tried this plugin with.

    Raises:
        UnsupportedEngineError: the version is outside :data:`VERSIONS`.
    """
    parts = version.split(".")
    try:
        found = (int(parts[0]), int(parts[1]))
    except (IndexError, ValueError):
        found = (0, 0)
    if found not in VERSIONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in VERSIONS)
        raise UnsupportedEngineError(
            f"activation-logging supports vLLM {known}, this is {version}: install a supported "
            f"version, {_OFF}"
        )


def check_symbols() -> None:
    """Make sure that the methods we extend exist, so that logging is never silently a no-op.

    Raises:
        UnsupportedEngineError: one of them is gone.
    """
    for module, classes in _SYMBOLS.items():
        for name, methods in classes.items():
            found: Any = getattr(import_module(module), name, None)
            missing = [method for method in methods if not hasattr(found, method)]
            if missing:
                raise UnsupportedEngineError(
                    f"this vLLM has no {module}.{name}.{missing[0]}, which activation-logging "
                    f"needs: install a supported version, {_OFF}"
                )


def check_config(config: VllmConfig) -> None:
    """Refuse modes in which rows would be missing or could not be told apart.

    Raises:
        UnsupportedEngineError: names the mode and the remedy.
    """
    from vllm import envs

    model, parallel = config.model_config, config.parallel_config
    refused = {
        "a pooling model has no answers to log: serve it": model.runner_type != "generate",
        "encoder-decoder models cannot be logged: choose another": model.is_encoder_decoder,
        "speculative decoding cannot be logged: drop --speculative-config": (
            config.speculative_config is not None
        ),
        "prompt embeddings cannot be logged: drop --enable-prompt-embeds": (
            model.enable_prompt_embeds
        ),
        "a KV connector loads keys whose activations never existed here: drop "
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "context parallelism cannot be logged: drop --decode-context-parallel-size and "
        "--prefill-context-parallel-size": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "dual-batch overlap cannot be logged: drop --enable-dbo": parallel.enable_dbo,
        "request ids must be unique: unset VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": (
            envs.VLLM_DISABLE_REQUEST_ID_RANDOMIZATION
        ),
        f"the worker class {parallel.worker_cls} cannot be logged: use vLLM's own for CPU or "
        "CUDA": parallel.worker_cls not in WORKERS,
    }
    for reason, applies in refused.items():
        if applies:
            raise UnsupportedEngineError(f"{reason}, {_OFF}")
    if parallel.pipeline_parallel_size > 1:
        from activation_logging.settings import Settings

        if Settings.from_env().layers != "last":
            raise UnsupportedEngineError(
                "with pipeline parallelism only the last layer can be logged: set "
                f"ACTIVATION_LAYERS=last, {_OFF}"
            )
