"""What the verdicts of a run amount to: rates with their errors.

Standard errors are those of a mean of zeros and ones, ``sqrt(p (1 - p) / (n - 1))``, as Inspect's
``stderr`` computes them (Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640). Where ``p``
is 0 or 1 that is 0, which says too much; the 95 % interval beside it is Wilson's (1927). Several
answers to one question count as one in ``n``, as if they were identical: the interval is too wide
rather than too narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.records import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from activation_logging.benchmarks.questions import Question
    from activation_logging.judges.verdict import Kind, Verdict

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Judged(NamedTuple):
    """A question and the verdict on one answer to it."""

    question: Question
    verdict: Verdict


class Rate(NamedTuple):
    """A share of the answers to ``n`` questions: with standard error and 95 % interval."""

    value: float
    stderr: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, answers: int, questions: int | None = None) -> Rate | None:
        """``hits`` of ``answers`` to so many questions (one each if not given); None of nothing."""
        if answers == 0:
            return None
        p, n = hits / answers, questions or answers
        stderr = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else float("nan")
        return cls(p, stderr, n, *_wilson(p, n))

    @classmethod
    def of_ratio(cls, parts: Sequence[tuple[int, int]]) -> Rate | None:
        """Hits of so many in each answer, together; None of nothing.

        What belongs to one answer is not independent, so the error is that of a ratio of two sums
        over the answers (Cochran 1977, "Sampling Techniques", 6.4). The interval is Wilson's for
        as many independent ones as have this error; ``n`` is the number of answers with any.
        """
        parts = [(hits, of) for hits, of in parts if of]
        total, n = sum(of for _, of in parts), len(parts)
        if not n:
            return None
        p = sum(hits for hits, _ in parts) / total
        if n == 1 or p in {0.0, 1.0}:
            return cls(p, 0.0 if n > 1 else math.nan, n, *_wilson(p, n))
        squares = sum((hits - p * of) ** 2 for hits, of in parts)
        stderr = math.sqrt(squares * n / (n - 1)) / total
        # Answers that are all alike have no error between them: they are then worth one each.
        worth = max(p * (1 - p) / stderr**2, 1.0) if stderr else float(n)
        low, high = _wilson(p, worth)
        return cls(p, stderr, n, low, high)

    def as_json(self) -> dict[str, float | int | None]:
        stderr = None if math.isnan(self.stderr) else self.stderr
        return {**self._asdict(), "stderr": stderr}

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {100 * self.stderr:.1f}"
        return f"{100 * self.value:.1f}{error} %"


def _wilson(p: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of ``n``."""
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


Rates = dict[str, Rate]


def share(label: str, items: Sequence[Judged]) -> Rate | None:
    """The share of the items that have this label; None of nothing."""
    return share_of(sum(item.verdict.label == label for item in items), items)


def share_of(hits: int, items: Sequence[Judged]) -> Rate | None:
    """The share of so many hits among the items, by the number of questions; None of nothing."""
    return Rate.of(hits, len(items), len({item.question.id for item in items}))


def label_shares(items: Sequence[Judged]) -> dict[str, Rate | None]:
    """The share of the items that have each label but ``invalid``."""
    return {label: share(label, items) for label in LABELS if label != "invalid"}


def majority_baseline(items: Sequence[Judged]) -> Rate | None:
    """The accuracy of always giving the stratum's most frequent right answer; None of nothing."""
    strata: dict[str, Counter[str]] = {}
    for question, _ in items:
        gold = question.gold[0] if question.gold else ""
        strata.setdefault(question.stratum, Counter())[gold] += 1
    return share_of(sum(max(counter.values()) for counter in strata.values()), items)


def valid(items: Iterable[Judged], kind: Kind | None = None) -> list[Judged]:
    """The items with a usable verdict, on questions of this kind only if it is given."""
    return [
        item
        for item in items
        if item.verdict.label != "invalid" and kind in (None, item.question.kind)
    ]


def present(rates: Mapping[str, Rate | None]) -> Rates:
    """The rates that there are."""
    return {name: rate for name, rate in rates.items() if rate is not None}


def summary(
    items: Sequence[Judged],
    rates: Callable[[Sequence[Judged]], Rates],
    group_of: Callable[[Question], str],
) -> dict[str, Any]:
    """Rates and counts over all and by group, ready for JSON."""
    groups: dict[str, list[Judged]] = {}
    for item in items:
        groups.setdefault(group_of(item.question), []).append(item)
    return {
        "n": len(items),
        "metrics": _as_json(rates(items)),
        "counts": counts(items),
        "groups": {
            name: {"n": len(group), "metrics": _as_json(rates(group)), "counts": counts(group)}
            for name, group in groups.items()
        },
    }


def counts(items: Iterable[Judged]) -> dict[str, int]:
    """How often each label was given, all four named."""
    found = Counter(item.verdict.label for item in items)
    return {label: found[label] for label in LABELS}


def _as_json(rates: Rates) -> dict[str, Any]:
    return {name: rate.as_json() for name, rate in rates.items()}
