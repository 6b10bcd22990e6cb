"""The load: which prompts, how many at a time, and the process that sends them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.errors import ActivationLoggingError
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

SEED = 20_260_101
TIMEOUT_S = 600.0

# Words that are one token each in most vocabularies, so that lengths come out as asked.
_WORDS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government
number night point home water room mother area money story fact month lot right study book
eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea body information back
parent face others level office door health person art war history party result change
morning reason research girl guy moment air teacher force education
""".split()  # noqa: SIM905 - a list of a hundred literals reads worse


class BenchFailed(ActivationLoggingError):
    """A measurement could not be made; says which server, and why."""


@dataclass(frozen=True)
class Load:
    """One load: every request is as long as the others, and no two prompts are the same.

    ``shared_prefix`` words at the start of every prompt are common to all, as a system
    prompt's would be; ``prompt_words`` follow that are the request's own.
    """

    concurrency: int
    requests: int
    prompt_words: int = 64
    answer_tokens: int = 64
    shared_prefix: int = 0

    def prompts(self, series: str) -> list[str]:
        """The prompts of one series of measurements; each series has its own."""
        common = _words("common", self.shared_prefix)
        return [
            " ".join(common + _words(f"{series} {self.concurrency} {index}", self.prompt_words))
            for index in range(self.requests)
        ]

    def body(self, model: str) -> dict[str, Any]:
        """What every request has in common, as for ``/v1/completions``."""
        return {
            "model": model,
            "max_tokens": self.answer_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "seed": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def _words(seed: str, count: int) -> list[str]:
    return random.Random(f"{SEED} {seed}").choices(_WORDS, k=count)  # noqa: S311


def requests_for(concurrency: int) -> int:
    """How many requests make a measurement of some ten seconds.

    Shared machines drift within a minute by more than what is to be measured: many short turns
    say more than a few long ones.
    """
    return min(4 * concurrency, 2 * concurrency + 32)


@dataclass(frozen=True)
class Timing:
    """What the client saw of one measurement.

    Times are seconds: ``ttft`` to the first token, one per request; ``gaps`` between tokens,
    those of all requests.
    """

    seconds: float
    tokens: int
    prompt_tokens: int
    ttft: npt.NDArray[np.float64]
    gaps: npt.NDArray[np.float64]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Timing:
        """From what the client process wrote."""
        arrivals = answer["arrivals"]
        return cls(
            seconds=answer["seconds"],
            tokens=answer["tokens"],
            prompt_tokens=answer["prompt_tokens"],
            ttft=np.array([times[0] for times in arrivals]),
            gaps=np.concatenate([np.diff(times) for times in arrivals]),
        )

    @property
    def throughput(self) -> float:
        """Answer tokens per second, all requests together."""
        return self.tokens / self.seconds


class Client:
    """The client process; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "activation_logging.bench.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(
        self,
        load: Load,
        prompts: Sequence[str],
        *,
        base_url: str,
        body: Mapping[str, Any],
        what: str = "",
        progress: Progress = silent,
    ) -> Timing:
        """Put a load on a server and wait for the end of it.

        ``progress`` is told ``what`` is being measured, after each answer.

        Raises:
            BenchFailed: a request failed, or the client process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "url": f"{base_url}/v1/completions",
            "body": dict(body),
            "prompts": list(prompts),
            "concurrency": load.concurrency,
            "timeout_s": TIMEOUT_S,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise BenchFailed(f"{base_url} failed under the load: {answer['error']}")
            if "done" not in answer:
                return Timing.of(answer)
            progress(what, answer["done"], load.requests)
        raise BenchFailed("the client process died; its last output is above")

    @property
    def pid(self) -> int:
        """Id of the client process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
