"""A detector of tokens with the scores that it gave, before they are evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.arrays import Floats
    from activation_logging.detectors.tokens.results import Place, TokenRole, TokenScores


class Scored(NamedTuple):
    """One detector: its name, title and source, its role, what it said, and where it looked.

    ``more`` is what it said in other draws of what it is fitted on; its figures are means over
    all, and the intervals hold what all gave.
    """

    name: str
    title: str
    source: str
    role: TokenRole
    scores: TokenScores
    places: Sequence[Place] = ()
    more: Sequence[TokenScores] = ()

    def without_answers(self) -> Scored:
        """Only what it said of claims and their tokens."""
        return self._replace(
            scores=replace(self.scores, answer=None),
            more=[replace(each, answer=None) for each in self.more],
        )


def highest_of(score: Floats, whole: npt.NDArray[np.int64]) -> Floats:
    """The maximum of the scores ``[m]`` of each whole, ``[k]``.

    ``whole`` is the number of the claim that each token belongs to, or of each claim's answer.
    """
    found = np.full(int(whole.max()) + 1, -np.inf)
    np.maximum.at(found, whole, score)
    return found
