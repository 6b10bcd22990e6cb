"""Clients that leave while their request is preempted, and a server that is stopped meanwhile.

vLLM takes the blocks of a request away when its cache is full, and a request may end before it gets
new ones. Its rows, and those of whoever got the blocks, must still be their tokens'.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from activation_logging import Entry, open_store
from activation_logging.process import STOP_S
from activation_logging.store.repair import find_unmatched
from tests.fixtures.server import RunningServer, as_on_gpu
from tests.server.reference import TOLERANCE, Fidelity
from tests.server.test_fidelity import story

logger = logging.getLogger(__name__)

WAVES = 4
PATIENCE = 8
"""A stream stands still that gets nothing while another gets so many pieces."""
WAITING = "vllm:num_requests_waiting"
CATCH_UP_S = 0.1
"""In this time the client reads what has come for the others: on a busy machine it lags behind."""


@dataclass(frozen=True)
class Case:
    """A server whose cache is too small for its streams."""

    name: str
    model: str
    streams: int
    tokens: int
    words: int
    flags: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


CACHE = ("--block-size", "32", "--num-gpu-blocks-override")
CASES = (
    # The small model is too quick here: who is preempted goes on before a client has noticed.
    Case("preempted, client left", "smol", 14, 120, 20, (*CACHE, "40", "--max-model-len", "512")),
    Case(
        "V2, preempted, client left",
        "tiny",
        8,
        70,
        8,
        (*CACHE, "16", "--max-model-len", "256", "--max-num-batched-tokens", "64"),
        as_on_gpu("V2"),
    ),
)


class Wave:
    """Streams that begin together. Those that stand still are closed, or else waited for."""

    def __init__(self, server: RunningServer, case: Case, number: int, *, closing: bool) -> None:
        self._server = server
        self._case = case
        self._number = number
        self._closing = closing
        self._pieces: Counter[int] = Counter()
        """How many pieces each stream has got that has begun and not ended."""
        self._progress = asyncio.Event()
        self.stalled = asyncio.Event()
        self.closed: set[int] = set()
        self._begun: set[int] = set()
        self.preempted = 0
        """Requests that had begun, and waited when a stream stood still."""

    async def run(self) -> None:
        """Return when every stream has ended, has been closed, or has lost its server."""
        async with httpx.AsyncClient(timeout=300) as client:
            streams = range(self._case.streams)
            tasks = [asyncio.create_task(self._read(client, stream)) for stream in streams]
            watching = asyncio.create_task(self._watch(tasks))
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            watching.cancel()
        lost = (asyncio.CancelledError, httpx.TransportError)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, lost):
                raise error

    async def _read(self, client: httpx.AsyncClient, stream: int) -> None:
        seed = 100 * self._number + stream
        body = {"model": self._server.model, "prompt": story(self._case.words + stream, seed)}
        body |= {"max_tokens": self._case.tokens, "ignore_eos": True, "stream": True}
        body |= {"temperature": 0}
        url = f"{self._server.base_url}/completions"
        async with client.stream("POST", url, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            # Not line by line: the client has to be quicker than a small model.
            async for chunk in answer.aiter_raw():
                self._begun.add(stream)
                self._pieces[stream] += chunk.count(b"data: {")
                self._progress.set()
        del self._pieces[stream]

    async def _watch(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Round by round: what has begun, and gets nothing until another has got enough."""
        while True:
            before = self._pieces.copy()
            while max((self._pieces - before).values(), default=0) < PATIENCE:
                self._progress.clear()
                await self._progress.wait()
            await asyncio.sleep(CATCH_UP_S)
            still = [stream for stream in before if self._pieces[stream] == before[stream]]
            if not still:
                continue
            self.stalled.set()
            asked = asyncio.create_task(asyncio.to_thread(self._server.metric, WAITING))
            # At once: while the server is asked they may go on, or end.
            for stream in still if self._closing else ():
                self.closed.add(stream)
                del self._pieces[stream]
                tasks[stream].cancel()
            not_begun = self._case.streams - len(self._begun)
            self.preempted = max(self.preempted, int(await asked) - not_begun)


async def _waves(server: RunningServer, case: Case) -> None:
    """Some waves with clients that leave, and one that the server's end interrupts."""
    closed = preempted = 0
    for number in range(WAVES):
        wave = Wave(server, case, number, closing=True)
        await wave.run()
        closed += len(wave.closed)
        preempted += wave.preempted
    # vLLM's own counter knows of a preemption only when the request goes on, and most are closed.
    preempted += int(server.metric("vllm:num_preemptions_total"))
    logger.info("%s: %d preempted, %d closed standing still", case.name, preempted, closed)
    assert closed > 0, "no stream was closed while it stood still"
    assert preempted > 0, "nothing was preempted"
    last = Wave(server, case, WAVES, closing=False)
    running = asyncio.create_task(last.run())
    await asyncio.wait_for(last.stalled.wait(), 120)
    server.process.send_signal(signal.SIGTERM)
    await running


@pytest.mark.core
@pytest.mark.parametrize("case", CASES, ids=["V1", "V2"])
def test_clients_leave_while_preempted(
    case: Case, serve: Callable[..., Any], check: Fidelity
) -> None:
    with serve(*case.flags, env=case.env, model=case.model) as server:
        assert server.uses_v2_runner == ("V2" in case.name)
        asyncio.run(_waves(server, case))
        server.process.wait(STOP_S)

    store = open_store(server.lmdb_path)
    assert list(find_unmatched(store)) == []
    entries = list(store.entries())
    assert len(entries) == (WAVES + 1) * case.streams
    ends = Counter((entry.finish_reason, entry.status) for entry in entries)
    logger.info("%s: %s", case.name, dict(ends))
    assert ends.keys() <= {("length", "complete"), ("abort", "complete"), ("abort", "dropped")}
    wrong = list(_wrong(case, entries, check))
    reasons = dict(Counter(entry.finish_reason for entry, _ in wrong))
    lines = [f"{entry}: {error:.1e}" for entry, error in wrong]
    assert not wrong, f"{len(wrong)} of {len(entries)}, by finish_reason {reasons}: {lines}"


def _wrong(case: Case, entries: Iterable[Entry], check: Fidelity) -> Iterator[tuple[Entry, float]]:
    """Entries with a row that is not its token's, and by how much it is wrong."""
    for entry in entries:
        if entry.status == "complete" and len(entry.positions):
            error = max(check.note(case.name, entry).values())
            if error > TOLERANCE:
                yield entry, error
