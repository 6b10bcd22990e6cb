"""The engines of a run: who answers what, and what becomes of it when one dies."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from activation_logging.errors import ClusterError
from activation_logging.ray.cluster import living, reason_of
from activation_logging.ray.process import EngineProcess, Failed, Started, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from activation_logging.generate.prompts import PromptLine
    from activation_logging.ray.process import Job

logger = logging.getLogger(f"vllm.{__name__}")

_WAIT_S = 1.0
_CLOSE_S = 60.0
_LEAST = 8
"""Lines that are handed out at once, at least."""
DEATHS = 3
"""A line that has been in so many engines when they died is not asked again in this run."""


@dataclass
class _Member:
    """One engine. ``asked`` are the lines that it has, ``done`` those that it has answered."""

    actor: Any
    name: str = ""
    wants: int = 0
    asked: dict[str, PromptLine] = field(default_factory=dict)
    done: dict[str, PromptLine] = field(default_factory=dict)


class Crew:
    """Engines on a cluster, and the lines that they share.

    An engine that dies after it has answered something is replaced, as far as the cluster has room.
    The lines that it had, and those of its answers that no store has, go to the others.

    Args:
        job: what each engine is started with.
        count: how many engines there are.
        need: the resources of one.
        seen: ids of the lines that the stores have whole, as they are now.
    """

    def __init__(
        self, job: Job, count: int, need: Mapping[str, float], seen: Callable[[], set[str]]
    ) -> None:
        self._job = job
        self._count = count
        self._need = need
        self._seen = seen
        self._calls: dict[Any, _Member] = {}
        self._idle: list[_Member] = []
        self._todo: deque[PromptLine] = deque()
        self._deaths: Counter[str] = Counter()
        self.failures: list[str] = []
        self.started = 0.0
        for _ in range(count):
            self._start()

    def answer(self, lines: Iterable[PromptLine], on_turn: Callable[[Turn], None]) -> None:
        """Have all lines answered.

        Args:
            lines: what to ask.
            on_turn: told of what an engine has answered or refused. An answer that was lost with
                its engine is told of again.

        Raises:
            ClusterError: no engine is left; the text says why.
        """
        self._todo.extend(lines)
        while self._todo or any(member.asked for member in self._calls.values()):
            if not self._calls:
                raise ClusterError("no engine is left: " + "; ".join(dict.fromkeys(self.failures)))
            ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=_WAIT_S)
            for call in ended:
                self._hear(call, on_turn)
            if not ended:
                self._leave_impossible()

    def ready(self) -> int:
        """How many engines have loaded the model."""
        return sum(bool(member.name) for member in self._members())

    def close(self) -> None:
        """End every engine; what they have answered is written before."""
        ready = [member.actor.close.remote() for member in self._members() if member.name]
        if ready:
            ray.wait(ready, num_returns=len(ready), timeout=_CLOSE_S)
        for member in self._members():
            ray.kill(member.actor)

    def _members(self) -> list[_Member]:
        return [*self._calls.values(), *self._idle]

    def _start(self) -> None:
        actor = ray.remote(EngineProcess).options(
            num_cpus=self._need["CPU"],
            num_gpus=self._need.get("GPU", 0),
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": dict(self._job.variables.shown)},
        )
        member = _Member(actor.remote(self._job))
        self._calls[member.actor.start.remote()] = member

    def _hear(self, call: Any, on_turn: Callable[[Turn], None]) -> None:
        """Take what an engine has to say, and give it more to do."""
        member = self._calls.pop(call)
        try:
            said = ray.get(call)
        except RayError as error:
            said = Failed(member.name or "an engine", reason_of(error))
        if isinstance(said, Failed):
            self._lose(member, said)
            return
        if isinstance(said, Started):
            self.started = self.started or time.monotonic()
            member.name = f"{said.host}:{said.store}"
            member.wants = said.capacity
        else:
            self._note(member, said)
            on_turn(said)
        self._go_on(member)

    def _note(self, member: _Member, turn: Turn) -> None:
        for line in turn.answered:
            member.done[line] = member.asked.pop(line)
        for number in turn.refused:
            refused = next(line for line in member.asked.values() if line.number == number)
            del member.asked[refused.id]
        member.wants = turn.wants

    def _go_on(self, member: _Member) -> None:
        """Give an engine its share of what is left; towards the end, less and less."""
        share = max(_LEAST, len(self._todo) // (2 * self._count))
        lines = [self._todo.popleft() for _ in range(min(share, member.wants, len(self._todo)))]
        member.asked.update({line.id: line for line in lines})
        if member.asked:
            self._calls[member.actor.work.remote(lines)] = member
        else:
            self._idle.append(member)

    def _lose(self, member: _Member, failed: Failed) -> None:
        """Hand on what an engine had, and replace it."""
        ray.kill(member.actor)
        failure = f"{member.name or failed.host}: {failed.reason}"
        self.failures.append(failure)
        logger.warning("an engine has died: %s", failure)
        if member.asked or member.done:
            self._ask_again(member)
        if member.done:
            self._replace()
        for idle in self._idle[:]:
            if self._todo:
                self._idle.remove(idle)
                self._go_on(idle)

    def _ask_again(self, member: _Member) -> None:
        self._deaths.update(member.asked.keys())
        kept = self._seen()
        for name, line in {**member.done, **member.asked}.items():
            if name in kept:
                continue
            if self._deaths[name] < DEATHS:
                self._todo.append(line)
            else:
                self.failures.append(f"line {line.number}: {DEATHS} engines died with it")

    def _replace(self) -> None:
        if any(node.holds(self._need) for node in living()):
            self._start()

    def _leave_impossible(self) -> None:
        """Give up engines that wait for a node that is not there any more."""
        if any(node.holds(self._need) for node in living()):
            return
        for call, member in list(self._calls.items()):
            if not member.name:
                del self._calls[call]
                self._lose(member, Failed("an engine", "no node is left that has room for it"))
