"""Signals of one answer alone, without activations: log-probabilities, entropy, length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.store import Entry

FLOOR = -100.0
"""Log-probabilities are cut off here, natural logarithm: minus infinity is not a number to
average."""


def mean_logprob(entry: Entry) -> float:
    """Mean log-probability of the answer's tokens, in nats."""
    return float(np.mean(_said(entry)))


def min_logprob(entry: Entry) -> float:
    """Log-probability of the answer's least likely token, in nats."""
    return float(np.min(_said(entry)))


def token_entropy(entry: Entry) -> float:
    """Mean over the tokens of the entropy of the next-token distribution, in nats.

    Only the top k are logged. What they leave over counts as one more outcome, which makes this a
    lower bound of the whole distribution's entropy.
    """
    return float(np.mean(entropies(entry)))


def entropies(entry: Entry) -> list[float]:
    """For each token the entropy of :func:`token_entropy`, in nats.

    Raises:
        InputMissing: the alternatives to the chosen tokens were not asked for.
    """
    tops = entry.top_logprobs
    if not tops or max(len(top) for top in tops) < 2:
        raise InputMissing(
            "no alternatives to the chosen tokens; ask for some (top_logprobs of 5 or more)"
        )
    return [_entropy(top) for top in tops]


def _entropy(top: Mapping[int, float]) -> float:
    p = np.exp(np.array([value for value in top.values() if value > FLOOR], dtype=np.float64))
    rest = max(0.0, 1.0 - float(p.sum()))
    outcomes = np.append(p, rest) if rest > 0 else p
    outcomes = outcomes[outcomes > 0]
    return -float((outcomes * np.log(outcomes)).sum())


def length(entry: Entry) -> float:
    """Number of the answer's tokens."""
    return float(len(entry.response_token_ids))


def logprobs(entry: Entry) -> list[float | None]:
    """The log-probability of each token, in nats, cut off at :data:`FLOOR`.

    Raises:
        InputMissing: there are none.
    """
    found = [None if value is None else max(value, FLOOR) for value in entry.logprobs or ()]
    if all(value is None for value in found):
        raise InputMissing("no log-probabilities; ask for them (logprobs in the request)")
    return found


def _said(entry: Entry) -> list[float]:
    return [value for value in logprobs(entry) if value is not None]


MEAN_LOGPROB = Detector(
    "mean_logprob",
    "Mean log-probability",
    "Malinin & Gales 2021, arXiv:2002.07650",
    "answer",
    of_answer=mean_logprob,
    role="signal",
    control=True,
    in_curves=True,
)
MIN_LOGPROB = Detector(
    "min_logprob",
    "Minimum log-probability",
    "Manakul et al. 2023, arXiv:2303.08896",
    "answer",
    of_answer=min_logprob,
    role="signal",
    control=True,
    in_curves=True,
)
TOKEN_ENTROPY = Detector(
    "token_entropy",
    "Token entropy (top k)",
    "Malinin & Gales 2021, arXiv:2002.07650",
    "answer",
    of_answer=token_entropy,
    role="signal",
)
LENGTH = Detector(
    "length",
    "Length of the answer",
    "control",
    "answer",
    of_answer=length,
    role="control",
    in_curves=True,
)
