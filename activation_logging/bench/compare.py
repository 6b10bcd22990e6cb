"""The turns: both servers run, one at a time is under load, and the order alternates."""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from activation_logging.bench.figures import Comparison, Measurement, Pair
from activation_logging.bench.load import Client, Load, requests_for
from activation_logging.bench.machine import cpu_times, describe, wait_until_idle
from activation_logging.bench.servers import SERVED_NAME, Server, ServerOptions, Variant
from activation_logging.errors import SettingsError
from activation_logging.store.writer import WriterStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ATTEMPTS = 4
COUNTERS = tuple(each.name for each in fields(WriterStats))


class Watcher(Protocol):
    """Someone who is shown how far the measuring is."""

    def starting(self, server: str) -> None:
        """A server is being started."""

    def measuring(self, load: Load, turn: int, server: str) -> None:
        """A load begins; ``turn`` counts from 1, and 0 is the warm-up."""

    def answered(self, count: int) -> None:
        """So many requests of the current load have been answered."""

    def measured(self, load: Load, pair: Pair, kept: bool) -> None:
        """Both servers have had the load; ``kept`` is False where it will be done again."""


Baseline = Literal["plain", "off", "unlogged"]

_UNLOGGED = {"vllm_xargs": {"activation_logging": "off"}}


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
        candidate: the server in question.
        concurrencies: requests in flight, one comparison for each.
        rounds: pairs of measurements per comparison and start.
        restarts: how often both servers are started afresh, each time the other one first. Two
            servers of the very same kind differ by several percent, depending on where their
            memory happens to lie, and keep that difference for life.
        disturbance: processor cores that others may keep busy; a pair that saw more is
            measured again, a few times, and the quietest is kept. None: keep every pair.
    """

    options: ServerOptions
    baseline: Baseline = "plain"
    candidate: Variant = "logging"
    concurrencies: tuple[int, ...] = (1, 8, 32, 64)
    rounds: int = 4
    restarts: int = 2
    answer_tokens: int = 64
    prompt_words: int = 64
    shared_prefix: int = 0
    requests: int | None = None
    disturbance: float | None = None

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
        if self.baseline == "unlogged" and self.candidate != "logging":
            raise SettingsError("baseline unlogged: only a logging candidate can be asked not to")
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
    """What the logging servers stored over the whole run, and their counters by role."""

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
    storage: Storage | None
    started: str

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        storage = None
        if self.storage is not None:
            storage = {**asdict(self.storage), "per_token": self.storage.per_token}
        return {
            "started": self.started,
            "command": sys.argv[1:],
            "plan": asdict(self.plan),
            "machine": describe(),
            "comparisons": [found.to_json() for found in self.comparisons],
            "storage": storage,
        }


def compare(plan: Plan, watcher: Watcher, folder: Path | None = None) -> Results:
    """Start both servers, take turns, and stop them.

    Args:
        plan: what to do.
        watcher: told how far it is.
        folder: for logs and the store; a temporary one is used, and removed, by default.

    Raises:
        BenchFailed: a server did not start or failed under the load.
    """
    started = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    loads = plan.loads()
    pairs: list[list[Pair]] = [[] for _ in loads]
    storage = Storage()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        client = stack.enter_context(Client())
        for number in range(plan.restarts):
            with _both_sides(plan, number, folder / str(number), watcher) as sides:
                turns = _Turns(sides, client, watcher, plan, number)
                for load, found in zip(loads, pairs, strict=True):
                    found.extend(turns.pairs(load))
                if plan.candidate == "logging":
                    storage.add(sides[1].server, turns.tokens)
    comparisons = tuple(
        Comparison(load, tuple(found)) for load, found in zip(loads, pairs, strict=True)
    )
    return Results(plan, comparisons, storage if storage.tokens else None, started)


@contextmanager
def _both_sides(
    plan: Plan, number: int, folder: Path, watcher: Watcher
) -> Iterator[tuple[Side, Side]]:
    """Baseline and candidate, started one after the other, the other way round every time."""
    folder.mkdir(parents=True, exist_ok=True)
    candidate = Server(plan.candidate, plan.options, folder, name=f"candidate-{plan.candidate}")
    with ExitStack() as stack:
        if plan.baseline == "unlogged":
            watcher.starting(plan.candidate)
            stack.enter_context(candidate)
            yield Side(plan.baseline, candidate, _UNLOGGED), Side(plan.candidate, candidate, {})
            return
        baseline = Server(plan.baseline, plan.options, folder, name=f"baseline-{plan.baseline}")
        for server in (candidate, baseline) if number % 2 else (baseline, candidate):
            watcher.starting(server.variant)
            stack.enter_context(server)
        yield Side(plan.baseline, baseline, {}), Side(plan.candidate, candidate, {})


class _Turns:
    def __init__(
        self,
        sides: tuple[Side, Side],
        client: Client,
        watcher: Watcher,
        plan: Plan,
        restart: int,
    ) -> None:
        self._sides = sides
        self._client = client
        self._watcher = watcher
        self._plan = plan
        self._restart = restart
        self.tokens = 0
        """Prompt and answer tokens that the candidate has seen."""

    def pairs(self, load: Load) -> list[Pair]:
        """All rounds at one concurrency, after a warm-up."""
        self._pair(load, turn=0, attempt=0)
        return [self._quiet_pair(load, turn) for turn in range(1, self._plan.rounds + 1)]

    def _quiet_pair(self, load: Load, turn: int) -> Pair:
        """A pair that others did not disturb much, or the least disturbed of a few."""
        limit = self._plan.disturbance
        tried: list[Pair] = []
        for attempt in range(_ATTEMPTS if limit is not None else 1):
            pair = self._pair(load, turn, attempt)
            tried.append(pair)
            quiet = limit is None or pair.others <= limit
            self._watcher.measured(load, pair, kept=quiet or attempt + 1 == _ATTEMPTS)
            if quiet:
                break
        return min(tried, key=lambda pair: pair.others)

    def _pair(self, load: Load, turn: int, attempt: int) -> Pair:
        series = f"{self._restart}.{turn}.{attempt}"
        # A B, then B A: whatever drifts meanwhile hits both alike.
        order = (0, 1) if (turn + attempt) % 2 else (1, 0)
        found = {index: self._measure(self._sides[index], load, series, turn) for index in order}
        return Pair(found[0], found[1])

    def _measure(self, side: Side, load: Load, series: str, turn: int) -> Measurement:
        self._watcher.measuring(load, turn, side.name)
        baseline, candidate = self._sides
        if baseline.server is candidate.server:
            # Prompts that it has seen a moment ago would come out of its prefix cache.
            series = f"{series}.{side.name}"
        pid = side.server.pid
        everyone = [*{each.server.pid for each in self._sides}, self._client.pid]
        wait_until_idle(everyone)
        before, all_before = cpu_times([pid]), cpu_times(everyone)
        timing = self._client.send(
            load,
            load.prompts(series),
            base_url=side.server.base_url,
            body={**load.body(SERVED_NAME), **side.extra},
            progress=self._watcher.answered,
        )
        # Whatever logging has put off is part of its price.
        side.server.flush()
        after, all_after = cpu_times([pid]), cpu_times(everyone)
        if side is candidate:
            self.tokens += timing.tokens + timing.prompt_tokens
        return Measurement.of(
            side.name,
            timing,
            cpu_s=after.ours - before.ours,
            others_s=all_after.others - all_before.others,
        )
