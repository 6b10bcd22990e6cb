"""Which group of the KV cache the arena follows, and how it is made where a model has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)

from activation_logging.errors import UnsupportedEngineError
from activation_logging.vllm_plugin.kv_cache import full_attention_group, keep_every_token

HEADS: dict[str, Any] = {
    "block_size": 16,
    "num_kv_heads": 2,
    "head_size": 64,
    "dtype": torch.bfloat16,
}
FULL = FullAttentionSpec(**HEADS)
WINDOW = SlidingWindowSpec(**HEADS, sliding_window=128)
STATE = MambaSpec(block_size=2048, shapes=((128, 64),), dtypes=(torch.bfloat16,))


def config(*specs: Any) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer.{n}"], spec) for n, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=groups)


def test_windows_beside_full_attention_stay_what_they_are() -> None:
    specs = {"a": FULL, "b": WINDOW}
    assert keep_every_token(specs) is specs
    assert full_attention_group(config(WINDOW, FULL)) == 1


def test_windows_alone_keep_every_token() -> None:
    kept = keep_every_token({"a": WINDOW, "b": STATE})
    assert kept == {"a": FullAttentionSpec(**HEADS, sliding_window=128), "b": STATE}
    assert kept["a"].page_size_bytes == WINDOW.page_size_bytes
    assert full_attention_group(config(STATE, kept["a"])) == 1


def test_other_kinds_of_windows() -> None:
    chunks = ChunkedLocalAttentionSpec(**HEADS, attention_chunk_size=256)
    assert keep_every_token({"a": chunks})["a"] == FullAttentionSpec(
        **HEADS, attention_chunk_size=256
    )
    latent = SlidingWindowMLASpec(**{**HEADS, "num_kv_heads": 1}, sliding_window=128)
    assert isinstance(keep_every_token({"a": latent})["a"], MLAAttentionSpec)


def test_a_model_without_attention_is_refused() -> None:
    assert keep_every_token({"a": STATE}) == {"a": STATE}
    with pytest.raises(UnsupportedEngineError, match=r"no attention layer.*ACTIVATION_LOGGING=0"):
        full_attention_group(config(STATE))
