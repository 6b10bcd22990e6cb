"""Scores at the front end: rows that arrive, answers that end, outputs that carry scores.

Nothing here touches a request that asks for no scores and no stop: its state, its queue and its
outputs are vLLM's own.

vLLM makes one ``CompletionOutput`` of an answer for each step, or one in all. :class:`ScoredState`
gives it ``activation_scores``. A server's route takes the outputs from a queue, which merges those
that the route has not taken yet; :class:`ScoredQueue` merges the scores too, and notes for the
middleware what the route was given (:mod:`.scored_answers`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.utils.network_utils import get_ip
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.errors import RequestOptionError, UnsupportedEngineError
from activation_logging.score_options import ScoreOptions
from activation_logging.text import shown
from activation_logging.vllm_plugin.live_scores import LiveAnswer, check_options, finals
from activation_logging.vllm_plugin.score_link import ScoreInbox
from activation_logging.vllm_plugin.scored_answers import join
from activation_logging.vllm_plugin.server_probes import load_probes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreOutput

    from activation_logging.settings import Settings
    from activation_logging.vllm_plugin.live_scores import Final, Told
    from activation_logging.vllm_plugin.score_link import Block, Columns

logger = logging.getLogger(f"vllm.{__name__}")

PATIENCE_S = 0.5
"""Time to wait in all for rows that a worker sent before the token that is here already, seconds.

They come by another way, so they may be a little later. Where they do not come at all, the worker
dropped them, and its answers are not waited for again. Each time halves the patience with the next
ones, until rows arrive: a way that is blocked must not keep every step waiting.
"""
_LAST_S = 0.5
"""Time after the end of an answer at which its last message is looked for, seconds.

It is sent a step later. Where nothing runs, nothing else would look.
"""
_MAX_SETS = 16
"""Probes that were replaced, and that messages on their way may still be of."""
_MAX_ENDED = 10_000
"""Answers that ended and whose last message has not arrived. That of some never does."""


def start_scores(settings: Settings, config: VllmConfig) -> LiveScores | None:
    """The scores of an engine's requests; None if its server has no probes.

    Raises:
        ProbeError: a probe cannot be served.
    """
    served = load_probes(settings.probes, config.model_config)
    return LiveScores(served, ScoreInbox(_reachable_host(config))) if served else None


def _reachable_host(config: VllmConfig) -> str | None:
    """This host's address, if workers may run on another.

    Raises:
        UnsupportedEngineError: vLLM does not know it.
    """
    parallel = config.parallel_config
    away = (
        parallel.nnodes > 1
        or parallel.data_parallel_size_local < parallel.data_parallel_size
        or parallel.distributed_executor_backend == "ray"
    )
    host = get_ip() if away else None
    if host == "0.0.0.0":  # noqa: S104 - what vLLM gives where it finds none; nothing is bound
        raise UnsupportedEngineError(
            "workers on other hosts cannot send scores to this one, whose address is not known: "
            "set VLLM_HOST_IP to the one that they reach"
        )
    return host


def check_scores(options: ScoreOptions, live: LiveScores | None) -> None:
    """Refuse what an engine's probes cannot give.

    Raises:
        RequestOptionError: it has none, or none of such a name.
    """
    check_options(options, ServedProbes() if live is None else live.served)


def refuse_adapter(name: str) -> None:
    """Refuse scores of an adapter's answers.

    Raises:
        RequestOptionError: always.
    """
    raise RequestOptionError(
        "model",
        f"probes belong to the model that they were fitted on, and {shown(name)} is an adapter: "
        "ask the model itself, or leave activation_scores and activation_stop out",
    )


class LiveScores:
    """The scores of all requests of one engine.

    Args:
        served: the probes that its workers start with.
        inbox: where the workers send to.
    """

    def __init__(self, served: ServedProbes, inbox: ScoreInbox) -> None:
        self.served = served
        self._inbox = inbox
        self._answers: dict[str, LiveAnswer] = {}
        self._open: set[str] = set()
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._last: dict[str, LiveAnswer] = {}
        self._sets = OrderedDict({served.digest: served})
        self._in_vain = 0
        self._timer: asyncio.TimerHandle | None = None
        self.on_final: Callable[[Mapping[str, Final]], None] | None = None
        """Told what every probe said of each answer that has ended."""
        self.on_unknown: Callable[[], None] | None = None
        """Called where workers use probes that another API server has changed to."""

    @property
    def address(self) -> str:
        """Where workers reach this front end."""
        return self._inbox.address

    def expect(self, served: ServedProbes) -> None:
        """Know these probes, which workers are about to use, unless one of them refuses."""
        self._sets[served.digest] = served
        self._sets.move_to_end(self.served.digest)
        self._sets.move_to_end(served.digest)
        if len(self._sets) > _MAX_SETS:
            self._sets.popitem(last=False)

    def load(self, served: ServedProbes) -> None:
        """Take these probes for the requests to come. Those in flight keep the ones they had."""
        self.expect(served)
        self.served = served

    def accept(self, request_id: str, num_prompt: int, options: ScoreOptions) -> None:
        """Follow a request.

        Args:
            request_id: the engine's id of it.
            num_prompt: tokens of its prompt.
            options: what it asks for, which must have been checked.
        """
        self._open.add(request_id)
        if options:
            self._answers[request_id] = LiveAnswer(self.served, options, num_prompt)

    def attach(self, state: RequestState, queue: Any, note: Callable[[Any, bool], None]) -> None:
        """Have the outputs of a request carry its scores, if it asked for them.

        Args:
            state: vLLM's state of it.
            queue: where its outputs go; None offline.
            note: called with each output that a server's route takes, and whether it is a part.
        """
        answer = self._answers.get(state.request_id)
        if answer is None:
            return
        state.__class__ = ScoredState
        state.live = answer
        if queue is not None:
            queue.__class__ = ScoredQueue
            queue.note = note

    def before(
        self, outputs: Iterable[EngineCoreOutput], states: Mapping[str, RequestState]
    ) -> list[str]:
        """Take the rows of a step, and end the answers that a probe ends with it.

        Args:
            outputs: of the step. That of an answer that ends loses its token, and says why.
            states: of all requests.

        Returns:
            The requests that end without the engine's knowing.
        """
        self.collect()
        expected = []
        for output in outputs if self._answers else ():
            answer, state = self._answers.get(output.request_id), states.get(output.request_id)
            if answer is not None and state is not None and output.new_token_ids:
                rows = state.detokenizer.num_output_tokens() + len(output.new_token_ids)
                expected.append((output, answer, rows))
        self._wait([(answer, rows) for _, answer, rows in expected])
        unknown = []
        for output, answer, rows in expected:
            reason = answer.stop(rows)
            if reason is not None:
                if output.finish_reason is None:
                    unknown.append(output.request_id)
                _end(output, reason)
        return unknown

    def finish(self, request_id: str, num_tokens: int) -> str | None:
        """Follow a request no longer. Its ``stop_reason``, if a probe has ended it.

        Args:
            request_id: the engine's id of it.
            num_tokens: tokens of its answer.
        """
        answer = self._answers.pop(request_id, None)
        reason = None if answer is None else answer.stop_reason
        if request_id in self._open:
            self._open.remove(request_id)
            self._ended[request_id] = max(num_tokens - (reason is None), 0)
            self._tell_final(request_id)
            self._collect_soon()
            if len(self._ended) > _MAX_ENDED:
                oldest, _ = self._ended.popitem(last=False)
                self._last.pop(oldest, None)
        return reason

    def close(self) -> None:
        """Listen no longer."""
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.close()

    def _wait(self, expected: list[tuple[LiveAnswer, int]]) -> None:
        end = time.monotonic() + math.ldexp(PATIENCE_S, -self._in_vain)
        while missing := [a for a, rows in expected if a.num_rows < rows and not a.late]:
            left = end - time.monotonic()
            if left <= 0:
                self._give_up(missing)
                break
            self.collect(left)
        if any(answer.num_rows >= rows for answer, rows in expected):
            self._in_vain = 0

    def _give_up(self, missing: list[LiveAnswer]) -> None:
        """Wait no longer for the scores of these answers, and half as long for those of others."""
        for answer in missing:
            answer.late = True
        self._in_vain += 1
        if self._in_vain.bit_count() == 1:  # the first time, the second, the fourth, ...
            logger.warning(
                "the scores of %d answers do not arrive in time; that was so %d times in a row",
                len(missing),
                self._in_vain,
            )

    def collect(self, timeout_s: float = 0.0) -> None:
        """Take the messages that have arrived, in the thread that also takes outputs.

        Args:
            timeout_s: time to wait for one where there is none, seconds.
        """
        for message in self._inbox.receive(timeout_s):
            if message.probes not in self._sets and self.on_unknown is not None:
                self.on_unknown()
            served = self._sets.get(message.probes, ServedProbes())
            for block in message.blocks:
                if message.ended:
                    self._final(served, message, block)
                elif (answer := self._answers.get(block.request)) is not None:
                    # The workers may use others by now: of those that stayed there is more.
                    columns = answer.served.columns_of(served, block.columns)
                    answer.take(block.first, columns, message.part, message.parts)

    def _collect_soon(self) -> None:
        if self._timer is None:
            # Offline there may be no loop: then the next output takes the messages.
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_LAST_S, self._collect_last)

    def _collect_last(self) -> None:
        self._timer = None
        self.collect()

    def _final(self, served: ServedProbes, message: Columns, block: Block) -> None:
        """Take the rows of an answer that has ended in the workers, and perhaps not here yet."""
        request = block.request
        if not (request in self._open or request in self._ended):
            return
        if request not in self._last:
            self._last[request] = LiveAnswer(served, ScoreOptions(), block.first + 1)
        self._last[request].take(block.first, block.columns, message.part, message.parts)
        self._tell_final(request)

    def _tell_final(self, request: str) -> None:
        answer = self._last.get(request)
        if request not in self._ended or answer is None or not answer.num_rows:
            return
        del self._last[request]
        rows = answer.rows(self._ended.pop(request) + 1)
        if self.on_final is not None:
            self.on_final(finals(answer.served, rows))


def _end(output: EngineCoreOutput, reason: str) -> None:
    """Let an answer end before the token that this output brings."""
    output.new_token_ids = output.new_token_ids[:-1]
    output.new_logprobs = None
    output.new_sampling_mask = None
    output.finish_reason = FinishReason.STOP
    output.stop_reason = reason


class ScoredState(RequestState):
    """vLLM's state of a request whose outputs carry scores."""

    live: LiveAnswer

    def _new_completion_output(
        self, token_ids: list[int], finish_reason: FinishReason | None, *args: Any, **kwargs: Any
    ) -> CompletionOutput:
        output = super()._new_completion_output(token_ids, finish_reason, *args, **kwargs)
        if self.live.asks:
            finished = finish_reason is not None
            count = self.detokenizer.num_output_tokens()
            if self.output_kind == RequestOutputKind.DELTA:
                scores = self.live.tell(count, finished=finished)
            else:
                scores = self.live.so_far(count, finished=finished)
            output.activation_scores = scores
        if self.queue is not None and self.live.stop_reason and not output.token_ids:
            output.token_ids = _Nothing()
        return output


class _Nothing(list[int]):
    """No tokens, and yet true. VLLM's routes skip a chunk without tokens if none came before it.

    The chunk that says that an answer has ended before its first token would be such a one.
    """

    def __bool__(self) -> bool:
        return True


class ScoredQueue(RequestOutputCollector):
    """vLLM's queue between its engine and one route."""

    note: Callable[[Any, bool], None]

    def put(self, output: Any) -> None:
        waiting = self.output
        before: dict[int, Told] = {}
        if self.aggregate and isinstance(waiting, RequestOutput):
            before = {one.index: scores_of(one) for one in waiting.outputs}
        super().put(output)
        if before and isinstance(output, RequestOutput):
            after = {one.index: scores_of(one) for one in output.outputs}
            for one in waiting.outputs:
                if one.index in before and one.index in after:
                    one.activation_scores = join(before[one.index], after[one.index])

    async def get(self) -> Any:
        output = await super().get()
        self.note(output, self.aggregate)
        return output

    def get_nowait(self) -> Any:
        output = super().get_nowait()
        if output is not None:
            self.note(output, self.aggregate)
        return output


def scores_of(output: CompletionOutput) -> Told:
    """The scores that an output carries."""
    return getattr(output, "activation_scores", {})
