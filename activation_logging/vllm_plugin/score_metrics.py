"""The scores of all answers as metrics of vLLM's own ``/metrics``.

======================================= ============================================================
``activation_logging_score``            histogram of probabilities, by ``probe`` and ``place``:
                                        ``prompt``, before the first token, or ``answer``
``activation_logging_flagged_total``    answers at or above the probe's threshold, by ``probe``
``activation_logging_score_drift``      how far the scores of answers of the last hour are from
                                        those of the probe's training data, by ``probe`` and
                                        ``measure``: ``psi`` or ``ks``, see :mod:`.drift`
``activation_logging_score_window``     how many scores that compares, by ``probe``
``activation_logging_probe_threshold``  the threshold, by ``probe`` and ``shadow``
======================================= ============================================================

The first two are metrics of prometheus_client, as vLLM's are. With several API servers they go
through files that all of them share, and each one shows the sum. The others are computed from that
sum when they are asked for.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from activation_logging.detectors.drift import LEAST, Reference, bin_shares, stability_index
from activation_logging.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from activation_logging.detectors.served_probes import ServedProbes

    Final = tuple[float | None, float | None]

Counts = npt.NDArray[np.int64]

EDGES = (0.01, 0.02, 0.05, *(round(0.1 * n, 1) for n in range(1, 10)), 0.95, 0.98, 0.99)
"""Upper bounds of the histogram's buckets; the last one reaches up to 1."""
WINDOW_S = 3600.0
"""How far back the drift looks, seconds."""
MAX_NAMES = 256
"""Probes that are told apart in the life of a process. prometheus_client never forgets one."""
OTHERS = "others"
"""What further probes are called."""

_STEP_S = WINDOW_S / 240
_PROMPT, _ANSWER = "prompt", "answer"

_scores = Histogram(
    "activation_logging_score",
    "Probability that a probe gave, before the first token or of the whole answer.",
    ["probe", "place"],
    buckets=EDGES,
)
_flagged = Counter(
    "activation_logging_flagged",
    "Answers whose probability was at or above the probe's threshold.",
    ["probe"],
)
_names: set[str] = set()


def observe(probe: str, prompt: float | None, answer: float | None, *, flagged: bool) -> None:
    """Count what a probe said of one answer that has ended.

    Args:
        probe: its name.
        prompt: the probability at the last prompt token; None, or NaN, where it said nothing.
        answer: the probability of the answer; likewise.
        flagged: whether that is at or above the threshold.
    """
    if len(_names) < MAX_NAMES:
        _names.add(probe)
    name = probe if probe in _names else OTHERS
    for place, value in ((_PROMPT, prompt), (_ANSWER, answer)):
        if value is not None and not math.isnan(value):
            _scores.labels(name, place).observe(value)
    _flagged.labels(name).inc(flagged)


class Told(NamedTuple):
    """What a probe has said since the server started, under one name.

    ``counts`` are of answers, by bucket, int64 ``[EDGES + 1]``; ``flagged`` is how many were.
    """

    counts: Counts
    flagged: int = 0

    @property
    def number(self) -> int:
        """How many answers it said something of."""
        return int(self.counts.sum())


_NOTHING = Told(np.zeros(len(EDGES) + 1, np.int64))


def observe_all(served: ServedProbes, finals: Mapping[str, Final]) -> None:
    """Count what every probe said of one answer that has ended; see :func:`observe`."""
    for name, (prompt, answer) in finals.items():
        one = served.get(name)
        flagged = one is not None and answer is not None and answer >= one.probe.threshold
        observe(name, prompt, answer, flagged=flagged)


def told_by(metrics: Iterable[Metric]) -> dict[str, Told]:
    """What each probe has said, by name.

    Args:
        metrics: what vLLM's registry collects: of all API servers.
    """
    found: dict[str, Told] = {}
    for metric in metrics:
        for sample in metric.samples:
            labels = sample.labels
            if sample.name == "activation_logging_flagged_total":
                told = found.get(labels["probe"], _NOTHING)
                found[labels["probe"]] = told._replace(flagged=int(sample.value))
            elif sample.name == "activation_logging_score_bucket" and labels["place"] == _ANSWER:
                told = found.get(labels["probe"], _NOTHING)
                counts = told.counts.copy()
                at = np.searchsorted(EDGES, float(labels["le"]))
                counts[at] = int(sample.value)
                found[labels["probe"]] = told._replace(counts=counts)
    # A bucket of Prometheus counts those below it, too.
    return {
        name: told._replace(counts=np.diff(told.counts, prepend=0)) for name, told in found.items()
    }


class Moved(NamedTuple):
    """How far the scores of a window are from those of the training data.

    ``number`` is how many scores there are; ``psi`` and ``ks`` are None where they are too few, or
    the probe does not know its training data's. Both see the buckets only, so ``ks`` is at most
    the distance of the scores themselves.
    """

    number: int
    psi: float | None = None
    ks: float | None = None


class Window:
    """The scores of the last hour, from what was counted at each time that somebody asked.

    Nothing is kept of single scores. The window's are the counts of now, less those of an hour ago.
    Where nobody asked an hour ago, it begins when somebody did, or with the process.

    Args:
        now: the time, seconds.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._seen: dict[str, tuple[str, deque[tuple[float, Counts]]]] = {}

    def moved(self, served: ServedProbes, told: Mapping[str, Told], now: float) -> dict[str, Moved]:
        """How far each probe's scores have moved, by name.

        Args:
            served: the probes.
            told: what they have said so far.
            now: the time, seconds.
        """
        for name in self._seen.keys() - served.keys():
            self._seen[name] = "", deque()
        found = {}
        for name, one in served.items():
            counts = told.get(name, _NOTHING).counts
            inside = counts - self._before(name, one.probe.digest, counts, now)
            try:
                found[name] = _moved(Reference.of_probe(one.probe), inside)
            except ProbeError:
                found[name] = Moved(int(inside.sum()))
        return found

    def _before(self, name: str, digest: str, counts: Counts, now: float) -> Counts:
        """The counts an hour ago; those of another probe that had the name are not this one's."""
        if name not in self._seen or self._seen[name][0] != digest:
            first = (now, counts) if name in self._seen else (self._started, _NOTHING.counts)
            self._seen[name] = digest, deque([first])
        times = self._seen[name][1]
        while len(times) > 1 and times[1][0] <= now - WINDOW_S:
            times.popleft()
        if now - times[-1][0] >= _STEP_S:
            times.append((now, counts))
        return times[0][1]


def _moved(reference: Reference, counts: Counts) -> Moved:
    number = int(counts.sum())
    if number < LEAST:
        return Moved(number)
    before = bin_shares(reference, np.array(EDGES))
    gaps = np.cumsum(before) - np.cumsum(counts) / number
    psi = stability_index(before * reference.number, counts)
    return Moved(number, float(psi), float(np.abs(gaps).max()))


def gauges(served: ServedProbes, moved: Mapping[str, Moved]) -> bytes:
    """What is computed when it is asked for, in Prometheus's format."""
    registry = CollectorRegistry()
    registry.register(_Gauges(served, moved))
    return generate_latest(registry)


class _Gauges(Collector):
    def __init__(self, served: ServedProbes, moved: Mapping[str, Moved]) -> None:
        self._served = served
        self._moved = moved

    def collect(self) -> Iterator[Any]:
        drift = GaugeMetricFamily(
            "activation_logging_score_drift",
            "Distance of the last hour's scores of answers from the probe's training data: "
            "population stability index (psi), Kolmogorov-Smirnov (ks).",
            labels=["probe", "measure"],
        )
        window = GaugeMetricFamily(
            "activation_logging_score_window",
            "Scores of answers that the drift compares.",
            labels=["probe"],
        )
        threshold = GaugeMetricFamily(
            "activation_logging_probe_threshold",
            "The probability from which on the probe flags an answer.",
            labels=["probe", "shadow"],
        )
        for name, one in self._served.items():
            moved = self._moved[name]
            threshold.add_metric([name, str(one.shadow).lower()], one.probe.threshold)
            window.add_metric([name], moved.number)
            for measure in ("psi", "ks"):
                value = getattr(moved, measure)
                if value is not None:
                    drift.add_metric([name, measure], value)
        yield from (drift, window, threshold)
