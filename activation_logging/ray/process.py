"""An engine in a process of its own on some node: what it is told, and what it answers."""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.errors import EngineGone, SettingsError
from activation_logging.generate.engine import Engine
from activation_logging.ray.cluster import brief_reason
from activation_logging.ray.stores import Claim, claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from activation_logging.generate.engine import Answer
    from activation_logging.generate.prompts import PromptLine
    from activation_logging.ray.variables import Variables

_TURN_S = 1.0
_TAIL_BYTES = 1 << 17
_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception)\b: .+|.*\berror: .+)")
_NOT_WHY = ("Engine core initialization failed", "EngineDeadError", "Worker failed with error")
"""What vLLM says in one process of an error in another."""


@dataclass(frozen=True)
class Job:
    """What every engine of a run is started with."""

    model: str
    sampling: Mapping[str, object]
    run: str
    folder: str
    vllm_args: tuple[str, ...]
    variables: Variables


@dataclass(frozen=True)
class Started:
    """An engine is ready: the host, the store that it writes, and how many requests it takes."""

    host: str
    store: str
    capacity: int


@dataclass(frozen=True)
class Turn:
    """What an engine has done since it was last asked. ``wants`` is how many lines it has room for.

    ``refused`` are numbers of lines with the reasons.
    """

    answered: list[str] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    wants: int = 0


@dataclass(frozen=True)
class Failed:
    """An engine has died, or did not start; why, and on which host."""

    host: str
    reason: str


class EngineProcess:
    """The class of the actor. Its methods return a :class:`Failed` instead of raising.

    An exception would take many lines, and vLLM's own say only that another process has failed.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: deque[PromptLine] = deque()
        self._claim: Claim | None = None
        self._engine: Engine | None = None

    def start(self) -> Started | Failed:
        """Load the model."""
        try:
            return self._start()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - handed on in a sentence
            return self._failed(error)

    def work(self, lines: Sequence[PromptLine]) -> Turn | Failed:
        """Take more lines, and answer for a second, or until there is nothing left to answer.

        When there is nothing left, every row is in the store.
        """
        try:
            return self._work(lines)
        except Exception as error:  # noqa: BLE001 - handed on in a sentence
            return self._failed(error)

    def answer(self, lines: Sequence[PromptLine]) -> tuple[list[Answer], dict[int, str]] | Failed:
        """Answer all lines; with the reasons, by number, why some were refused."""
        try:
            return self._answer(lines, until=math.inf)
        except Exception as error:  # noqa: BLE001 - handed on in a sentence
            return self._failed(error)

    def close(self) -> None:
        """End vLLM's processes, which write what they have before, and leave the store."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._waiting.clear()
        if self._claim is not None:
            self._claim.file.close()
            self._claim = None

    def _start(self) -> Started:
        variables = self._job.variables
        host = socket.gethostname()
        lost = variables.lost(os.environ)
        if lost is not None:
            raise SettingsError(
                f"{lost} did not reach the engine on {host}, which would log something else than "
                "was asked for; remove it from the cluster's own runtime environment"
            )
        os.environ.update(variables.secret)
        self._claim = claim(Path(self._job.folder))
        os.environ["ACTIVATION_LMDB_PATH"] = str(self._claim.path)
        job = self._job
        self._engine = Engine(job.model, job.sampling, job.run, job.vllm_args)
        return Started(host, str(self._claim.path), self._engine.capacity)

    def _work(self, lines: Iterable[PromptLine]) -> Turn:
        answers, refused = self._answer(lines, until=time.monotonic() + _TURN_S)
        assert self._engine is not None
        taken = self._engine.in_flight + len(self._waiting)
        return Turn(
            answered=[answer.line for answer in answers],
            refused=refused,
            tokens=sum(answer.tokens for answer in answers),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            wants=2 * self._engine.capacity - taken,
        )

    def _answer(
        self, lines: Iterable[PromptLine], *, until: float
    ) -> tuple[list[Answer], dict[int, str]]:
        assert self._engine is not None
        self._waiting.extend(lines)
        found: list[Answer] = []
        refused: dict[int, str] = {}
        while True:
            refused.update(self._engine.fill(self._take()))
            if not self._engine.in_flight or time.monotonic() > until:
                return found, refused
            found += self._engine.step()

    def _take(self) -> Iterator[PromptLine]:
        while self._waiting:
            yield self._waiting.popleft()

    def _failed(self, error: BaseException) -> Failed:
        reason = brief_reason(error)
        says_nothing = isinstance(error, (SystemExit, EngineGone))
        if says_nothing or any(words in reason for words in _NOT_WHY):
            reason = _last_error() or reason
        return Failed(socket.gethostname(), reason)


def _last_error() -> str | None:
    """The last error in what this process and those that it started have printed."""
    found = None
    for number in (1, 2):
        try:
            with Path(f"/proc/self/fd/{number}").resolve().open("rb") as file:
                file.seek(-min(_TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
                text = file.read().decode("utf-8", "replace")
        except OSError:  # a terminal or a pipe
            continue
        for line in text.splitlines():
            match = _ERROR.search(line)
            if match and not any(words in line for words in _NOT_WHY):
                found = match[1]
    return found
