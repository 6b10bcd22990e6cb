"""The worker tap: vLLM's own workers, extended to keep the hidden states of every step.

vLLM loads these classes by name (``worker_cls``), one per platform. They add nothing to the forward
pass. :meth:`ActivationWorker._step` reads vLLM's internals after it, for both model runners.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    HiddenStateCacheSpec,
    KVCacheConfig,
    RSWASpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.worker.gpu_worker import Worker

try:
    from vllm.v1.core.kv_cache_planning import _pool_bytes_per_block, get_kv_cache_groups
except ImportError:  # before vLLM 0.33
    from vllm.v1.core.kv_cache_utils import _pool_bytes_per_block, get_kv_cache_groups

from activation_logging.errors import UnsupportedEngineError
from activation_logging.settings import Settings, resolve_sites
from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin.arena import RowArena, row_bytes, staging_bytes
from activation_logging.vllm_plugin.capture import (
    attach,
    detach,
    install_taps,
    plan_taps,
    remove_taps,
)
from activation_logging.vllm_plugin.collector import RowCollector, stored_shape
from activation_logging.vllm_plugin.gate import depth_of
from activation_logging.vllm_plugin.pipeline import (
    GroupLink,
    RowReceiver,
    RowSender,
    make_group,
)
from activation_logging.vllm_plugin.self_test import check_one_request
from activation_logging.vllm_plugin.stack import with_room_below

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVCacheSpec

    from activation_logging.sites import RowShape
    from activation_logging.vllm_plugin.capture import Tap

logger = logging.getLogger(f"vllm.{__name__}")


class ActivationWorker(Worker):
    """The part that all platforms share: vLLM's GPU worker, or a mix-in before another worker."""

    _collector: RowCollector | None = None
    _arena: RowArena | None = None
    _kv_group: int | None = None
    taps: Sequence[Tap] = ()

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        self._settings = Settings.from_env()
        self._num_layers = depth_of(self.vllm_config.model_config)
        sites = resolve_sites(self._settings, self._num_layers)
        self.taps, self.anatomy = plan_taps(self, sites, self._num_layers)
        install_taps(self.taps, self.device)
        stages = get_pp_group()
        self._stages: list[dict[int, RowShape]] = [
            stages.broadcast_object(self._shapes if stages.rank_in_group == stage else None, stage)
            for stage in range(stages.world_size)
        ]

    @property
    def _shapes(self) -> dict[int, RowShape]:
        """What a row of each site of this stage is, by the site's code."""
        return {tap.site.code: tap.shape for tap in self.taps}

    @property
    def _all_shapes(self) -> dict[int, RowShape]:
        """The same of all pipeline stages."""
        return {code: shape for shapes in self._stages for code, shape in shapes.items()}

    @property
    def _has_arena(self) -> bool:
        """Whether this rank keeps rows: the first tensor-parallel rank of a stage that has sites.

        All tensor-parallel ranks have the same hidden states. The last stage writes to the store.
        """
        return get_tp_group().is_first_rank and (get_pp_group().is_last_rank or bool(self._shapes))

    def determine_available_memory(self) -> int:
        """Memory for the KV cache, bytes, after subtracting the arena's memory."""
        available = super().determine_available_memory()
        return available - self._arena_bytes(available) if self._has_arena else available

    def _arena_bytes(self, available: int) -> int:
        """The arena's share of the ``available`` bytes for the KV cache and the arena.

        vLLM divides the layers into groups, and all groups get blocks from one pool. The arena
        has a row for each slot of every block, whichever group uses the block.
        """
        config = self.vllm_config
        groups = get_kv_cache_groups(config, dict(self.get_kv_cache_spec()))
        cache = KVCacheConfig(num_blocks=0, kv_cache_tensors=[], kv_cache_groups=groups)
        spec = _one_spec(groups[_full_attention_group(cache)])
        arena_block = spec.block_size * sum(map(row_bytes, self._shapes.values()))
        fixed = staging_bytes(self._shapes, self.device)
        blocks = config.cache_config.num_gpu_blocks_override
        if blocks is None:
            kv_block = _pool_bytes_per_block(config, groups)
            blocks = max(available - fixed, 0) // (kv_block + arena_block)
        return fixed + int(blocks) * arena_block

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        if not self._has_arena:
            return
        group = _full_attention_group(kv_cache_config)
        cache = kv_cache_config.kv_cache_groups[group]
        if not cache.layer_names:
            raise UnsupportedEngineError(
                "a pipeline stage has no layer in the KV cache group that rows follow: choose "
                "another --pipeline-parallel-size, or set ACTIVATION_LOGGING=0"
            )
        block_size = _one_spec(cache).block_size
        config = self.vllm_config.model_config
        # Sleep mode frees the memory of this pool.
        with self._maybe_get_memory_pool_context(tag="kv_cache"):
            arena = RowArena(
                self._shapes,
                num_slots=kv_cache_config.num_blocks * block_size,
                device=self.device,
            )
        logger.info(
            "activations of up to %d tokens take %.2f GiB beside the KV cache",
            kv_cache_config.num_blocks * block_size,
            arena.nbytes / (1 << 30),
        )
        attach(self.vllm_config, arena, cache.layer_names[0])
        writer, others = self._ways_out()
        self._arena, self._kv_group = arena, group
        self._collector = RowCollector(
            self._settings,
            shapes=self._all_shapes,
            arena=arena,
            writer=writer,
            others=others,
            num_layers=self._num_layers,
            hidden_size=config.get_hidden_size(),
            block_size=block_size,
            kv_group=group,
            accepted_only=True,
        )

    def _ways_out(self) -> tuple[StoreWriter | RowSender, RowReceiver | None]:
        """Where the rows of this stage go, and from where those of the other stages come."""
        stages = get_pp_group()
        ranks = [rank for rank, shapes in zip(stages.ranks, self._stages, strict=True) if shapes]
        last = stages.ranks[-1]
        away = [rank for rank in ranks if rank != last]
        group = make_group([*away, last]) if away else None
        if not stages.is_last_rank:
            return RowSender(GroupLink(group, last)), None
        writer = StoreWriter(
            self._settings.lmdb_path,
            role=f"worker of engine {self.vllm_config.parallel_config.data_parallel_index}",
            policy=self._settings.full_policy,
            cores=self._writer_cores(),
        )
        if not away:
            return writer, None
        stored = {
            code: stored_shape(shape, self._settings) for code, shape in self._all_shapes.items()
        }
        return writer, RowReceiver([GroupLink(group, rank) for rank in away], stored)

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        check_one_request(self, self._arena, self._kv_group)
        return times

    @property
    def last_code(self) -> int:
        """The code of the last layer, which the model's head reads."""
        return self._num_layers

    @property
    def logs_last_layer(self) -> bool:
        """Whether the last layer is among the sites logged."""
        return self.last_code in self._shapes

    @with_room_below
    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        if self._collector is not None:
            self._collector.before_step(scheduler_output)
        return super().execute_model(scheduler_output)

    def sleep(self, level: int = 1) -> None:
        if self._collector is not None:
            self._collector.hold_all()
        super().sleep(level)

    def flush_activations(self, finished: Sequence[str], unseen: Sequence[str]) -> None:
        """Write these requests and commit everything. The front end calls this."""
        if self._collector is not None:
            self._collector.flush(finished, unseen)

    def settle_activations(self, unseen: Sequence[str]) -> None:
        """Settle requests that ended, perhaps before they came here. The front end calls this."""
        if self._collector is not None:
            self._collector.settle(unseen)

    def shutdown(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()
            detach(self.vllm_config)
        remove_taps(self.taps)
        super().shutdown()

    def _writer_cores(self) -> Collection[int] | None:
        """Processor cores for the store's writer thread; None for those of this thread."""
        return None


def _one_spec(group: KVCacheGroupSpec) -> KVCacheSpec:
    """The KV cache spec of each layer of a group."""
    spec = group.kv_cache_spec
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return next(iter(spec.kv_cache_specs.values()))
    return spec


def _full_attention_group(cache: KVCacheConfig) -> int:
    """Index of a KV cache group that keeps each token of a request in its own slot."""
    for index, group in enumerate(cache.kv_cache_groups):
        spec = _one_spec(group)
        if (
            isinstance(spec, FullAttentionSpec)
            and not isinstance(spec, RSWASpec | HiddenStateCacheSpec)
            and spec.tokens_per_state == 1
            and not group.host_resident
        ):
            return index
    raise UnsupportedEngineError(
        "this model has no full-attention layer, so vLLM does not keep all of its tokens, and its "
        "activations cannot be logged: set ACTIVATION_LOGGING=0 to serve it without logging"
    )
