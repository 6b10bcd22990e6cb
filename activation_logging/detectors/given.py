"""Signals of the answer's own tokens: those that say the year, the name, the number.

The judge knows which they are, in wrong answers too. What else an answer says, and how, is left
out: "The capital of Togo is" has no say in how sure the model is of "Lagos".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.detectors.registry import Detector
from activation_logging.detectors.signals import entropies, logprobs
from activation_logging.errors import InputMissing

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.store import Entry


def answer_logprob(entry: Entry, tokens: npt.NDArray[np.int64]) -> float:
    """Mean log-probability of the tokens of the answer given, in nats."""
    return float(np.mean(_logprobs(entry, tokens)))


def answer_min_logprob(entry: Entry, tokens: npt.NDArray[np.int64]) -> float:
    """Log-probability of the least likely token of the answer given, in nats."""
    return float(np.min(_logprobs(entry, tokens)))


def answer_entropy(entry: Entry, tokens: npt.NDArray[np.int64]) -> float:
    """Mean entropy, over the tokens of the answer given, of what could have stood there, in nats.

    A lower bound, as that of :func:`.token_entropy`.
    """
    found = entropies(entry)
    if tokens[-1] >= len(found):
        raise InputMissing("no alternatives to the tokens of the answer given")
    return float(np.mean([found[token] for token in tokens]))


def _logprobs(entry: Entry, tokens: npt.NDArray[np.int64]) -> list[float]:
    found = logprobs(entry)
    said = [found[token] for token in tokens if token < len(found)]
    known = [value for value in said if value is not None]
    if not known:
        raise InputMissing("no log-probabilities of the tokens of the answer given")
    return known


ANSWER_LOGPROB = Detector(
    "answer_logprob",
    "Log-probability of the answer's own tokens",
    "Orgad et al. 2024, arXiv:2410.02707",
    "given",
    of_given=answer_logprob,
    role="signal",
    control=True,
    in_curves=True,
)
ANSWER_MIN_LOGPROB = Detector(
    "answer_min_logprob",
    "Minimum log-probability of the answer's own tokens",
    "Orgad et al. 2024, arXiv:2410.02707; Manakul et al. 2023, arXiv:2303.08896",
    "given",
    of_given=answer_min_logprob,
    role="signal",
    control=True,
)
ANSWER_ENTROPY = Detector(
    "answer_entropy",
    "Entropy at the answer's own tokens (top k)",
    "Orgad et al. 2024, arXiv:2410.02707; Malinin & Gales 2021, arXiv:2002.07650",
    "given",
    of_given=answer_entropy,
    role="signal",
)
