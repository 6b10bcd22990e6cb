"""The client: sends streaming completions and notes when each token came.

It is a program of its own (``python -m activation_logging.bench.client``): the load of the client
does not show in the times of a server. It reads one job per line of standard input and answers with
one line of JSON; see :mod:`activation_logging.bench.load` for both.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = b'"choices":[{'
_PREFIX = b"data: "


class Answer(NamedTuple):
    """When the pieces of one answer came, seconds after it was asked for."""

    arrivals: list[float]
    tokens: int
    prompt_tokens: int


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Answer:
    """Send one request and follow its stream to the end.

    Raises:
        RuntimeError: the server refused it, or broke off.
    """
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    started = time.perf_counter()
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(_PREFIX):
                continue
            if _TOKEN in line:
                arrivals.append(time.perf_counter() - started)
            elif b'"usage":{' in line:
                usage = json.loads(line[len(_PREFIX) :])["usage"]
    if not arrivals or not usage:
        raise RuntimeError("the server broke off its answer")
    return Answer(arrivals, usage["completion_tokens"], usage["prompt_tokens"])


async def run(job: dict[str, Any], report: Callable[[int], None]) -> dict[str, Any]:
    """Ask every prompt of a job, ``concurrency`` at a time, and note the times."""
    prompts = iter(job["prompts"])
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=job["timeout_s"])

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        for prompt in prompts:
            answers.append(await ask(session, job["url"], {**job["body"], "prompt": prompt}))
            report(len(answers))

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        await asyncio.gather(*(one_after_the_other(session) for _ in range(job["concurrency"])))
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "tokens": sum(answer.tokens for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "arrivals": [answer.arrivals for answer in answers],
    }


def main() -> None:
    """Answer jobs until standard input ends."""

    def say(value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        try:
            return asyncio.run(run(job, lambda count: say({"done": count})))
        except (aiohttp.ClientError, RuntimeError, TimeoutError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    try:
        for line in sys.stdin:
            say(answer(json.loads(line)))
    except BrokenPipeError:
        # The parent process has ended: there is no one to answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
