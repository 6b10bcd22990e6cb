"""The turns: all servers run, one at a time is under load, and the order changes every round."""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from activation_logging.bench.load import Client, Load, requests_for
from activation_logging.bench.machine import cpu_times, describe, wait_until_idle
from activation_logging.bench.ratios import Comparison, Measurement, Pair
from activation_logging.bench.servers import SERVED_NAME, Contestant, Server, ServerOptions
from activation_logging.errors import SettingsError
from activation_logging.progress import Progress, silent
from activation_logging.store.queued import WriterStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ATTEMPTS = 4
COUNTERS = tuple(each.name for each in fields(WriterStats))


OnRound = Callable[[Load, "Sequence[Pair]", bool], None]
"""Called when every server has had a load; False where the round will be measured again."""

Baseline = Literal["plain", "off", "logging", "unlogged"]

_WORDS = {
    "plain": "vLLM without the plugin",
    "off": "ACTIVATION_LOGGING=0",
    "logging": "logging the last layer",
    "unlogged": "the same server, requests with activation_logging=off",
}
_UNLOGGED = {"vllm_xargs": {"activation_logging": "off"}}
ASKING = {"vllm_xargs": {"activation_scores": "all"}}


def in_words(server: str) -> str:
    """What the name of a baseline or candidate means."""
    return _WORDS.get(server, server.replace("logging:", "logging "))


class Side(NamedTuple):
    """One side of a comparison: a server, and what its requests ask for."""

    name: str
    server: Server
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to compare, and how.

    Args:
        baseline: the server to compare with; ``unlogged`` are requests to the candidate itself
            that ask not to be logged.
        candidates: the servers in question, all of them beside the one baseline.
        concurrencies: requests in flight, one comparison for each.
        rounds: measurements of each server, per concurrency and start.
        restarts: how often all servers are started afresh, each time in the other order.
        disturbance: processor cores that others may keep busy; a round that saw more is
            measured again, a few times, and the quietest is kept. None: keep every round.
        together: start all servers at once, where a machine has cores enough.
    """

    options: ServerOptions
    baseline: Baseline = "plain"
    candidates: tuple[Contestant, ...] = (Contestant("logging"),)
    concurrencies: tuple[int, ...] = (1, 8, 32, 64)
    rounds: int = 4
    restarts: int = 2
    answer_tokens: int = 64
    prompt_words: int = 64
    shared_prefix: int = 0
    requests: int | None = None
    disturbance: float | None = None
    together: bool = False

    def __post_init__(self) -> None:
        positive = {
            "rounds": self.rounds,
            "restarts": self.restarts,
            "tokens": self.answer_tokens,
            "prompt words": self.prompt_words,
            "requests": 1 if self.requests is None else self.requests,
            **{f"concurrency {number}": number for number in self.concurrencies},
        }
        for name, number in positive.items():
            if number < 1:
                raise SettingsError(f"{name}: {number} is not a positive number")
        if not self.candidates:
            raise SettingsError("candidate: name at least one")
        if self.baseline == "unlogged" and [c.variant for c in self.candidates] != ["logging"]:
            raise SettingsError("baseline unlogged: goes with one candidate alone, which logs")
        if not self.concurrencies:
            raise SettingsError("concurrency: give at least one number")

    def loads(self) -> list[Load]:
        """One load per concurrency."""
        return [
            Load(
                concurrency=number,
                requests=self.requests or requests_for(number),
                prompt_words=self.prompt_words,
                answer_tokens=self.answer_tokens,
                shared_prefix=self.shared_prefix,
            )
            for number in self.concurrencies
        ]


@dataclass
class Storage:
    """What the servers of one candidate stored over the whole run, and their counters by role."""

    tokens: int = 0
    disk_bytes: int = 0
    row_bytes: int = 0
    counters: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def per_token(self) -> float:
        """Bytes on disk per prompt or answer token."""
        return self.disk_bytes / self.tokens

    @property
    def rows_per_token(self) -> float:
        """Bytes of activations per prompt or answer token."""
        return self.row_bytes / self.tokens

    def add(self, server: Server, tokens: int) -> None:
        """Count what one server has stored of so many tokens."""
        self.tokens += tokens
        self.disk_bytes += server.stored_bytes()
        for role, record in server.counters().items():
            total = self.counters.setdefault(role, dict.fromkeys(COUNTERS, 0))
            for name in COUNTERS:
                joined = max if name == "queue_bytes_max" else int.__add__
                total[name] = joined(total[name], int(record[name]))
            self.row_bytes += int(record["bytes"])


@dataclass(frozen=True)
class Results:
    """All that a run found, with what it takes to repeat it."""

    plan: Plan
    comparisons: tuple[Comparison, ...]
    """One for each candidate and load, candidate by candidate."""
    storage: Mapping[str, Storage]
    """What each logging candidate has stored, by its name."""
    started: str

    @cached_property
    def machine(self) -> dict[str, Any]:
        """What it was measured on. A GPU's driver may take seconds to answer."""
        return describe()

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        storage = {
            name: {**asdict(found), "per_token": found.per_token}
            for name, found in self.storage.items()
        }
        return {
            "started": self.started,
            "command": sys.argv[1:],
            "plan": asdict(self.plan),
            "machine": self.machine,
            "comparisons": [found.to_json() for found in self.comparisons],
            "storage": storage,
        }


def compare(
    plan: Plan,
    folder: Path | None = None,
    *,
    progress: Progress = silent,
    on_round: OnRound = lambda *_: None,
) -> Results:
    """Start all servers, take turns, and stop them.

    Args:
        plan: what to do.
        folder: for logs and the stores; a temporary one is used, and removed, by default.
        progress: told which server starts, and how many requests of a load have an answer.
        on_round: given the measurements of each round.

    Raises:
        ServerFailed: a server did not start.
        BenchFailed: a request failed under the load.
    """
    started = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    loads = plan.loads()
    rounds: list[list[Sequence[Pair]]] = [[] for _ in loads]
    storage: dict[str, Storage] = {}
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        client = stack.enter_context(Client())
        for number in range(plan.restarts):
            with _all_sides(plan, number, folder / str(number), progress) as sides:
                turns = _Turns(sides, client, plan, number, progress=progress, on_round=on_round)
                for load, found in zip(loads, rounds, strict=True):
                    found.extend(turns.rounds(load))
                for side in sides[1:]:
                    if side.server.kind.variant == "logging":
                        storage.setdefault(side.name, Storage()).add(side.server, turns.tokens)
    comparisons = tuple(
        Comparison(candidate.name, load, tuple(pairs[place] for pairs in found))
        for place, candidate in enumerate(plan.candidates)
        for load, found in zip(loads, rounds, strict=True)
    )
    return Results(plan, comparisons, storage, started)


@contextmanager
def _all_sides(
    plan: Plan, number: int, folder: Path, progress: Progress
) -> Iterator[tuple[Side, ...]]:
    """Baseline and candidates; one after the other, they start the other way round every time."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [*plan.candidates]
    if plan.baseline != "unlogged":
        kinds.insert(0, Contestant(plan.baseline))
    servers = [
        Server(kind, plan.options, folder, place=place, servers=len(kinds))
        for place, kind in enumerate(kinds)
    ]
    with ExitStack() as stack:
        if plan.together:
            progress(f"starting {len(servers)} servers", 0, 0)
            with ThreadPoolExecutor(len(servers)) as pool:
                starts = [pool.submit(server.__enter__) for server in servers]
            for server, start in zip(servers, starts, strict=True):
                if start.exception() is None:
                    stack.push(server)
            for start in starts:
                start.result()
        else:
            for server in reversed(servers) if number % 2 else servers:
                progress(f"starting a server ({in_words(server.kind.name)})", 0, 0)
                stack.enter_context(server)
        sides = [
            Side(server.kind.name, server, ASKING if server.kind.asks else {}) for server in servers
        ]
        if plan.baseline == "unlogged":
            sides.insert(0, Side(plan.baseline, servers[0], _UNLOGGED))
        yield tuple(sides)


class _Turns:
    def __init__(
        self,
        sides: Sequence[Side],
        client: Client,
        plan: Plan,
        restart: int,
        *,
        progress: Progress,
        on_round: OnRound,
    ) -> None:
        self._sides = sides
        self._client = client
        self._plan = plan
        self._restart = restart
        self._progress = progress
        self._on_round = on_round
        self._pids = [*{side.server.pid for side in sides}, client.pid]
        self.tokens = 0
        """Prompt and answer tokens that each candidate has seen."""

    def rounds(self, load: Load) -> list[Sequence[Pair]]:
        """All rounds at one concurrency, after a warm-up; a pair for each candidate."""
        self._round(load, turn=0, attempt=0)
        return [self._quiet_round(load, turn) for turn in range(1, self._plan.rounds + 1)]

    def _quiet_round(self, load: Load, turn: int) -> Sequence[Pair]:
        """A round that others did not disturb much, or the least disturbed of a few."""
        limit = self._plan.disturbance
        tried: list[Sequence[Pair]] = []
        for attempt in range(_ATTEMPTS if limit is not None else 1):
            tried.append(self._round(load, turn, attempt))
            quiet = limit is None or _others(tried[-1]) <= limit
            self._on_round(load, tried[-1], quiet or attempt + 1 == _ATTEMPTS)
            if quiet:
                break
        return min(tried, key=_others)

    def _round(self, load: Load, turn: int, attempt: int) -> Sequence[Pair]:
        series = f"{self._restart}.{turn}.{attempt}"
        # A B C, then C B A, then B C A, ...: whatever drifts meanwhile hits all alike.
        order = list(range(len(self._sides)))
        shift = (turn + attempt) // 2 % len(order)
        order = order[shift:] + order[:shift]
        if (turn + attempt) % 2:
            order.reverse()
        found = {index: self._measure(self._sides[index], load, series, turn) for index in order}
        # All candidates answer the same prompts.
        self.tokens += found[1].tokens + found[1].prompt_tokens
        return [Pair(found[0], found[index]) for index in range(1, len(order))]

    def _measure(self, side: Side, load: Load, series: str, turn: int) -> Measurement:
        turns = f"round {turn}/{self._plan.rounds}" if turn else "warm-up"
        what = f"{load.concurrency} at a time, {turns}: {in_words(side.name)}"
        self._progress(what, 0, load.requests)
        if self._plan.baseline == "unlogged":
            # The same prompts again would be served from its prefix cache.
            series = f"{series}.{side.name}"
        pid = side.server.pid
        wait_until_idle(self._pids)
        before, all_before = cpu_times([pid]), cpu_times(self._pids)
        timing = self._client.send(
            load,
            load.prompts(series),
            base_url=side.server.base_url,
            body={**load.body(SERVED_NAME), **side.extra},
            what=what,
            progress=self._progress,
        )
        # What logging has put off is part of its cost.
        side.server.flush()
        after, all_after = cpu_times([pid]), cpu_times(self._pids)
        return Measurement.of(
            side.name,
            timing,
            cpu_s=after.ours - before.ours,
            others_s=all_after.others - all_before.others,
        )


def _others(pairs: Sequence[Pair]) -> float:
    """Processor cores that other processes kept busy, at the worst of a round."""
    return max(pair.others for pair in pairs)
