"""A detector of tokens with the scores that it gave, before they are evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.detectors.tokens.results import Place, TokenRole, TokenScores

Floats = npt.NDArray[np.float64]


class Scored(NamedTuple):
    """One detector: its name, title and source, its role, what it said, and where it looked."""

    name: str
    title: str
    source: str
    role: TokenRole
    scores: TokenScores
    places: Sequence[Place] = ()


def highest_of(score: Floats, answer: npt.NDArray[np.int64]) -> Floats:
    """The maximum of claims' scores ``[m]`` over each answer, ``[k]``; ``answer`` is ``[m]``."""
    found = np.full(int(answer.max()) + 1, -np.inf)
    np.maximum.at(found, answer, score)
    return found
