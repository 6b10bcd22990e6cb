"""KV caches of real models, as far as memory goes, for a worker that never computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from activation_logging.default_model import demo_model_path

GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """``(layers, KV heads, head size)`` per kind of layer; the window is of the sliding ones."""

    hidden: int
    full: tuple[int, int, int]
    sliding: tuple[int, int, int] = (0, 0, 0)
    window: int = 0
    mamba: int = 0
    available_gib: int = 55
    blocks: int | None = None

    def specs(self) -> dict[str, Any]:
        from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

        def heads(kind: tuple[int, int, int]) -> dict[str, Any]:
            return {"block_size": 16, "num_kv_heads": kind[1], "head_size": kind[2]}

        bf16: dict[str, Any] = {"dtype": torch.bfloat16}
        full = FullAttentionSpec(**heads(self.full), **bf16)
        found: dict[str, Any] = {f"full.{n}": full for n in range(self.full[0])}
        for number in range(self.sliding[0]):
            found[f"sliding.{number}"] = SlidingWindowSpec(
                **heads(self.sliding), **bf16, sliding_window=self.window
            )
        for number in range(self.mamba):
            found[f"mamba.{number}"] = MambaSpec(
                block_size=2048,
                shapes=((128, 64),),
                dtypes=(torch.bfloat16,),
                page_size_padded=full.page_size_bytes,
            )
        return found


SHAPES = {
    "Llama-3.1-8B": Shape(4096, (32, 8, 128)),
    "Llama-3.1-8B, blocks given": Shape(4096, (32, 8, 128), blocks=5000),
    "gpt-oss-20b": Shape(2880, (12, 8, 64), (12, 8, 64), 128),
    "Gemma-3-4b": Shape(2560, (5, 4, 256), (29, 4, 256), 1024, available_gib=60),
    "Gemma-3-27b": Shape(5376, (10, 16, 128), (52, 16, 128), 1024, available_gib=18),
    "Gemma-2-9b": Shape(3584, (21, 8, 256), (21, 8, 256), 4096, available_gib=50),
    "a hybrid of attention and Mamba": Shape(4096, (4, 8, 128), mamba=28, available_gib=40),
}


class Memory(NamedTuple):
    """What a worker has told vLLM, and what it then took, bytes."""

    available: int
    left: int
    arena: int

    @property
    def set_aside(self) -> int:
        return self.available - self.left


def measure(
    name: str,
    store: Path,
    *,
    tp: int = 1,
    rank: int = 0,
    group: Path | None = None,
    probe: bool = False,
) -> Memory:
    """Let our worker divide the memory of a model of this shape, on one rank of several.

    Args:
        name: of the shape.
        store: its folder, which is not made.
        tp: how many ranks.
        rank: which of them.
        group: the file that they meet under.
        probe: whether a probe reads the last layer.
    """
    os.environ.update(ACTIVATION_LOGGING="0", ACTIVATION_LMDB_PATH=str(store))
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    from tests.schedules import worker
    from tests.schedules.probes import make_probe

    shape = SHAPES[name]
    if probe:
        path = store.with_name("probe")
        make_probe("highest", 0, shape.hidden).save(path)
        os.environ["ACTIVATION_PROBES"] = f"highest={path}"
    config = EngineArgs(
        model=str(demo_model_path()),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=2048,
        block_size=16,
        num_gpu_blocks_override=shape.blocks,
        tensor_parallel_size=tp,
        hf_overrides={"hidden_size": shape.hidden, "num_attention_heads": 8, "head_dim": 64},
    ).create_engine_config()
    config.cache_config.kv_cache_layout = "NHD"
    worker.LAYERS = worker.Layers(available=shape.available_gib * GIB, specs=shape.specs())
    init = f"file://{group or store.with_suffix('.init')}"
    # As vLLM's CPU worker does: ranks meet under it in shared memory, where the processor can.
    os.environ["VLLM_DIST_IDENT"] = Path(init).name
    made = worker.LoggingSimWorker(config, rank, rank, init, is_driver_worker=rank == 0)
    with set_current_vllm_config(config):
        made.init_device()
        made.load_model()
        # Tensors without memory: what is asked for is all that is of interest.
        made.device = torch.device("meta")
        left = made.determine_available_memory()
        (cache,) = get_kv_cache_configs(config, [shape.specs()], [left])
        made.initialize_from_config(cache)
    arena = made._arena.nbytes if made._arena else 0
    made.shutdown()
    os.environ.pop("ACTIVATION_PROBES", None)
    return Memory(shape.available_gib * GIB, left, arena)
