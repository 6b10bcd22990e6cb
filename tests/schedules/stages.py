"""The same worker as two pipeline stages, of which the first runs up to two steps ahead.

Both stages are told of every step in the same order, as vLLM's workers are, but the last one later.
Each has an arena, a collector and block numbers of its own time. Rows of the first travel through a
socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from activation_logging.sites import RowShape
from activation_logging.vllm_plugin import capture
from activation_logging.vllm_plugin.arena import COLUMNS, RowArena, columns_code
from activation_logging.vllm_plugin.captures import Captures
from activation_logging.vllm_plugin.collector import RowCollector
from activation_logging.vllm_plugin.pipeline import RowReceiver, RowSender
from activation_logging.vllm_plugin.score_sender import StepScores
from activation_logging.vllm_plugin.scorer import Scorer
from tests.fixtures.links import socket_links
from tests.schedules.worker import LoggingSimWorker


class Stages:
    """Two collectors in the place of one, and their arenas in the place of one.

    Args:
        shapes: what a row of each site is that is kept.
        scored: the same of those that probes read.
        last: the site of the last stage. The first has the others.
        make: makes a collector of an arena, a writer and what the other stages send.
        writer: writes to the store.
    """

    def __init__(
        self,
        shapes: Mapping[int, RowShape],
        scored: Mapping[int, RowShape],
        last: int,
        num_slots: int,
        make: Callable[[RowArena, Any, Any], RowCollector],
        writer: Any,
    ) -> None:
        def arena(is_last: bool) -> RowArena:
            mine, read = (
                {code: shape for code, shape in some.items() if (code == last) == is_last}
                for some in (shapes, scored)
            )
            device = torch.device("cpu")
            return RowArena(mine, num_slots=num_slots, device=device, scored=read)

        sending, receiving = socket_links()
        self._arenas = arena(False), arena(True)
        self._first = make(self._arenas[0], RowSender(sending), None)
        columns = {columns_code(code): COLUMNS for code in scored}
        receiver = RowReceiver([receiving], {**shapes, **columns})
        self._last = make(self._arenas[1], writer, receiver)
        self._later: deque[tuple[int, Callable[[], None]]] = deque()
        self._step = 0

    def write(self, code: int, slots: torch.Tensor, x: torch.Tensor, residual: Any) -> None:
        """A step's rows of one site, as an arena takes them."""
        self._arenas[0].write(code, slots, x, residual)
        kept = slots.clone(), x.clone()
        self._later.append((self._step, lambda: self._arenas[1].write(code, *kept, residual)))

    def before_step(self, step: Any) -> None:
        self._step += 1
        self._first.before_step(step)
        self._later.append((self._step, lambda: self._last.before_step(step)))
        # How far the last stage is behind changes from step to step.
        self._catch_up(self._step - self._step % 3)

    def flush(self, *names: Any) -> None:
        self._both("flush", *names)

    def load_probes(self, served: Any) -> None:
        self._both("load_probes", served)

    def scores_due(self) -> StepScores:
        """Nothing: the last stage is behind, and a step's output is there already."""
        self._first.scores_due()
        self._last.scores_due()
        return StepScores(None, (), ())

    def settle(self, names: Any) -> None:
        self._both("settle", names)

    def close(self) -> None:
        self._both("close")

    def _both(self, method: str, *arguments: Any) -> None:
        """A call of the engine comes after the steps before it, at each stage."""
        getattr(self._first, method)(*arguments)
        self._catch_up(self._step)
        getattr(self._last, method)(*arguments)

    def _catch_up(self, step: int) -> None:
        while self._later and self._later[0][0] <= step:
            self._later.popleft()[1]()


class StagedSimWorker(LoggingSimWorker):
    """Logs as two stages: the inner layer belongs to the first, ``last`` to the last."""

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        whole = self._collector
        assert whole is not None
        arena = whole._arena
        last, scored = self._num_layers, self._with_columns(self._all_shapes)

        def make(arena: RowArena, writer: Any, others: Any) -> RowCollector:
            captures = Captures(
                self._settings,
                shapes=self._kept(self._all_shapes),
                arena=arena,
                writer=writer,
                others=others,
                num_layers=last,
                hidden_size=self.vllm_config.model_config.get_hidden_size(),
                block_size=whole._block_size,
                scorer=Scorer(self._served, scored, arena),
            )
            return RowCollector(captures, kv_group=whole._kv_group, accepted_only=True)

        stages = Stages(arena.shapes, scored, last, arena._num_slots, make, whole._writer)
        group = self.model_runner.kv_cache_config.kv_cache_groups[self._group]
        capture.attach(self.vllm_config, stages, group.layer_names[0])  # type: ignore[arg-type]
        self._collector = stages  # type: ignore[assignment]
        return times
