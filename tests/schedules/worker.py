"""vLLM's worker without a model: a row says what it is the row of.

The worker follows the scheduler's block tables on its own account, as vLLM's runners do, and
keeps a KV cache of fingerprints: the fingerprint of position p stands for all tokens up to p. Each
time that vLLM says some positions are computed already, it is compared with the tokens, so that a
mistake of this worker shows as such, and not as a wrong row. The next token is a function of the
fingerprint, so that a request that is computed twice says the same twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.forward_context import set_forward_context
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.worker.gpu_worker import Worker, init_worker_distributed_environment
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from activation_logging.vllm_plugin.worker import ActivationWorker

WIDTH = 8
_PRIME = (1 << 61) - 1
_FACTOR = 1_000_003
END = 2
"""The end-of-text token of the default model."""


def fingerprints(tokens: list[int], before: int = 0) -> list[int]:
    """One number per token that stands for all tokens up to it; ``before`` is that of the last."""
    found = []
    for token in tokens:
        before = (before * _FACTOR + token + 1) % _PRIME
        found.append(before)
    return found


def rows_of(prints: list[int], first: int = 0, layer: int = 0) -> np.ndarray:
    """The states of one layer at consecutive positions, float32 ``[len(prints), WIDTH]``."""
    numbers = np.array(prints, dtype=np.int64)
    rows = np.zeros((len(prints), WIDTH), np.float32)
    rows[:, 0] = np.arange(first + 1, first + 1 + len(prints))
    for place in range(4):
        # Sixteen bits each, which float32 holds exactly.
        rows[:, 1 + place] = (numbers >> (16 * place)) & 0xFFFF
    rows[:, 5] = layer
    return rows


@dataclass(frozen=True)
class Layers:
    """What a run pretends of the model; ``end_every`` is how often an answer ends by itself.

    The last three are faults: rows of the token before, of another width, or not written.
    """

    full: int = 1
    sliding: int = 0
    mamba: int = 0
    block_size: int = 16
    end_every: int = 40
    available: int = 1 << 30
    specs: dict[str, Any] | None = None
    """Taken as they are, instead of what the numbers above say."""
    shift: int = 0
    width: int = WIDTH
    unwritten: int = 0


LAYERS = Layers()
"""Set before an engine is made: workers take no arguments of their own."""


@dataclass
class _Request:
    tokens: list[int]
    prints: list[int]
    blocks: list[int]


class _Layer(torch.nn.Module):
    """A decoder layer, which writes its number into the states."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states = hidden_states.clone()
        states[:, 5] = self._number
        return states


class _Model(torch.nn.Module):
    """Passes the states through, and makes a token of the last one."""

    def __init__(self, depth: int, vocabulary: int, end_every: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._end_every = end_every
        self.layers = torch.nn.ModuleList(_Layer(number) for number in range(1, depth + 1))
        self.norm = _Layer(0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            states = layer(states)
        return self.norm(states)

    def token(self, fingerprint: int) -> int:
        """The end now and then, else any token; always the same after the same tokens."""
        mixed = (fingerprint * 2_654_435_761) >> 7
        if self._end_every and mixed % self._end_every == 0:
            return END
        return 3 + mixed // 64 % (self._vocabulary - 3)

    def compute_logits(self, rows: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros((len(rows), self._vocabulary))
        for scores, row in zip(logits, rows.tolist(), strict=True):
            parts = enumerate(row[1:5])
            scores[self.token(sum(int(part) << (16 * place) for place, part in parts))] = 1
        return logits


class _Runner:
    """What a model runner is asked for outside a step."""

    def __init__(self, model: _Model) -> None:
        self.model = model
        self.kv_cache_config: Any = None

    def get_model(self) -> _Model:
        return self.model

    def _dummy_run(self, num_tokens: int) -> None:
        self.model(torch.zeros(num_tokens, WIDTH))

    def reset_mm_cache(self) -> None:
        """There is none."""


class SimWorker(Worker):
    """No weights, no device; schedulers cannot tell."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        WorkerBase.__init__(self, *args, **kwargs)
        self.layers = LAYERS
        self.device = torch.device("cpu")
        self.v2 = self.vllm_config.use_v2_model_runner
        self._requests: dict[str, _Request] = {}
        self._waiting: ModelRunnerOutput | None = None
        self.happened: Counter[str] = Counter()

    def init_device(self) -> None:
        init_worker_distributed_environment(
            self.vllm_config, self.rank, self.distributed_init_method, self.local_rank, "gloo"
        )
        config = self.vllm_config.model_config
        depth = config.hf_text_config.num_hidden_layers
        model = _Model(depth, config.get_vocab_size(), self.layers.end_every)
        self.model_runner: Any = _Runner(model)

    def load_model(self, **kwargs: Any) -> None:
        del kwargs

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        if self.layers.specs is not None:
            return self.layers.specs
        size = self.layers.block_size
        shape = {"block_size": size, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}
        full = FullAttentionSpec(**shape)
        specs: dict[str, Any] = {f"full.{n}": full for n in range(self.layers.full)}
        for number in range(self.layers.sliding):
            specs[f"sliding.{number}"] = SlidingWindowSpec(**shape, sliding_window=2 * size)
        for number in range(self.layers.mamba):
            specs[f"mamba.{number}"] = MambaSpec(
                block_size=size,
                shapes=((8,),),
                dtypes=(torch.float32,),
                mamba_cache_mode=self.vllm_config.cache_config.mamba_cache_mode,
                page_size_padded=full.page_size_bytes,
            )
        return specs

    def determine_available_memory(self) -> int:
        return self.layers.available

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        self.model_runner.kv_cache_config = kv_cache_config
        groups = kv_cache_config.kv_cache_groups
        self._group = next(n for n, g in enumerate(groups) if g.layer_names[0].startswith("full"))
        slots = kv_cache_config.num_blocks * self.layers.block_size
        self._cache = np.full(slots, -1, np.int64)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(language_model=0.0, encoder=0.0)

    # --- a step --------------------------------------------------------------------------

    def execute_model(self, scheduler_output: Any) -> ModelRunnerOutput | None:
        step = scheduler_output
        gone = set(step.finished_req_ids)
        self._count(step)
        if self.v2:
            gone |= step.preempted_req_ids or set()
        for name in gone:
            self._requests.pop(name, None)
        for source, target in step.kv_cache_block_copies or ():
            size = self.layers.block_size
            self._cache[target * size : (target + 1) * size] = self._cache[
                source * size : (source + 1) * size
            ]
        starts = self._take_over(step)
        if not step.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        slots, rows = [], []
        for name, count in step.num_scheduled_tokens.items():
            request, start = self._requests[name], starts[name]
            missing = start + count - len(request.prints)
            if missing > 0:
                begin = len(request.prints)
                before = request.prints[-1] if request.prints else 0
                request.prints += fingerprints(request.tokens[begin : begin + missing], before)
            prints = request.prints[start : start + count]
            assert len(prints) == count, f"{name} has {len(request.tokens)} tokens"
            places = self._slots(request, start, start + count)
            self._cache[places] = prints
            slots.append(places)
            rows.append(rows_of(prints, start))
        self._check_hits(step, starts)
        states = np.roll(np.concatenate(rows), self.layers.shift, axis=0)[:, : self.layers.width]
        places = torch.from_numpy(np.concatenate(slots)[self.layers.unwritten :])
        mappings = {f"full.{n}": places for n in range(self.layers.full)}
        with set_forward_context(None, self.vllm_config, slot_mapping=mappings):
            self.model_runner.model(torch.from_numpy(states.copy()))
        self._waiting = self._sample(step, starts)
        return None

    def _count(self, step: Any) -> None:
        cached = step.scheduled_cached_reqs
        self.happened["preempted"] += len(step.preempted_req_ids or ())
        self.happened["blocks copied"] += len(step.kv_cache_block_copies or ())
        self.happened["prefix hits"] += sum(
            new.num_computed_tokens > 0 for new in step.scheduled_new_reqs
        )
        self.happened["chunked prefills"] += sum(
            len(new.prompt_token_ids)
            > new.num_computed_tokens + step.num_scheduled_tokens[new.req_id]
            for new in step.scheduled_new_reqs
        )
        self.happened["resumed"] += len(cached.resumed_req_ids)

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | None:
        del grammar_output
        output, self._waiting = self._waiting, None
        return output

    def _take_over(self, step: Any) -> dict[str, int]:
        """Follow the scheduler; where each scheduled request goes on."""
        starts = {}
        for new in step.scheduled_new_reqs:
            tokens = list(new.prefill_token_ids or new.prompt_token_ids)
            self._begin(new.req_id, tokens, new.block_ids[self._group], new.num_computed_tokens)
            starts[new.req_id] = new.num_computed_tokens
        cached = step.scheduled_cached_reqs
        for name, blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            starts[name] = computed
            if name in cached.resumed_req_ids:
                self._begin(name, list(cached.all_token_ids[name]), blocks[self._group], computed)
            elif blocks is not None:
                self._requests[name].blocks += blocks[self._group]
        return starts

    def _begin(self, name: str, tokens: list[int], blocks: list[int], computed: int) -> None:
        self._requests[name] = _Request(tokens, fingerprints(tokens[:computed]), list(blocks))

    def _check_hits(self, step: Any, starts: dict[str, int]) -> None:
        """What vLLM found in its cache is there; another request of this step may have put it."""
        began = {new.req_id for new in step.scheduled_new_reqs}
        for name in began | step.scheduled_cached_reqs.resumed_req_ids:
            request, computed = self._requests[name], starts[name]
            found = self._cache[self._slots(request, 0, computed)].tolist()
            assert found == request.prints[:computed], f"the cache lacks the prefix of {name}"

    def _slots(self, request: _Request, start: int, end: int) -> np.ndarray:
        positions = np.arange(start, end)
        size = self.layers.block_size
        return np.array(request.blocks, np.int64)[positions // size] * size + positions % size

    def _sample(self, step: Any, starts: dict[str, int]) -> ModelRunnerOutput:
        names = list(step.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for name in names:
            request = self._requests[name]
            if starts[name] + step.num_scheduled_tokens[name] < len(request.tokens):
                sampled.append([])
                continue
            token = self.model_runner.model.token(request.prints[-1])
            request.tokens.append(token)
            sampled.append([token])
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
        )

    def shutdown(self) -> None:
        pass


class LoggingSimWorker(ActivationWorker, SimWorker):
    """The same, logging."""
