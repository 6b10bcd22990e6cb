"""The worker tap: vLLM's own workers, which also keep the hidden states of every step.

vLLM loads these classes by name (``worker_cls``), one per platform. They add nothing to the
forward pass; what they read of vLLM's internals is in :class:`_Step`, the same for both of
vLLM's model runners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, UniformTypeKVCacheSpecs
from vllm.v1.worker.gpu_worker import Worker

from activation_logging.errors import UnsupportedEngineError
from activation_logging.settings import Settings, resolve_layers
from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin.arena import RowArena
from activation_logging.vllm_plugin.collector import RowCollector
from activation_logging.vllm_plugin.stack import with_room_below

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch
    from vllm.v1.core.sched.output import SchedulerOutput


class ActivationWorker(Worker):
    """What all platforms share; a mix-in in front of the platform's own worker."""

    _collector: RowCollector | None = None

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        config = self.vllm_config.model_config
        self._settings = Settings.from_env()
        self._num_layers = int(config.hf_text_config.num_hidden_layers)
        self._layers = resolve_layers(self._settings.layers, self._num_layers)
        inner = tuple(layer for layer in self._layers if layer != self._num_layers)
        if inner:
            _return_inner_layers(self.model_runner, inner)

    def determine_available_memory(self) -> int:
        """Memory for the KV cache, bytes, less what the arena takes beside it."""
        available = super().determine_available_memory()
        kv_bytes = sum(
            spec.page_size_bytes / spec.block_size for spec in self.get_kv_cache_spec().values()
        )
        config = self.vllm_config.model_config
        row_bytes = len(self._layers) * config.get_hidden_size() * config.dtype.itemsize
        return int(available * kv_bytes / (kv_bytes + row_bytes)) if kv_bytes else available

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        # Every tensor-parallel rank holds the same hidden states: one of them writes.
        if not (get_pp_group().is_last_rank and get_tp_group().is_first_rank):
            return
        group = _full_attention_group(kv_cache_config)
        cache = kv_cache_config.kv_cache_groups[group]
        block_size = cache.kv_cache_spec.block_size
        config = self.vllm_config.model_config
        arena = RowArena(
            num_layers_logged=len(self._layers),
            num_slots=kv_cache_config.num_blocks * block_size,
            hidden_size=config.get_hidden_size(),
            dtype=config.dtype,
            device=self.device,
        )
        self._attention_layer = cache.layer_names[0]
        engine = self.vllm_config.parallel_config.data_parallel_index
        self._collector = RowCollector(
            self._settings,
            arena=arena,
            writer=StoreWriter(
                self._settings.lmdb_path,
                role=f"worker of engine {engine}",
                policy=self._settings.full_policy,
                cores=self._writer_cores(),
            ),
            layers=self._layers,
            num_layers=self._num_layers,
            hidden_size=config.get_hidden_size(),
            model_dtype=config.dtype,
            block_size=block_size,
            kv_group=group,
        )

    @with_room_below
    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        collector = self._collector
        if collector is None:
            return super().execute_model(scheduler_output)
        collector.before_step(scheduler_output)
        output = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens:
            slots, states = self._step(scheduler_output.total_num_scheduled_tokens)
            collector.after_step(slots, states)
        return output

    def flush_activations(self, finished: Sequence[str]) -> None:
        """Called by the front end: write out these requests and commit everything."""
        if self._collector is not None:
            self._collector.flush(finished)

    def _writer_cores(self) -> Collection[int] | None:
        """Processor cores for the store's writer, if not those of this thread."""
        return None

    def shutdown(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()
        super().shutdown()

    def _step(self, num_tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Slots and hidden states of the step just run, one tensor per logged layer.

        Both model runners leave them in ``execute_model_state`` between the forward pass and
        sampling; only the name of the slot mapping differs.
        """
        state = self.model_runner.execute_model_state
        mappings = getattr(state, "slot_mappings", None)
        if mappings is None:
            mappings = state.slot_mappings_by_layer
        slots = mappings[self._attention_layer][:num_tokens]
        states = list(state.aux_hidden_states or ())
        if self._num_layers in self._layers:
            states.append(state.hidden_states)
        return slots, states


def _return_inner_layers(model_runner: Any, layers: tuple[int, ...]) -> None:
    """Make the (compiled) model return the residual stream after these layers as well."""
    model = model_runner.model
    try:
        model.set_aux_hidden_state_layers(layers)
    except (AttributeError, AssertionError):
        raise UnsupportedEngineError(
            f"vLLM's {type(model).__name__} gives out its last layer only; "
            "start the server with ACTIVATION_LAYERS=last"
        ) from None
    model_runner.use_aux_hidden_state_outputs = True


def _full_attention_group(config: KVCacheConfig) -> int:
    """Index of a KV cache group that keeps every token of a request in a slot of its own."""
    for index, group in enumerate(config.kv_cache_groups):
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = next(iter(spec.kv_cache_specs.values()))
        if isinstance(spec, FullAttentionSpec):
            return index
    raise UnsupportedEngineError(
        "this model has no layer of full attention, so vLLM does not keep all of its tokens; "
        "its activations cannot be logged: set ACTIVATION_LOGGING=0 to serve it without"
    )
