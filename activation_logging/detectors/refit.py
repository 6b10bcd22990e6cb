"""A detector that is fitted again: on fewer answers, on other labels, on other splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.sweep import fit_score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from activation_logging.detectors.splits import Fold, Index


@dataclass(frozen=True)
class Refit:
    """``make`` gives an unfitted classifier, ``features`` are ``[n, ...]`` for each fold.

    ``fit_with`` is what else its ``fit`` takes by name, ``[n]`` each.
    """

    make: Callable[[], Any]
    features: Sequence[npt.NDArray[Any]]
    fit_with: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def score(
        self, fold: int, y: npt.NDArray[np.int64], train: Index, test: Index
    ) -> npt.NDArray[np.float64]:
        """Fit on some answers at the place of a fold, and score others, ``[test]``."""
        return fit_score(self.make(), self.features[fold], y, (train, test), self.fit_with)

    def held_out(self, y: npt.NDArray[np.int64], folds: Sequence[Fold]) -> npt.NDArray[np.float64]:
        """Fit on each training side, and score its test side, ``[n]``."""
        scores = np.full(len(y), np.nan)
        for number, fold in enumerate(folds):
            scores[fold.test] = self.score(number, y, fold.train, fold.test)
        return scores
