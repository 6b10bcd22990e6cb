"""What of a step goes to front ends: the columns of the requests that asked, and of those that end.

A step's columns are sent when its output is on its way back to vLLM's engine, and before that. So a
front end that gets a token need not guess whether there are scores that belong to it. Where the
device goes on by itself, the output is a promise, and the columns are read when it is kept.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
from vllm.v1.outputs import AsyncModelRunnerOutput

from activation_logging.vllm_plugin.score_link import Block
from activation_logging.vllm_plugin.score_link import Columns as Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vllm.v1.outputs import ModelRunnerOutput

    from activation_logging.vllm_plugin.score_link import ScoreOutbox
    from activation_logging.vllm_plugin.scorer import Columns

logger = logging.getLogger(f"vllm.{__name__}")


@dataclass
class _Listener:
    """A request whose scores go ``to`` a front end.

    ``first`` is the position of the prompt's last token. Of a client that asked for scores, those
    of positions from ``next`` on were not sent yet.
    """

    to: str
    first: int
    live: bool
    next: int


@dataclass(frozen=True)
class Due:
    """Some positions of a request: ``count`` from ``first`` on go ``to`` its front end."""

    to: str
    request: str
    first: int
    count: int


class Ended(NamedTuple):
    """The columns of a whole answer, from position ``first`` on."""

    to: str
    request: str
    first: int
    columns: Columns


class StepScores(NamedTuple):
    """The columns that a step makes due.

    Attributes:
        columns: of the positions of ``due``, one after the other; None if nothing is due.
        due: which positions the step computed of requests that asked.
        ended: the answers that have ended.
    """

    columns: Columns | None
    due: Sequence[Due]
    ended: Sequence[Ended]

    def __bool__(self) -> bool:
        return bool(self.due or self.ended)

    def messages(self, part: int, parts: int) -> Iterator[tuple[str, Message]]:
        """What to send, and to whom. It may wait for the device.

        Args:
            part: number of this pipeline stage among those that probes read.
            parts: how many there are.
        """
        if self.columns is not None:
            digest, values, at = self.columns.served.digest, self.columns.values, 0
            blocks = defaultdict(list)
            for one in self.due:
                block = Block(one.request, one.first, values[at : at + one.count])
                blocks[one.to].append(block)
                at += one.count
            for to, found in blocks.items():
                yield to, Message(digest, part, parts, ended=False, blocks=found)
        for to, request, first, columns in self.ended:
            whole = Block(request, first, columns.values)
            yield to, Message(columns.served.digest, part, parts, ended=True, blocks=[whole])


class Listeners:
    """Which requests have front ends that want their scores, and which of these are due."""

    def __init__(self) -> None:
        self._listeners: dict[str, _Listener] = {}
        self._due: list[Due] = []
        self._ended: list[Ended] = []

    def begin(self, request: str, to: str, first: int, *, live: bool) -> None:
        """Take a request; ``live`` if its client wants the scores of each step."""
        self._listeners[request] = _Listener(to, first, live, first)

    def advance(self, request: str, computed: int, then: int) -> None:
        """Note that a step computes a request's positions from ``computed`` to ``then``.

        What is computed again is sent again. A prompt's last position may come from the cache.
        """
        one = self._listeners.get(request)
        if one is None or not one.live or then <= one.first:
            return
        start = max(min(one.next, computed), one.first)
        self._due.append(Due(one.to, request, start, then - start))
        one.next = then

    def end(self, request: str, columns: Columns | None) -> None:
        """Note that a request has ended, with the columns of its whole answer, if there is one."""
        one = self._listeners.pop(request, None)
        if one is not None and columns is not None:
            self._ended.append(Ended(one.to, request, one.first, columns))

    def take(self, read: Callable[[Sequence[Due]], Columns]) -> StepScores:
        """What has become due since the last call. ``read`` gives the columns of positions."""
        due, ended, self._due, self._ended = self._due, self._ended, [], []
        return StepScores(read(due) if due else None, due, ended)


class ScoreSender:
    """Sends the columns of one pipeline stage.

    Args:
        outbox: the way to the front ends.
        part: number of this stage among those that probes read.
        parts: how many there are.
    """

    def __init__(self, outbox: ScoreOutbox, part: int = 0, parts: int = 1) -> None:
        self._outbox = outbox
        self._part = part
        self._parts = parts
        self._thread = ThreadPoolExecutor(1, "activation-scores")

    def before(self, output: Any, scores: StepScores) -> Any:
        """The output of a step, which its scores precede."""
        if isinstance(output, AsyncModelRunnerOutput) and scores:
            return ScoredOutput(output, self, scores)
        self.send(scores)
        return output

    def send_later(self, scores: StepScores) -> None:
        """Send without waiting for the device: an earlier pipeline stage has no output to precede.

        The front end waits for the scores of all stages.
        """
        if scores:
            self._thread.submit(self.send, scores)

    def send(self, scores: StepScores) -> None:
        """Send what is due; it may wait for the device. What cannot be sent is lost, and logged."""
        try:
            for to, message in scores.messages(self._part, self._parts):
                self._outbox.send(to, message)
        except zmq.ZMQError as error:
            logger.error("scores cannot be sent: %s", error)  # noqa: TRY400 - no bug of ours

    def close(self) -> None:
        """Send what is queued."""
        self._thread.shutdown()
        self._outbox.close()


class ScoredOutput(AsyncModelRunnerOutput):
    """The output of a step that may still run. When it is asked for, the scores go first.

    Args:
        output: vLLM's own.
        sender: sends the scores.
        scores: those of the step.
    """

    def __init__(
        self, output: AsyncModelRunnerOutput, sender: ScoreSender, scores: StepScores
    ) -> None:
        self._output = output
        self._sender = sender
        self._scores = scores

    def get_output(self) -> ModelRunnerOutput:
        output = self._output.get_output()
        self._sender.send(self._scores)
        return output
