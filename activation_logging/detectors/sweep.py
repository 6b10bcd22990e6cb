"""Layer x position: a linear probe everywhere, and the best place chosen without the test side.

As in LLMsKnow (Orgad et al. 2024, arXiv:2410.02707). In every fold the place is chosen by AUROC on
the validation part, which lies inside the training side; the test side then tells how good it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_blocks
from activation_logging.detectors.metrics import auroc, best_f1_threshold
from activation_logging.detectors.probes import LinearProbe
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.splits import Fold


class Cell(NamedTuple):
    """One place in the network and in the answer."""

    layer: int
    position: str | int


@dataclass
class Scores:
    """What one detector said of every example, each time as part of the test side.

    ``probability`` is ``[n]``; ``threshold`` and ``validation_auroc`` have one value per fold.
    """

    probability: npt.NDArray[np.float64]
    threshold: list[float] = field(default_factory=list)
    validation_auroc: list[float] = field(default_factory=list)

    def called(self, folds: Sequence[Fold]) -> npt.NDArray[np.int64]:
        """1 where the answer is called positive at its fold's threshold, ``[n]``."""
        called = np.zeros(len(self.probability), dtype=np.int64)
        for fold, threshold in zip(folds, self.threshold, strict=True):
            called[fold.test] = self.probability[fold.test] >= threshold
        return called


def cross_validate(
    make: Callable[[], Any],
    features: Sequence[npt.NDArray[Any]],
    y: npt.NDArray[np.int64],
    folds: Sequence[Fold],
) -> Scores:
    """Fit on each training side, score its test side.

    A first fit without the validation part gives the threshold with the best F1 there: on answers
    that were fitted, scores are too sure of themselves to set one.

    Args:
        make: gives an unfitted classifier.
        features: for each fold the features ``[n, ...]`` to use in it.
        y: classes, ``[n]``.
        folds: the splits.
    """
    scores = Scores(np.full(len(y), np.nan))
    for fold, X in zip(folds, features, strict=True):
        held_out = _fit_score(make(), X, y, fold.fit, fold.validation)
        scores.threshold.append(best_f1_threshold(y[fold.validation], held_out))
        scores.validation_auroc.append(_plain_auroc(y[fold.validation], held_out))
        scores.probability[fold.test] = _fit_score(make(), X, y, fold.train, fold.test)
    return scores


def sweep(
    examples: Examples,
    folds: Sequence[Fold],
    layers: Sequence[int],
    positions: Sequence[str | int],
    *,
    progress: Progress = silent,
) -> dict[Cell, Scores]:
    """A linear probe at every layer and position."""
    found: dict[Cell, Scores] = {}
    total = len(layers) * len(positions)
    for block in read_blocks(examples, layers, positions, progress=progress):
        for column, position in enumerate(positions):
            progress("fitting probes", len(found), total)
            found[Cell(block.layer, position)] = cross_validate(
                LinearProbe, [block.X[:, column]] * len(folds), examples.y, folds
            )
    progress("fitting probes", total, total)
    return found


def choose(found: dict[Cell, Scores], num_folds: int) -> list[Cell]:
    """The best cell of each fold by its validation part; the lower layer where two are equal."""
    return [
        max(found, key=lambda cell: (found[cell].validation_auroc[number], -cell.layer))
        for number in range(num_folds)
    ]


def overall(found: dict[Cell, Scores]) -> Cell:
    """The cell with the best mean validation AUROC over the folds."""
    return max(found, key=lambda cell: (np.mean(found[cell].validation_auroc), -cell.layer))


def combine(found: dict[Cell, Scores], chosen: Sequence[Cell], folds: Sequence[Fold]) -> Scores:
    """The scores of each fold's own cell."""
    scores = Scores(np.full_like(next(iter(found.values())).probability, np.nan))
    for number, (cell, fold) in enumerate(zip(chosen, folds, strict=True)):
        scores.probability[fold.test] = found[cell].probability[fold.test]
        scores.threshold.append(found[cell].threshold[number])
        scores.validation_auroc.append(found[cell].validation_auroc[number])
    return scores


def _fit_score(
    model: Any,
    X: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    fitted = model.fit(X[train], y[train])
    return np.asarray(fitted.predict_proba(X[test])[:, 1], dtype=np.float64)


def _plain_auroc(y: npt.NDArray[np.int64], score: npt.NDArray[np.float64]) -> float:
    return float(auroc(y, score, np.ones((1, len(y))), [np.arange(len(y))])[0])
