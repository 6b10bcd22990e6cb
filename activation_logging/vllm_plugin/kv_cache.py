"""Which group of vLLM's KV cache has a slot for each token of a request: the arena follows it.

A layer of full attention keeps the key and value of every token, in a slot of its own. A layer with
a sliding window gives the slots of older tokens back while the request goes on. Where a model has
such layers only, they are made to keep all their slots. What they compute stays the same: their
window is a matter of the attention, not of the cache. vLLM itself does this with
``--disable-hybrid-kv-cache-manager`` in models that have both kinds.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    HiddenStateCacheSpec,
    KVCacheConfig,
    MLAAttentionSpec,
    RSWASpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from activation_logging.errors import UnsupportedEngineError

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVCacheSpec

logger = logging.getLogger(f"vllm.{__name__}")


def keep_every_token(specs: dict[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """What a model's layers ask of the KV cache, so that some group of them keeps every token.

    Args:
        specs: what vLLM found, by the layers' names.

    Returns:
        the same, if a layer has full attention; else sliding windows become full allocations.
    """
    local = (SlidingWindowSpec, ChunkedLocalAttentionSpec)
    if any(map(_keeps_every_token, specs.values())):
        return specs
    kept = {
        name: _allocated_in_full(spec) if isinstance(spec, local) else spec
        for name, spec in specs.items()
    }
    if kept != specs:
        logger.info(
            "all attention layers of this model have sliding windows: while activations are "
            "logged, the KV cache keeps the tokens outside the windows as well"
        )
    return kept


def _allocated_in_full(spec: AttentionSpec) -> AttentionSpec:
    kind: Any = MLAAttentionSpec if isinstance(spec, SlidingWindowMLASpec) else FullAttentionSpec
    known = {field.name for field in fields(kind)}
    given = {f.name: getattr(spec, f.name) for f in fields(spec) if f.init and f.name in known}
    made: AttentionSpec = kind(**given)
    return made


def one_spec(group: KVCacheGroupSpec) -> KVCacheSpec:
    """The KV cache spec of each layer of a group."""
    spec = group.kv_cache_spec
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return next(iter(spec.kv_cache_specs.values()))
    return spec


def full_attention_group(cache: KVCacheConfig) -> int:
    """Index of a KV cache group that keeps each token of a request in its own slot.

    Raises:
        UnsupportedEngineError: there is none.
    """
    for index, group in enumerate(cache.kv_cache_groups):
        if _keeps_every_token(one_spec(group)) and not group.host_resident:
            return index
    raise UnsupportedEngineError(
        "this model has no attention layer, so vLLM keeps one state for a whole request and no "
        "slots of its tokens, beside which their activations would lie: set ACTIVATION_LOGGING=0 "
        "to serve it without logging"
    )


def _keeps_every_token(spec: KVCacheSpec) -> bool:
    return (
        isinstance(spec, FullAttentionSpec)
        and not isinstance(spec, RSWASpec | HiddenStateCacheSpec)
        and spec.tokens_per_state == 1
    )
