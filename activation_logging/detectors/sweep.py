"""A linear probe at every place: each layer or site, each position; the best place of each fold.

As in LLMsKnow (Orgad et al. 2024, arXiv:2410.02707). In every fold the place is chosen by AUROC on
the validation part, which lies inside the training side; the test side then tells how good it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_blocks
from activation_logging.dataset.layers import in_order
from activation_logging.detectors.metrics import best_f1_threshold, plain_auroc
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from activation_logging.dataset import Examples
    from activation_logging.detectors.registry import Detector, Where
    from activation_logging.detectors.splits import Fold, Trial


FIT_BYTES = 1 << 30
"""Memory for fits that go on at the same time; one is always allowed."""


class Cell(NamedTuple):
    """One place in the network and in the answer.

    ``layer`` is a number, or a text such as ``heads@15``; see :mod:`activation_logging.dataset`.
    """

    layer: int | str
    position: str | int


@dataclass
class Scores:
    """What one detector said of every example, each time as part of the test side.

    ``probability`` is ``[n]``; ``threshold`` and ``validation_auroc`` have one value per fold.
    ``validation`` holds the probabilities of each fold's validation part, ``tried`` the AUROC of
    each further trial, see :func:`fit_sweep`.
    """

    probability: npt.NDArray[np.float64]
    threshold: list[float] = field(default_factory=list)
    validation_auroc: list[float] = field(default_factory=list)
    validation: list[npt.NDArray[np.float64]] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)

    def predicted(self, folds: Sequence[Fold]) -> npt.NDArray[np.int64]:
        """The class predicted at each fold's threshold, ``[n]``."""
        predicted = np.zeros(len(self.probability), dtype=np.int64)
        for fold, threshold in zip(folds, self.threshold, strict=True):
            predicted[fold.test] = self.probability[fold.test] >= threshold
        return predicted


@dataclass(frozen=True)
class Sweep:
    """What one detector, fitted at every place, said there; ``num_layers`` numbers the last."""

    detector: Detector
    scores: Mapping[Cell, Scores]
    y: npt.NDArray[np.int64]
    folds: Sequence[Fold]
    num_layers: int

    def fits(self, detector: Detector) -> bool:
        """Whether a detector is the one of the sweep, so that its scores are known."""
        return detector.make is self.detector.make

    def choose(self, where: Where = "chosen") -> list[Cell]:
        """The place of each fold; none where the sweep has no such place.

        The best by the fold's validation part, the lower layer where two are equal.
        """
        cells = list(self.scores)
        if where == "last":
            last = Cell(self.num_layers, "response_last")
            cells = [cell for cell in cells if cell == last]
        elif where == "before":
            cells = [cell for cell in cells if cell.position == "prompt_last"]
        if not cells:
            return []
        return [
            self._best(cells, [self.scores[cell].validation_auroc[number] for cell in cells])
            for number in range(len(self.folds))
        ]

    def choose_tried(self) -> list[Cell]:
        """The place of each further trial."""
        cells = list(self.scores)
        tried = [self.scores[cell].tried for cell in cells]
        return [self._best(cells, of_trial) for of_trial in zip(*tried, strict=True)]

    def best(self) -> Cell:
        """The place with the best mean validation AUROC over the folds."""
        cells = list(self.scores)
        means = [float(np.mean(self.scores[cell].validation_auroc)) for cell in cells]
        return self._best(cells, means)

    def _best(self, cells: Sequence[Cell], aurocs: Sequence[float]) -> Cell:
        rank = self._ranks()
        best = max(zip(cells, aurocs, strict=True), key=lambda one: (one[1], -rank[one[0]]))
        return best[0]

    def _ranks(self) -> dict[Cell, int]:
        """The place of each cell's layer among all layers and sites."""
        layers = in_order(cell.layer for cell in self.scores)
        ranks = {layer: rank for rank, layer in enumerate(layers)}
        return {cell: ranks[cell.layer] for cell in self.scores}

    def combine(self, chosen: Sequence[Cell]) -> Scores:
        """The scores of each fold's own place."""
        combined = Scores(np.full_like(self.scores[chosen[0]].probability, np.nan))
        for number, (cell, fold) in enumerate(zip(chosen, self.folds, strict=True)):
            own = self.scores[cell]
            combined.probability[fold.test] = own.probability[fold.test]
            combined.threshold.append(own.threshold[number])
            combined.validation_auroc.append(own.validation_auroc[number])
            combined.validation.append(own.validation[number])
        return combined


@dataclass(frozen=True)
class Task:
    """What is fitted at every place: one detector, on these answers and splits."""

    examples: Examples
    folds: Sequence[Fold]
    detector: Detector
    trials: Sequence[Trial] = ()
    seed: int = 0

    def fit(self, X: npt.NDArray[np.float32], *, workers: int) -> Scores:
        """The scores at one place, the same with any number of threads.

        Args:
            X: the states there, ``[n, width]``.
            workers: how many fits go on at once.
        """
        y = self.examples.y
        scores = cross_validate(
            lambda: self.detector.make(self.seed),
            [X] * len(self.folds),
            y,
            self.folds,
            workers=workers,
        )
        with ThreadPoolExecutor(workers) as pool:
            tried = partial(_try, self.detector, self.seed, X, y)
            scores.tried.extend(pool.map(tried, self.trials))
        return scores


Fit = Callable[
    [Task, Sequence["int | str"], Sequence["str | int"], Progress], "Mapping[Cell, Scores]"
]
"""Fits a task at every layer and position, told of in this order; see :func:`fit_here`."""


def fit_here(
    task: Task,
    layers: Sequence[int | str],
    positions: Sequence[str | int],
    progress: Progress,
) -> Mapping[Cell, Scores]:
    """Fit a task at every place, on this machine.

    Raises:
        DatasetError: a state is not finite; the message says where.
    """
    found: dict[Cell, Scores] = {}
    total = len(layers) * len(positions)
    for block in read_blocks(task.examples, layers, positions, progress=progress):
        for column, position in enumerate(positions):
            progress("fitting probes", len(found), total)
            X = block.X[:, column]
            found[Cell(block.layer, position)] = task.fit(X, workers=_workers(*X.shape))
    progress("fitting probes", total, total)
    return found


def fit_sweep(
    task: Task,
    layers: Sequence[int | str],
    positions: Sequence[str | int],
    *,
    fit: Fit = fit_here,
    progress: Progress = silent,
) -> Sweep:
    """Fit one detector at every layer, site and position.

    Args:
        task: what to fit.
        layers: of which layers, sites or heads.
        positions: at which positions.
        fit: where the fits run; on other machines with :func:`activation_logging.ray.fit_on_ray`.
        progress: told how many are fitted.

    Raises:
        DatasetError: a state is not finite; the message says where.
    """
    found = fit(task, layers, positions, progress)
    examples = task.examples
    return Sweep(task.detector, found, examples.y, task.folds, examples.num_layers)


def cross_validate(
    make: Callable[[], Any],
    features: Sequence[npt.NDArray[Any]],
    y: npt.NDArray[np.int64],
    folds: Sequence[Fold],
    fit_with: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    workers: int = 1,
) -> Scores:
    """Fit on each training side, score its test side.

    A first fit without the validation part gives the threshold with the best F1 there: on answers
    that were fitted, scores are too sure of themselves to set one.

    Args:
        make: gives an unfitted classifier.
        features: for each fold the features ``[n, ...]`` to use in it.
        y: classes, ``[n]``.
        folds: the splits.
        fit_with: what else ``fit`` takes by name, ``[n]`` each.
        workers: how many fits go on at once; for models that can be fitted in threads.
    """
    given = fit_with or {}
    scores = Scores(np.full(len(y), np.nan))
    # Twice in each fold: to choose, and to tell.
    sides = [
        side for fold in folds for side in ((fold.fit, fold.validation), (fold.train, fold.test))
    ]
    twice = [X for X in features for _ in range(2)]
    with ThreadPoolExecutor(workers) as pool:
        scored = pool.map(lambda X, side: fit_score(make(), X, y, side, given), twice, sides)
        for fold, held_out, tested in zip(folds, scored, scored, strict=True):
            scores.threshold.append(best_f1_threshold(y[fold.validation], held_out))
            scores.validation_auroc.append(plain_auroc(y[fold.validation], held_out))
            scores.validation.append(held_out)
            scores.probability[fold.test] = tested
    return scores


def _try(
    detector: Detector,
    seed: int,
    X: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    trial: Trial,
) -> float:
    """The AUROC of one trial at one place."""
    scores = fit_score(detector.make(seed), X, y, trial, {})
    return plain_auroc(y[trial.validation], scores)


def _workers(examples: int, width: int) -> int:
    """How many linear probes are fitted at once: one a core, as far as their copies allow."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    # The states of a training side, and the same standardised, in single precision.
    return max(1, min(cores, FIT_BYTES // (8 * examples * width)))


def fit_score(
    model: Any,
    X: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    sides: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    fit_with: Mapping[str, npt.NDArray[Any]],
) -> npt.NDArray[np.float64]:
    """Fit on some rows, and give the probability of class 1 of others, ``[test]``.

    Args:
        model: an unfitted classifier.
        X: features, ``[n, ...]``.
        y: classes, ``[n]``.
        sides: the rows to fit on, and those to score.
        fit_with: what else ``fit`` takes by name, ``[n]`` each.
    """
    train, test = sides
    # Sums over thousands of float32 states lose digits, unless a model takes care of that.
    dtype = getattr(model, "reads", np.float64) if X.dtype.kind == "f" else X.dtype
    own = {name: values[train] for name, values in fit_with.items()}
    fitted = model.fit(X[train].astype(dtype, copy=False), y[train], **own)
    scored = fitted.predict_proba(X[test].astype(dtype, copy=False))[:, 1]
    return np.asarray(scored, dtype=np.float64)
