"""A self-test at start-up: one request through the worker, whose rows are checked.

:mod:`.gate` refuses the modes that are known not to work. This test finds the unknown ones: a step
that fails with logging, a hidden state of another width, rows that were not written, or rows that
the sampled tokens do not follow from.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import CircularBufferSpec, KVCacheConfig

from activation_logging.errors import UnsupportedEngineError
from activation_logging.vllm_plugin.anatomy import eager, ranks_differ, tensors_of
from activation_logging.vllm_plugin.arena import site_of
from activation_logging.vllm_plugin.compat import empty_step
from activation_logging.vllm_plugin.origin import SELF_TEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torch import nn

    from activation_logging.sites import Site
    from activation_logging.vllm_plugin.arena import RowArena
    from activation_logging.vllm_plugin.capture import Tap

PROMPT_LEN = 7
_UNWRITTEN = -24576.0
"""Fills unwritten rows. Exact in every row type, and no real row consists of it."""
_ROUNDING = 0.1
"""Largest relative distance of two ways to the same rows. bfloat16 rounds, and both ways differ:
by up to 0.04 in the default model, whose first row differs most."""
_SLACK = 0.02
"""Largest distance of the sampled token's logit from the maximum, as a share of their range."""
_REMEDY = "choose another model or mode, or set ACTIVATION_LOGGING=0 to serve without logging"


def check_one_request(worker: Any, arena: RowArena | None, kv_group: int | None) -> None:
    """Run a request of a few tokens on every rank, and check its rows on the rank that keeps them.

    Args:
        worker: vLLM's worker, warmed up.
        arena: this rank's arena; None on ranks that keep no rows.
        kv_group: index of the KV cache group whose slots the arena uses.

    Raises:
        UnsupportedEngineError: the step failed, or the rows are wrong.
    """
    request = _Request(worker)
    slots = request.slots(kv_group) if kv_group is not None else np.empty(0, np.int64)
    rows = slots[: request.num_rows]
    if arena is not None:
        arena.fill(slots, _UNWRITTEN)
    try:
        # The test must not consume random numbers: the first client gets those of the seed.
        with (
            torch.random.fork_rng(_devices(worker)),
            torch.inference_mode(),
            nullcontext() if arena is None else _noise(arena),
        ):
            tokens = request.run()
            if arena is not None:
                _check_written(arena, rows)
            if _has_head(worker):
                _check_head(worker, arena, rows, tokens)
            if worker.anatomy is not None:
                _check_sites(worker, arena, request, rows)
    except UnsupportedEngineError:
        raise
    except Exception as error:
        raise UnsupportedEngineError(
            f"the first step with logging failed ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error


@contextmanager
def _noise(arena: RowArena) -> Iterator[None]:
    """Let columns tell two rows apart as well as the rows do (Johnson and Lindenstrauss 1984)."""
    kept = {code: (matrix.clone(), arena.in_use[code]) for code, matrix in arena.matrices.items()}
    chance = torch.Generator().manual_seed(0)
    for code, matrix in arena.matrices.items():
        matrix.copy_(torch.randn(matrix.shape, dtype=matrix.dtype, generator=chance))
        arena.in_use[code] = matrix.shape[1]
    try:
        yield
    finally:
        for code, (matrix, used) in kept.items():
            arena.matrices[code].copy_(matrix)
            arena.in_use[code] = used


class _Request:
    """The test request: its blocks, and the scheduler outputs that run it."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        config = worker.vllm_config
        longest = min(
            config.model_config.max_model_len - 2, config.scheduler_config.max_num_batched_tokens
        )
        # Ordinary words: the first ids are special tokens, many of them untrained, whose states
        # are so large that rounding decides what the last layers make of them.
        first = config.model_config.get_vocab_size() // 3
        self._prompt = list(range(first, first + max(min(PROMPT_LEN, longest), 1)))
        # Pipeline ranks exchange sampled tokens outside this path, so they test only the prefill.
        self._decodes = config.parallel_config.pipeline_parallel_size == 1
        self.num_rows = len(self._prompt) + self._decodes
        self._cache: KVCacheConfig = worker.model_runner.kv_cache_config
        self._blocks = _allocate(self._cache, self.num_rows)

    def slots(self, kv_group: int) -> npt.NDArray[np.int64]:
        """The slots of all its blocks in one KV cache group, int64 ``[slots]``."""
        size = self._cache.kv_cache_groups[kv_group].kv_cache_spec.block_size
        table = np.array(self._blocks[kv_group], dtype=np.int64)
        return (table[:, None] * size + np.arange(size)).reshape(-1)

    def run(self) -> list[int]:
        """Run the prefill and one decode step. Returns the sampled tokens of this rank, if any."""
        tokens = self._step(self._prefill())
        if self._decodes:
            tokens += self._step(self._decode())
        end = self._empty()
        end.finished_req_ids = {SELF_TEST}
        self._worker.execute_model(end)
        return tokens

    def _empty(self) -> SchedulerOutput:
        return empty_step(len(self._cache.kv_cache_groups))

    def _step(self, step: SchedulerOutput) -> list[int]:
        output = self._worker.execute_model(step)
        if output is None:
            output = self._worker.sample_tokens(None)
        if hasattr(output, "get_output"):
            output = output.get_output()
        sampled = output.sampled_token_ids if output else []
        return [int(token) for token in sampled[0]] if sampled else []

    def _prefill(self) -> SchedulerOutput:
        step = self._empty()
        step.scheduled_new_reqs = [
            NewRequestData(
                req_id=SELF_TEST,
                prompt_token_ids=self._prompt,
                mm_features=[],
                sampling_params=SamplingParams(temperature=0, max_tokens=2),
                pooling_params=None,
                block_ids=tuple(list(blocks) for blocks in self._blocks),
                num_computed_tokens=0,
                lora_request=None,
                prefill_token_ids=self._prompt,
            )
        ]
        return _scheduled(step, len(self._prompt))

    def _decode(self) -> SchedulerOutput:
        step = self._empty()
        cached = CachedRequestData.make_empty()
        cached.req_ids = [SELF_TEST]
        cached.new_block_ids = [None]
        cached.num_computed_tokens = [len(self._prompt)]
        cached.num_output_tokens = [1]
        step.scheduled_cached_reqs = cached
        return _scheduled(step, 1)


def _scheduled(step: SchedulerOutput, num_tokens: int) -> SchedulerOutput:
    step.num_scheduled_tokens = {SELF_TEST: num_tokens}
    step.total_num_scheduled_tokens = num_tokens
    return step


def _allocate(cache: KVCacheConfig, num_tokens: int) -> list[list[int]]:
    """Block numbers for ``num_tokens`` tokens in every group. Block 0 is reserved by vLLM."""
    blocks: list[list[int]] = []
    following = 1
    for group in cache.kv_cache_groups:
        spec = group.kv_cache_spec
        circular = isinstance(spec, CircularBufferSpec)
        count = 1 if circular else -(-num_tokens // spec.block_size)
        blocks.append(list(range(following, following + count)))
        following += count
    return blocks


def _check_written(arena: RowArena, slots: npt.NDArray[np.int64]) -> None:
    for code, written in arena.differ(slots, _UNWRITTEN).items():
        if not written.all():
            raise UnsupportedEngineError(
                f"the model left {int((~written).sum())} of {written.size} rows of "
                f"{site_of(code)} unwritten in a request of {len(slots)} tokens; {_REMEDY}"
            )


def _has_head(worker: Any) -> bool:
    """Whether this rank has a part of the output head, and rows that it is applied to."""
    return bool(worker.logs_last_layer and get_pp_group().is_last_rank)


def _check_head(
    worker: Any, arena: RowArena | None, slots: npt.NDArray[np.int64], tokens: list[int]
) -> None:
    """Check that the output head gives the sampled tokens when applied to their rows.

    With tensor parallelism each rank has a part of the head, so all ranks must apply theirs. With
    LoRA the head's adapters are those of the last step, which had one request: so row by row.
    """
    config = worker.vllm_config.model_config
    count = max(len(tokens), 1)
    if arena is not None:
        rows = arena.rows_at(worker.last_code, slots[-count:]).to(config.dtype)
    else:
        rows = torch.zeros((count, worker.last_width), dtype=config.dtype, device=worker.device)
    rows = get_tp_group().broadcast(rows)
    logits = [worker.model_runner.model.compute_logits(row[None]) for row in rows]
    if arena is None or logits[0] is None:
        return
    for each, token in zip(logits, tokens, strict=True):
        scores = each[0].float()
        spread = float(scores.max() - scores.min())
        if float(scores.max() - scores[token]) > _SLACK * spread:
            raise UnsupportedEngineError(
                "the rows of this model's last layer are not what its tokens are sampled from; "
                f"{_REMEDY}"
            )


def _check_sites(
    worker: Any, arena: RowArena | None, request: _Request, slots: npt.NDArray[np.int64]
) -> None:
    """Run the request again without compiled graphs, and compare.

    Each site must have the same rows as in the graph. Tensor-parallel ranks must all have it, or a
    term of it, as was found out. The final norm must make the last layer of what the deepest
    decoder layer gives; otherwise it is not known what the layers give.
    """
    model, anatomy = worker.model_runner.get_model(), worker.anatomy
    found = {} if arena is None else {code: arena.rows_at(code, slots) for code in arena.codes}
    wrong: list[Site] = []
    given: list[tuple[torch.Tensor, ...]] = []
    made: list[torch.Tensor] = []
    handles = [
        tap.module.register_forward_hook(partial(_compare_ranks, tap, wrong), with_kwargs=True)
        for tap in worker.taps
        if tap.split != "columns"
    ]
    if get_pp_group().is_last_rank:
        layer = anatomy.layers[max(anatomy.layers)]
        handles += [
            # What comes next may write into them.
            layer.register_forward_hook(
                lambda _module, _args, output: given.append(
                    tuple(map(torch.clone, tensors_of(output)))
                )
            ),
            model.register_forward_hook(
                lambda _module, _args, output: made.append(tensors_of(output)[0].clone())
            ),
        ]
    try:
        with eager(model):
            request.run()
    finally:
        for handle in handles:
            handle.remove()
    if wrong:
        raise UnsupportedEngineError(
            f"it is not known how the ranks of vLLM's {type(model).__name__} make up "
            f"{', '.join(map(str, dict.fromkeys(wrong)))}; leave it out of ACTIVATION_SITES"
        )
    for code, rows in found.items():
        again = arena.rows_at(code, slots) if arena is not None else rows
        if _distance(again, rows) > _ROUNDING:
            raise UnsupportedEngineError(
                f"the rows of {site_of(code)} differ between this model's compiled graph "
                f"and the same without it; leave it out of ACTIVATION_SITES"
            )
    normed = anatomy.normed(given[0]) if given and made else None
    if normed is not None and _distance(normed[:PROMPT_LEN], made[0][:PROMPT_LEN]) > _ROUNDING:
        raise UnsupportedEngineError(
            f"the final norm of vLLM's {type(model).__name__} does not make its last layer of what "
            "its decoder layers give: start the server with ACTIVATION_LAYERS=last"
        )


def _compare_ranks(
    tap: Tap, wrong: list[Site], _module: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    """Note a site of which the tensor-parallel ranks have something else than was found out."""
    x, residual = tap.states(args, kwargs, output)
    if residual is not None:
        x = x + residual
    # Padding comes after the tokens, and may be anything.
    if ranks_differ(x.reshape(-1, x.shape[-1])[:1]) != (tap.split == "terms"):
        wrong.append(tap.site)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of a row's difference, relative to the expected row: the median of all rows.

    Not one norm of all rows: the first token's state is a hundred times as large as the others.
    """
    found, expected = found.float(), expected.float()
    distances = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
    return float(distances.median())


def _devices(worker: Any) -> list[torch.device]:
    return [worker.device] if worker.device.type == "cuda" else []
