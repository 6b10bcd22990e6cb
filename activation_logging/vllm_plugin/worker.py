"""The worker tap: vLLM's own workers, extended to keep the rows of every step.

vLLM loads these classes by name (``worker_cls``), one per platform. The model itself writes the
rows (:mod:`.capture`). The worker makes room for them, and tells a :class:`.RowCollector` of each
step.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu_worker import Worker

from activation_logging.detectors.probe_parcel import unpack
from activation_logging.errors import ActivationLoggingError, ProbeError, UnsupportedEngineError
from activation_logging.settings import Settings, resolve_sites
from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin.arena import (
    COLUMNS,
    DTYPES,
    RowArena,
    columns_code,
    device_bytes,
    slot_bytes,
)
from activation_logging.vllm_plugin.capture import (
    attach,
    detach,
    install_taps,
    plan_taps,
    remove_taps,
)
from activation_logging.vllm_plugin.captures import Captures
from activation_logging.vllm_plugin.collector import RowCollector
from activation_logging.vllm_plugin.compat import kv_cache_groups
from activation_logging.vllm_plugin.hosts import Met
from activation_logging.vllm_plugin.kv_cache import full_attention_group, keep_every_token, one_spec
from activation_logging.vllm_plugin.pipeline import GroupLink, RowReceiver, RowSender, make_group
from activation_logging.vllm_plugin.score_link import ScoreOutbox, is_reachable
from activation_logging.vllm_plugin.score_sender import ScoreSender
from activation_logging.vllm_plugin.scorer import Scorer
from activation_logging.vllm_plugin.self_test import check_one_request
from activation_logging.vllm_plugin.served_model import depth_of, name_of
from activation_logging.vllm_plugin.server_probes import load_probes, sites_to_read
from activation_logging.vllm_plugin.stack import with_room_below
from activation_logging.vllm_plugin.worker_store import WorkerStore, check_variables

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheSpec

    from activation_logging.sites import RowShape
    from activation_logging.vllm_plugin.capture import Tap
    from activation_logging.vllm_plugin.hosts import Located

logger = logging.getLogger(f"vllm.{__name__}")


class ActivationWorker(Worker):
    """The part that all platforms share: vLLM's GPU worker, or a mix-in before another worker."""

    _collector: RowCollector | None = None
    _arena: RowArena | None = None
    _scorer: Scorer | None = None
    _sender: ScoreSender | None = None
    _kv_group: int | None = None
    _store: WorkerStore | None = None
    taps: Sequence[Tap] = ()

    def load_model(self, **kwargs: Any) -> None:
        check_variables()
        super().load_model(**kwargs)
        self._settings = Settings.from_env()
        self._num_layers = depth_of(self.vllm_config.model_config)
        model = self.vllm_config.model_config
        self._logged = {site.code for site in resolve_sites(self._settings, self._num_layers)}
        self._served = self._checked = load_probes(self._settings.probes, model)
        self._scored = {site.code for site in self._served.sites}
        sites = sites_to_read(self._settings, model)
        self.taps, self.anatomy = plan_taps(self, sites, self._num_layers)
        install_taps(self.taps, self.device)
        stages = get_pp_group()
        self._stages: list[dict[int, RowShape]] = [
            stages.broadcast_object(self._shapes if stages.rank_in_group == stage else None, stage)
            for stage in range(stages.world_size)
        ]

    @cached_property
    def _shapes(self) -> dict[int, RowShape]:
        """What a row of each site that this stage reads is, in the type that it is stored in."""
        dtype = self._settings.dtype
        return {
            tap.site.code: tap.shape._replace(dtype=dtype) if dtype in DTYPES else tap.shape
            for tap in self.taps
        }

    @property
    def _all_shapes(self) -> dict[int, RowShape]:
        """The same of all pipeline stages."""
        return {code: shape for shapes in self._stages for code, shape in shapes.items()}

    def _kept(self, shapes: Mapping[int, RowShape]) -> dict[int, RowShape]:
        """Those whose rows are logged."""
        return {code: shape for code, shape in shapes.items() if code in self._logged}

    def _with_columns(self, shapes: Mapping[int, RowShape]) -> dict[int, RowShape]:
        """Those that probes read."""
        return {code: shape for code, shape in shapes.items() if code in self._scored}

    @property
    def _has_arena(self) -> bool:
        """Whether this rank keeps rows: the first tensor-parallel rank of a stage that has sites.

        All tensor-parallel ranks have the same hidden states. The last stage writes to the store.
        """
        return get_tp_group().is_first_rank and (get_pp_group().is_last_rank or bool(self._shapes))

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return keep_every_token(super().get_kv_cache_spec())

    def determine_available_memory(self) -> int:
        """Memory for the KV cache, bytes, after subtracting what logging takes of the same."""
        available = super().determine_available_memory()
        return available - self._set_aside(available) if self._has_arena else available

    def _set_aside(self, available: int) -> int:
        """What logging takes of the ``available`` bytes for the KV cache and the arena.

        On a GPU the arena lies elsewhere, in host memory. On the CPU both share the memory. VLLM
        divides the layers into groups, and all groups get blocks from one pool. The arena has a
        row for each slot of every block, whichever group uses the block.
        """
        config = self.vllm_config
        if self.device.type == "cuda":
            return device_bytes(
                self._shapes,
                config.scheduler_config.max_num_batched_tokens,
                config.model_config.dtype.itemsize,
                self.device,
                self._with_columns(self._shapes),
            )
        groups, kv_block = kv_cache_groups(config, self.get_kv_cache_spec())
        cache = KVCacheConfig(num_blocks=0, kv_cache_tensors=[], kv_cache_groups=groups)
        spec = one_spec(groups[full_attention_group(cache)])
        arena_block = spec.block_size * self._slot_bytes
        blocks = config.cache_config.num_gpu_blocks_override
        if blocks is None:
            blocks = available // (kv_block + arena_block)
        return int(blocks) * arena_block

    @property
    def _slot_bytes(self) -> int:
        return slot_bytes(self._kept(self._shapes), self._with_columns(self._shapes))

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        if not self._has_arena:
            return
        group = full_attention_group(kv_cache_config)
        cache = kv_cache_config.kv_cache_groups[group]
        if not cache.layer_names:
            raise UnsupportedEngineError(
                "a pipeline stage has no layer in the KV cache group that rows follow: choose "
                "another --pipeline-parallel-size, or set ACTIVATION_LOGGING=0"
            )
        block_size = one_spec(cache).block_size
        config = self.vllm_config.model_config
        num_slots = kv_cache_config.num_blocks * block_size
        arena = RowArena(
            self._kept(self._shapes),
            num_slots=num_slots,
            device=self.device,
            scored=self._with_columns(self._shapes),
        )
        logger.info(
            "activations of up to %d tokens take %.2f GiB of host memory, one row of %d bytes for "
            "each token of the KV cache",
            num_slots,
            arena.nbytes / (1 << 30),
            self._slot_bytes,
        )
        # Also where no probe reads this stage: the last stage learns from it what all of them read.
        scored = self._with_columns(self._all_shapes)
        self._scorer = Scorer(self._served, scored, arena) if scored else None
        self._sender = self._score_sender()
        attach(self.vllm_config, arena, cache.layer_names[0])
        writer, others = self._ways_out()
        self._arena, self._kv_group = arena, group
        captures = Captures(
            self._settings,
            shapes=self._kept(self._all_shapes),
            arena=arena,
            writer=writer,
            others=others,
            num_layers=self._num_layers,
            hidden_size=self.last_width if self.logs_last_layer else config.get_hidden_size(),
            block_size=block_size,
            scorer=self._scorer,
        )
        self._collector = RowCollector(captures, kv_group=group, accepted_only=True)
        if isinstance(writer, StoreWriter):
            self._store = WorkerStore(writer, captures, self._collector)

    def _score_sender(self) -> ScoreSender | None:
        """Sends this stage's part of the scores to front ends; None if it has none."""
        stages = [n for n, shapes in enumerate(self._stages) if self._with_columns(shapes)]
        own = get_pp_group().rank_in_group
        if own not in stages:
            return None
        return ScoreSender(ScoreOutbox(), stages.index(own), len(stages))

    @property
    def _engine(self) -> int:
        """Number of this worker's engine among those of one data-parallel server."""
        return int(self.vllm_config.parallel_config.data_parallel_index)

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
            self._settings.store_path(self._engine),
            role=f"worker of engine {self._engine}",
            policy=self._settings.full_policy,
            ceiling=self._settings.ceiling,
            cores=self._writer_cores(),
        )
        if not away:
            return writer, None
        links = [GroupLink(group, rank) for rank in away]
        columns = {columns_code(code): COLUMNS for code in self._with_columns(self._all_shapes)}
        return writer, RowReceiver(links, {**self._all_shapes, **columns})

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        check_one_request(self, self._arena, self._kv_group)
        return times

    @property
    def last_code(self) -> int:
        """The code of the last layer, which the model's head reads."""
        return self._num_layers

    @property
    def last_width(self) -> int:
        """Elements of a row of the last layer."""
        return self._all_shapes[self.last_code].width

    @property
    def logs_last_layer(self) -> bool:
        """Whether the last layer is among the sites logged."""
        return self.last_code in self._kept(self._shapes)

    @with_room_below
    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        if self._collector is not None:
            self._collector.before_step(scheduler_output)
        return self._after_scores(super().execute_model(scheduler_output))

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        return self._after_scores(super().sample_tokens(grammar_output))

    def _after_scores(self, output: Any) -> Any:
        """The output of a step, which its scores precede on their way to front ends."""
        if self._collector is None or self._sender is None:
            return output
        if not get_pp_group().is_last_rank:
            self._sender.send_later(self._collector.scores_due())
            return output
        # Without an output the step goes on: it samples next.
        return output and self._sender.before(output, self._collector.scores_due())

    def sleep(self, level: int = 1) -> None:
        if self._collector is not None:
            self._collector.hold_all()
        super().sleep(level)

    def flush_activations(
        self, finished: Sequence[str], unseen: Sequence[str], words: Mapping[str, tuple[bool, int]]
    ) -> None:
        """Write these requests and commit everything. The front end calls this.

        The arguments are those of :meth:`.RowCollector.flush`.
        """
        if self._collector is not None:
            self._collector.flush(finished, unseen, words)
            if self._sender is not None:
                self._sender.send(self._collector.scores_due())

    def settle_activations(
        self, unseen: Sequence[str], words: Mapping[str, tuple[bool, int]]
    ) -> None:
        """Settle requests that ended, perhaps before they came here. The front end calls this.

        The arguments are those of :meth:`.RowCollector.flush`.
        """
        if self._collector is not None:
            self._collector.hear(words)
            self._collector.settle(unseen)

    def meet_activations(self, home: str, marker: str, scores_to: str | None) -> dict[str, Any]:
        """Tell a front end of this worker: the fields of :class:`.Met`. The front end calls this.

        Args:
            home: ``HOST:PATH`` of its store.
            marker: name of a file that is there for now.
            scores_to: the address of its inbox of scores; None if it has none.
        """
        said = Met(
            host=socket.gethostname(),
            engine=self._engine,
            clock=time.time(),
            settings=self._settings.agreed,
            probes=self._served.digest if self._served else "",
            reached=self._sender is None or scores_to is None or is_reachable(scores_to),
        )
        return asdict(said if self._store is None else self._store.meet(said, home, marker))

    def locate_activations(self, names: Sequence[str], unseen: Sequence[str]) -> Located:
        """Say which requests the store has, of a front end with another. The front end calls this.

        Args:
            names: requests that have ended.
            unseen: those of them that may never have reached a worker.
        """
        if self._store is None:
            return None, {}, list(unseen)
        return self._store.locate(names, unseen)

    def check_activation_probes(self, parcel: bytes) -> str | None:
        """Read probes that are to take the place of the others, and keep them in mind.

        The front end calls this on all workers, then :meth:`use_activation_probes` if none refuses.

        Args:
            parcel: what :func:`.probe_parcel.pack` made of them.

        Returns:
            Why they cannot be served, in one sentence; None if they can.
        """
        model = self.vllm_config.model_config
        try:
            if not self._scored:
                raise ProbeError(
                    "this server was started without probes, so it computes no scores: start it "
                    "with one of each layer that probes are to read (--activation-probe NAME=PATH)"
                )
            found = unpack(parcel)
            found.check_model(name_of(model), self._num_layers)
            found.parts(self._with_columns(self._all_shapes))
            self._settings.keeping.check_probes(found)
        except ActivationLoggingError as error:
            return str(error)
        self._checked = found
        return None

    def use_activation_probes(self) -> None:
        """Use the probes that were checked last, from the next step on."""
        self._served = self._checked
        if self._collector is not None:
            self._collector.load_probes(self._served)

    def shutdown(self) -> None:
        collector, self._collector, self._store = self._collector, None, None
        if collector is not None:
            collector.close()
            detach(self.vllm_config)
            if self._sender is not None:
                self._sender.close()
            if self._arena is not None:
                self._arena.close()
        remove_taps(self.taps)
        super().shutdown()

    def _writer_cores(self) -> Collection[int] | None:
        """Processor cores for the store's writer thread; None for those of this thread."""
        return None
