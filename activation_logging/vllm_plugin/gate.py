"""Checks at start-up whether this vLLM can be logged. An error names the problem and the remedy.

The checks cover vLLM's version, the symbols that this package uses (:mod:`.symbols`), the mode that
vLLM is started in, and whether vLLM loads this plugin.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from activation_logging.errors import UnsupportedEngineError
from activation_logging.settings import Settings
from activation_logging.sites import RESID, Site
from activation_logging.vllm_plugin.served_model import depth_of
from activation_logging.vllm_plugin.server_probes import sites_to_read
from activation_logging.vllm_plugin.symbols import minor_of, missing_modules, missing_symbols

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vllm.config import VllmConfig

    from activation_logging.vllm_plugin.symbols import Version

__all__ = [
    "VERSIONS",
    "WORKERS",
    "check_absolute",
    "check_config",
    "check_modules",
    "check_plugin_is_loaded",
    "check_symbols",
    "check_version",
    "check_worker",
    "is_logged",
    "warn_if_untested",
]

logger = logging.getLogger(f"vllm.{__name__}")

VERSIONS: Mapping[Version, str | None] = {
    (0, 30): "0.30.0",
    (0, 31): "0.31.0",
    (0, 32): "0.32.0",
    (0, 33): "0.33.0",
}
"""Supported minor versions, and of each the release that passed the core of the tests, on a CPU.

None where none passed all of it yet: what is used of the version was read, and is there. 0.33.0 has
no CPU build: its Python code ran on the compiled kernels of 0.32.0.
"""

WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "worker_cpu.CPUActivationWorker",
    "vllm.v1.worker.gpu_worker.Worker": "worker.ActivationWorker",
}
"""vLLM's worker classes, and our class for each."""

PACKAGE = "activation_logging.vllm_plugin"

_GROUP = "vllm.general_plugins"
_NAME = "activation_logging"
_EXECUTORS = ("mp", "ray", "uni")
_OFF = "or set ACTIVATION_LOGGING=0 to serve without logging"


def check_version(version: str) -> Version:
    """Major and minor of a vLLM, such as ``0.32.0``. Refuses unknown ones.

    Raises:
        UnsupportedEngineError: the version is outside :data:`VERSIONS`.
    """
    found = minor_of(version)
    if found not in VERSIONS:
        *some, last = (f"{major}.{minor}" for major, minor in VERSIONS)
        raise UnsupportedEngineError(
            f"activation-logging supports vLLM {', '.join(some)} and {last}, this is {version}: "
            f"install a supported version, {_OFF}"
        )
    return found


def warn_if_untested() -> None:
    """Log a warning if the tests did not run with this release of vLLM."""
    import vllm

    release = vllm.__version__.partition("+")[0]
    tested = [one for one in VERSIONS.values() if one is not None]
    if release not in tested:
        logger.warning(
            "activation-logging was tested with vLLM %s; of %s its internals were read, and all "
            "that is used is there. `activation-logging verify PATH --model MODEL` compares what "
            "is logged with the model's own head",
            ", ".join(tested),
            release,
        )


def check_symbols(version: Version, root: Path | None = None) -> None:
    """Check that vLLM has all symbols that this package uses. Without them it would log nothing.

    Args:
        version: its major and minor.
        root: the folder that contains the package ``vllm``; by default that of the installed one.

    Raises:
        UnsupportedEngineError: a symbol is missing, or has other parameters.
    """
    _refuse_missing(missing_symbols(version, root))


def check_modules(version: Version) -> None:
    """Check the modules alone, which is fast enough for engine and worker processes.

    Raises:
        UnsupportedEngineError: a module is missing.
    """
    _refuse_missing(missing_modules(version))


def _refuse_missing(missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UnsupportedEngineError(
            f"this vLLM has no {missing[0]}{more}, which activation-logging needs: install a "
            f"supported version, {_OFF}"
        )


def check_plugin_is_loaded() -> None:
    """For our launchers: check that vLLM will load this plugin.

    Raises:
        UnsupportedEngineError: the plugin is not registered, or ``VLLM_PLUGINS`` leaves it out.
    """
    if not Settings.from_env().enabled:
        return
    # The same look-up as in vllm.plugins, which reports neither an absent nor a broken plugin.
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and _NAME not in chosen.split(","):
        raise UnsupportedEngineError(
            f"VLLM_PLUGINS={chosen} leaves {_NAME} out, so nothing would be logged: add it to the "
            f"list, unset the variable, {_OFF}"
        )
    found = {point.value for point in entry_points(group=_GROUP) if point.name == _NAME}
    if found != {f"{PACKAGE}:register"}:
        raise UnsupportedEngineError(
            "this package is not registered as a vLLM plugin, so nothing would be logged: install "
            f"it again (pip install --force-reinstall --no-deps activation-logging), {_OFF}"
        )


def is_logged(config: VllmConfig) -> bool:
    """Whether an engine uses our worker class."""
    return str(config.parallel_config.worker_cls).startswith(f"{PACKAGE}.")


def check_worker(config: VllmConfig) -> None:
    """Refuse an engine whose configuration this plugin has not processed.

    Raises:
        UnsupportedEngineError: logging is on, but the worker class is not ours.
    """
    if Settings.from_env().enabled and not is_logged(config):
        raise UnsupportedEngineError(
            f"an engine with the worker {config.parallel_config.worker_cls} would log nothing: "
            "make its configuration with EngineArgs.create_engine_config after vLLM has loaded its "
            f"plugins, {_OFF}"
        )


def check_config(config: VllmConfig, settings: Settings) -> tuple[Site, ...]:
    """The sites to read. Refuse modes in which rows would be missing or ambiguous.

    Raises:
        UnsupportedEngineError: names the mode and the remedy.
        SettingsError: names a variable that asks for what the model has not.
    """
    for reason, applies in _REFUSED.items():
        if applies(config):
            raise UnsupportedEngineError(f"{reason}, {_OFF}")
    parallel = config.parallel_config
    if parallel.worker_cls not in WORKERS:
        raise UnsupportedEngineError(
            f"the worker class {parallel.worker_cls} cannot be logged: use vLLM's own for CPU or "
            f"CUDA, {_OFF}"
        )
    depth = depth_of(config.model_config)
    sites = sites_to_read(settings, config.model_config)
    inner = sites != (Site(RESID, depth),)
    if inner and parallel.pipeline_parallel_size > 1 and settings.full_policy == "drop":
        raise UnsupportedEngineError(
            "pipeline stages must keep the rows of the same requests, so none of them may drop "
            f"some: set ACTIVATION_FULL_POLICY=block or ACTIVATION_LAYERS=last, {_OFF}"
        )
    if parallel.pipeline_parallel_size > 1:
        _check_stages(settings, inner=inner)
    return sites


def check_absolute(path: Path, config: VllmConfig) -> None:
    """Refuse a relative path of the store under Ray.

    Raises:
        UnsupportedEngineError: each of Ray's workers runs in a folder of its own, which does not
            last.
    """
    parallel = config.parallel_config
    if not path.is_absolute() and (
        "ray" in (parallel.distributed_executor_backend, parallel.data_parallel_backend)
        or _runs_in_ray()
    ):
        raise UnsupportedEngineError(
            f"ACTIVATION_LMDB_PATH={path} is relative, and Ray runs workers in folders of its own, "
            "which it deletes: give an absolute path, such as /data/{host}/activations.lmdb"
        )


def _runs_in_ray() -> bool:
    """Whether this process is one of Ray's workers."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def _check_stages(settings: Settings, *, inner: bool) -> None:
    """Refuse what only the last pipeline stage would know, for what all of them must agree on.

    Raises:
        UnsupportedEngineError: names the setting and the remedy.
    """
    keep = settings.keeping
    if keep.scores or keep.finish:
        raise UnsupportedEngineError(
            "pipeline stages must keep the rows of the same requests, and only one of them knows "
            f"how an answer ends: give ACTIVATION_KEEP no score: and no finish: term, {_OFF}"
        )
    if inner and settings.ceiling is not None:
        raise UnsupportedEngineError(
            "pipeline stages must know which rows are stored, and only the last one removes some: "
            f"unset ACTIVATION_MAX_SIZE or set ACTIVATION_LAYERS=last, {_OFF}"
        )


def _envs() -> Any:
    from vllm import envs

    return envs


def _compat() -> Any:
    from activation_logging.vllm_plugin import compat

    return compat


def _makes_a_snapshot() -> bool:
    """Whether ``vllm snapshot create`` is about to freeze this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "vllm.snapshot.server"


_REFUSED: Mapping[str, Callable[[VllmConfig], bool]] = {
    "a pooling model has no answers to log: choose another": lambda config: (
        config.model_config.runner_type != "generate"
    ),
    "encoder-decoder models cannot be logged: choose another": lambda config: (
        config.model_config.is_encoder_decoder
    ),
    "a diffusion model's rows do not predict the next token: choose another model": lambda config: (
        config.model_config.is_diffusion or config.diffusion_config is not None
    ),
    "a model with R-SWA drops tokens, and their rows: choose another": lambda config: (
        config.model_config.rswa_window is not None
    ),
    "bounded replay computes only a prompt's last window: add --no-swa-bounded-replay": (
        lambda config: _compat().replays_last_window(config)
    ),
    "fast prefill skips layers for a prompt's tokens: drop --kv-sharing-fast-prefill": (
        lambda config: config.cache_config.kv_sharing_fast_prefill
    ),
    "speculative decoding cannot be logged: drop --speculative-config": lambda config: (
        config.speculative_config is not None
    ),
    "prompt embeddings cannot be logged: drop --enable-prompt-embeds": lambda config: (
        config.model_config.enable_prompt_embeds
    ),
    "a KV connector loads keys whose activations this engine never computed: drop "
    "--kv-transfer-config and --kv-offloading-size": lambda config: (
        config.kv_transfer_config is not None
    ),
    "the encoder's outputs go to or come from another instance: drop --ec-transfer-config": (
        lambda config: config.ec_transfer_config is not None
    ),
    "an instance that runs only encoders has no rows: drop --mm-encoder-only": (
        lambda config: config.is_mm_encoder_only
    ),
    "context parallelism cannot be logged: drop --decode-context-parallel-size and "
    "--prefill-context-parallel-size": lambda config: (
        config.parallel_config.decode_context_parallel_size > 1
        or config.parallel_config.prefill_context_parallel_size > 1
    ),
    "microbatching cannot be logged: drop --enable-dbo and --ubatch-size": (
        lambda config: config.parallel_config.use_ubatching
    ),
    "elastic expert parallelism replaces running engines: drop --enable-elastic-ep": (
        lambda config: config.parallel_config.enable_elastic_ep
    ),
    "an executor other than vLLM's mp, ray and uni may log requests once per rank or not at all: "
    "drop --distributed-executor-backend": lambda config: (
        config.parallel_config.distributed_executor_backend not in _EXECUTORS
    ),
    "the older Ray executor bypasses this plugin: unset VLLM_USE_RAY_V2_EXECUTOR_BACKEND": (
        lambda config: _compat().runs_old_ray_executor(config)
    ),
    "vLLM's Rust front end has no plugins: unset VLLM_USE_RUST_FRONTEND": lambda _config: (
        _envs().VLLM_USE_RUST_FRONTEND
    ),
    "request ids must be unique: unset VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": lambda _config: (
        _envs().VLLM_DISABLE_REQUEST_ID_RANDOMIZATION
    ),
    "two restored copies of a snapshot would write under one writer id: use vllm serve": (
        lambda _config: _makes_a_snapshot()
    ),
}
"""The refused modes: the sentence of the error, and the test for the mode."""
