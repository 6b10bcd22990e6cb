"""Metrics: ratios of paired measurements, as a median with its spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.bench.load import Load, Timing


class Spread(NamedTuple):
    """A median, and the least and the greatest of what it is the median of."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


@dataclass(frozen=True)
class Measurement:
    """One load on one server, reduced to its metrics.

    Attributes:
        throughput: answer tokens per second.
        ttft_p50: time to the first token, seconds, median over requests.
        itl_p50: time between two tokens of an answer, seconds, median; ``itl_p99`` likewise.
        cpu_per_token: processor time of the server per answer token, core-seconds.
        others: processor cores that other processes kept busy meanwhile.
    """

    server: str
    throughput: float
    ttft_p50: float
    itl_p50: float
    itl_p99: float
    cpu_per_token: float
    others: float
    seconds: float
    tokens: int
    prompt_tokens: int

    @classmethod
    def of(cls, server: str, timing: Timing, *, cpu_s: float, others_s: float) -> Measurement:
        """Reduce what the client saw, and what processor time was spent meanwhile."""
        p50, p99 = np.percentile(timing.gaps, [50, 99]) if len(timing.gaps) else (np.nan, np.nan)
        return cls(
            server=server,
            throughput=timing.throughput,
            ttft_p50=float(np.median(timing.ttft)),
            itl_p50=float(p50),
            itl_p99=float(p99),
            cpu_per_token=cpu_s / timing.tokens,
            others=others_s / timing.seconds,
            seconds=timing.seconds,
            tokens=timing.tokens,
            prompt_tokens=timing.prompt_tokens,
        )


class Pair(NamedTuple):
    """The same load on the baseline and on a candidate, in the same round."""

    baseline: Measurement
    candidate: Measurement

    @property
    def others(self) -> float:
        """Processor cores that other processes kept busy, in the worse of the two."""
        return max(self.baseline.others, self.candidate.others)


RATIOS = ("throughput", "ttft_p50", "itl_p50", "itl_p99", "cpu_per_token")


@dataclass(frozen=True)
class Comparison:
    """All pairs of one candidate at one concurrency."""

    candidate: str
    load: Load
    pairs: tuple[Pair, ...]

    def ratio(self, metric: str) -> Spread:
        """Candidate over baseline, pair by pair; ``metric`` is one of :data:`RATIOS`."""
        return Spread.of(
            [
                getattr(pair.candidate, metric) / getattr(pair.baseline, metric)
                for pair in self.pairs
            ]
        )

    def absolute(self, metric: str, server: str) -> Spread:
        """The metric itself; ``server`` is ``baseline`` or ``candidate``."""
        return Spread.of([getattr(getattr(pair, server), metric) for pair in self.pairs])

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "candidate": self.candidate,
            "concurrency": self.load.concurrency,
            "requests": self.load.requests,
            "ratios": {name: self.ratio(name)._asdict() for name in RATIOS},
            "pairs": [
                {name: vars(getattr(pair, name)) for name in Pair._fields} for pair in self.pairs
            ],
        }
