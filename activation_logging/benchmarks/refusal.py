"""What benchmarks about made-up and real names share: how well known a name is, and the rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from activation_logging import tags
from activation_logging.benchmarks.rates import Judged, Rate, Rates, present, share, share_of, valid

if TYPE_CHECKING:
    from collections.abc import Sequence

FAMOUS, OBSCURE, MADE_UP = "famous", "obscure", "made_up"
"""The ladder of fame, as the tag ``fame`` says it."""


def refusal_rates(items: Sequence[Judged]) -> Rates:
    """Rates of refusal; ``invalid`` counts in none of them.

    refusal_rate
        of the made-up names, the share that was refused
    false_acceptance_rate
        its complement: the share that was described as if it existed
    false_refusal_rate
        of the real names, the share that was refused all the same
    false_refusal_famous, false_refusal_obscure
        the same of each rung, where the questions say which rung a name is on
    balanced_accuracy
        the mean of made-up refused and real accepted: 0.5 for a model that treats both alike
    """
    made_up, real = valid(items, "made_up"), valid(items, "real")
    refused = sum(item.verdict.label == "refused" for item in made_up)
    refusal, false_refusal = share_of(refused, made_up), share("refused", real)
    rungs = {
        f"false_refusal_{rung}": share(
            "refused", [item for item in real if item.question.details.get(tags.FAME) == rung]
        )
        for rung in (FAMOUS, OBSCURE)
    }
    return present(
        {
            "refusal_rate": refusal,
            "false_acceptance_rate": share_of(len(made_up) - refused, made_up),
            "false_refusal_rate": false_refusal,
            **rungs,
            "balanced_accuracy": refusal and false_refusal and _balanced(refusal, false_refusal),
        }
    )


def _balanced(refusal: Rate, false_refusal: Rate) -> Rate:
    value = (refusal.value + 1 - false_refusal.value) / 2
    stderr = math.hypot(refusal.stderr, false_refusal.stderr) / 2
    # The interval of a difference from those of its parts (Newcombe 1998, method 10).
    below = math.hypot(refusal.value - refusal.low, false_refusal.high - false_refusal.value) / 2
    above = math.hypot(refusal.high - refusal.value, false_refusal.value - false_refusal.low) / 2
    return Rate(value, stderr, refusal.n + false_refusal.n, value - below, value + above)
