"""vLLM's own engine, scheduler and output processor around :class:`.worker.LoggingSimWorker`.

Everything between a request and the store is real: ``LLMEngine`` in one process, its
``EngineCore`` with ``Scheduler`` or ``AsyncScheduler``, its ``OutputProcessor`` with our tap, our
worker tap, arena, collector, writer and LMDB. There is no model, and no process in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from activation_logging.default_model import demo_model_path
from tests.schedules import worker
from tests.schedules.probes import INNER
from tests.schedules.worker import Layers

VOCABULARY = 49152

_ONE_LAYER = Layers()


@dataclass(frozen=True)
class Setting:
    """One way to run the engine; the names are vLLM's, ``layers`` are what the model has."""

    name: str
    v2: bool = False
    async_scheduling: bool = False
    prefix_caching: bool = True
    num_blocks: int = 26
    max_num_seqs: int = 12
    max_num_batched_tokens: int = 256
    layers: Layers = _ONE_LAYER
    worker: str = "worker.LoggingSimWorker"
    options: tuple[tuple[str, Any], ...] = ()
    keep: str = "all"
    max_size: str = ""


_HYBRID = Layers(block_size=64, mamba=1)
_COPIES = (("mamba_cache_mode", "align"), ("mamba_block_size", 64), ("prefix_match_unit", 16))

_STAGED = "stages.StagedSimWorker"

SETTINGS = (
    Setting("V1"),
    Setting("V1, async", async_scheduling=True),
    Setting("V2", v2=True),
    Setting("V2, async", v2=True, async_scheduling=True),
    Setting("V1, async, chunked", async_scheduling=True, max_num_batched_tokens=24),
    Setting("V2, async, chunked", v2=True, async_scheduling=True, max_num_batched_tokens=24),
    Setting("V1, no prefix cache", prefix_caching=False),
    Setting(
        "V1, async, full and sliding",
        async_scheduling=True,
        num_blocks=60,
        layers=Layers(full=1, sliding=2),
    ),
    Setting("V2, full and sliding", v2=True, num_blocks=60, layers=Layers(full=1, sliding=2)),
    Setting("V1, two stages", worker=_STAGED),
    Setting("V2, async, two stages", v2=True, async_scheduling=True, worker=_STAGED),
    Setting("V1, Mamba, block copies", num_blocks=16, layers=_HYBRID, options=_COPIES),
    Setting(
        "V2, async, Mamba, block copies",
        v2=True,
        async_scheduling=True,
        num_blocks=16,
        layers=_HYBRID,
        options=_COPIES,
    ),
)


@contextmanager
def running(setting: Setting, store: Path, probes: str, **layers: Any) -> Iterator[Any]:
    """An ``LLMEngine`` that logs into ``store``.

    Args:
        setting: how to run it.
        store: where to.
        probes: the list of those that score every token.
        layers: what the model has.
    """
    from vllm import envs
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from activation_logging.settings import Settings
    from activation_logging.vllm_plugin.frontend import FrontEndTap

    envs.disable_envs_cache()
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "ACTIVATION_LOGGING": "0",  # the worker and the tap are attached by hand
        "ACTIVATION_LMDB_PATH": str(store),
        "ACTIVATION_LAYERS": f"{INNER},last",
        "ACTIVATION_PROBES": probes,
        "ACTIVATION_KEEP": setting.keep,
        "ACTIVATION_MAX_SIZE": setting.max_size,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    worker.LAYERS = replace(setting.layers, **layers)
    asked_for = VllmConfig.use_v2_model_runner
    try:
        config = EngineArgs(
            model=str(demo_model_path()),
            dtype="float32",
            enforce_eager=True,
            max_model_len=288,
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            block_size=setting.layers.block_size,
            num_gpu_blocks_override=setting.num_blocks,
            enable_prefix_caching=setting.prefix_caching,
            hf_overrides={"hidden_size": worker.WIDTH, "num_attention_heads": 1},
            **dict(setting.options),
        ).create_engine_config()
        # vLLM 0.33 takes them back where the model itself has no Mamba layer.
        vars(config.cache_config).update(setting.options)
        # Asked for openly, vLLM looks for Triton: its schedulers do not need it.
        VllmConfig.use_v2_model_runner = property(lambda _: setting.v2)
        # vLLM switches it off where the device is a CPU, which nothing here depends on.
        config.scheduler_config.async_scheduling = setting.async_scheduling
        config.parallel_config.worker_cls = f"tests.schedules.{setting.worker}"
        engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        assert (engine.engine_core.engine_core.batch_queue_size > 1) == setting.async_scheduling
        FrontEndTap(engine, Settings.from_env()).attach()
        try:
            yield engine
        finally:
            engine.output_processor.tap.close()
            engine.engine_core.shutdown()
    finally:
        VllmConfig.use_v2_model_runner = asked_for
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
