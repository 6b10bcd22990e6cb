"""Signals of several answers to the same prompt: do they agree with each other?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_vector
from activation_logging.dataset.positions import rows_at
from activation_logging.detectors.registry import Detector
from activation_logging.errors import InputMissing, RowsMissing
from activation_logging.text import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.store import Entry

EIGENSCORE_ALPHA = 1e-3
"""Regularisation of the covariance, as in Chen et al. 2024."""

_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class Samples:
    """All complete answers of one model to one prompt, labelled or not.

    ``layer`` is the layer nearest to the middle of those that all labelled answers have.
    """

    entries: Sequence[Entry]
    layer: int | str

    @cached_property
    def meanings(self) -> list[str]:
        """The answers' texts, normalised: answers with equal ones say the same."""
        return [normalise_answer(entry.response) for entry in self.entries]

    @cached_property
    def states(self) -> npt.NDArray[np.float32]:
        """The last state of each answer at ``layer``, ``[samples, hidden]``.

        Raises:
            InputMissing: an answer has none.
        """
        try:
            return np.stack([_last_state(entry, self.layer) for entry in self.entries])
        except (InputMissing, RowsMissing):
            raise InputMissing(f"layer {self.layer} is not there for every sample") from None


def _last_state(entry: Entry, layer: int | str) -> npt.NDArray[np.float32]:
    return read_vector(entry, layer, rows_at("response_last", entry))


def normalise_answer(text: str) -> str:
    """Case, accents, punctuation, articles and spacing folded, as SQuAD's metric does it."""
    return " ".join(word for word in fold(text).split() if word not in _ARTICLES)


def semantic_entropy(_entry: Entry, samples: Samples) -> float:
    """Entropy over the meanings of the samples, in nats (Farquhar et al. 2024, Nature 630).

    The discrete variant, with equality of the normalised text for equality of meaning: right for
    short answers; for long ones every text is a meaning of its own.
    """
    counts = np.array(list(Counter(samples.meanings).values()), dtype=np.float64)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def disagreement(entry: Entry, samples: Samples) -> float:
    """Share of the samples that say something else than this answer.

    One less the self-consistency of Wang et al. 2022, arXiv:2203.11171.
    """
    own = normalise_answer(entry.response)
    return float(np.mean([meaning != own for meaning in samples.meanings]))


def eigenscore(_entry: Entry, samples: Samples) -> float:
    """Mean log-eigenvalue of the samples' covariance (INSIDE; Chen et al. 2024, arXiv:2402.03744).

    Of each sample it takes the last token's state at the middle layer.
    """
    covariance = np.cov(np.asarray(samples.states, np.float64))
    eigenvalues = np.linalg.eigvalsh(covariance + EIGENSCORE_ALPHA * np.eye(len(covariance)))
    return float(np.log(eigenvalues).mean())


SEMANTIC_ENTROPY = Detector(
    "semantic_entropy",
    "Semantic entropy",
    "Farquhar et al. 2024, Nature 630",
    "samples",
    of_samples=semantic_entropy,
    role="signal",
)
SELF_CONSISTENCY = Detector(
    "self_consistency",
    "Self-consistency",
    "Wang et al. 2022, arXiv:2203.11171",
    "samples",
    of_samples=disagreement,
    role="signal",
)
EIGENSCORE = Detector(
    "eigenscore",
    "EigenScore",
    "Chen et al. 2024, arXiv:2402.03744",
    "samples",
    of_samples=eigenscore,
    role="signal",
)
