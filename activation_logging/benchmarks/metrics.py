"""What a run's labels amount to: rates with their errors.

Standard errors are those of a mean of zeros and ones, ``sqrt(p (1 - p) / (n - 1))``, as Inspect's
``stderr`` computes them (Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640). Where ``p``
is 0 or 1 that is 0, which says too much; the 95 % interval beside it is Wilson's (1927). Several
answers to one question count as one in ``n``, as if they were all alike: rather too wide than too
narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.records import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Labelled(NamedTuple):
    """A label and what it is needed to group it by."""

    label: str
    kind: str
    domain: str
    stratum: str
    question: str
    gold: str = ""


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
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return cls(p, stderr, n, max(0.0, centre - half), min(1.0, centre + half))

    def as_json(self) -> dict[str, float | int | None]:
        stderr = None if math.isnan(self.stderr) else self.stderr
        return {**self._asdict(), "stderr": stderr}

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {100 * self.stderr:.1f}"
        return f"{100 * self.value:.1f}{error} %"


Rates = dict[str, Rate]


def nonsense_rates(items: Iterable[Labelled]) -> Rates:
    """Rates of ``nonsense_mixed_entities``; ``invalid`` counts in none of them.

    refusal_rate
        of the made-up names, the share that was refused
    false_acceptance_rate
        its complement: the share that was described as if it existed
    false_refusal_rate
        of the real names, the share that was refused all the same
    balanced_accuracy
        the mean of made-up refused and real accepted: 0.5 for a model that treats both alike
    """
    valid = [item for item in items if item.label != "invalid"]
    made_up = [item for item in valid if item.kind == "made_up"]
    real = [item for item in valid if item.kind == "real"]
    refused = sum(item.label == "refused" for item in made_up)
    refused_real = sum(item.label == "refused" for item in real)
    rates = {
        "refusal_rate": _rate(refused, made_up),
        "false_acceptance_rate": _rate(len(made_up) - refused, made_up),
        "false_refusal_rate": _rate(refused_real, real),
    }
    rates["balanced_accuracy"] = _balanced(rates["refusal_rate"], rates["false_refusal_rate"])
    return {name: rate for name, rate in rates.items() if rate is not None}


def short_facts_rates(items: Iterable[Labelled]) -> Rates:
    """Rates of ``short_facts``, of all answers but the ``invalid`` ones.

    ``majority_baseline`` is the accuracy of always giving the stratum's most frequent right
    answer to the same questions.
    """
    valid = [item for item in items if item.label != "invalid"]
    rates: dict[str, Rate | None] = {
        label: _rate(sum(item.label == label for item in valid), valid)
        for label in LABELS
        if label != "invalid"
    }
    strata: dict[str, Counter[str]] = {}
    for item in valid:
        strata.setdefault(item.stratum, Counter())[item.gold] += 1
    most = sum(max(counter.values()) for counter in strata.values())
    rates["majority_baseline"] = _rate(most, valid)
    return {name: rate for name, rate in rates.items() if rate is not None}


def summary(
    items: Sequence[Labelled],
    rates: Callable[[Iterable[Labelled]], Rates],
    group_of: Callable[[Labelled], str],
) -> dict[str, Any]:
    """Rates and counts over all and by group, ready for JSON."""
    groups: dict[str, list[Labelled]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return {
        "n": len(items),
        "metrics": _as_json(rates(items)),
        "counts": counts(items),
        "groups": {
            name: {"n": len(group), "metrics": _as_json(rates(group)), "counts": counts(group)}
            for name, group in groups.items()
        },
    }


def counts(items: Iterable[Labelled]) -> dict[str, int]:
    """How often each label was given, all four named."""
    found = Counter(item.label for item in items)
    return {label: found[label] for label in LABELS}


def _rate(hits: int, items: Collection[Labelled]) -> Rate | None:
    return Rate.of(hits, len(items), len({item.question for item in items}))


def _balanced(refusal: Rate | None, false_refusal: Rate | None) -> Rate | None:
    if refusal is None or false_refusal is None:
        return None
    value = (refusal.value + 1 - false_refusal.value) / 2
    stderr = math.hypot(refusal.stderr, false_refusal.stderr) / 2
    # The interval of a difference from those of its parts (Newcombe 1998, method 10).
    below = math.hypot(refusal.value - refusal.low, false_refusal.high - false_refusal.value) / 2
    above = math.hypot(refusal.high - refusal.value, false_refusal.value - false_refusal.low) / 2
    return Rate(value, stderr, refusal.n + false_refusal.n, value - below, value + above)


def _as_json(rates: Rates) -> dict[str, Any]:
    return {name: rate.as_json() for name, rate in rates.items()}
