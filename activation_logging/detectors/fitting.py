"""Every detector fitted on what it reads, fold by fold, and why others are left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import locate
from activation_logging.detectors.heads import POSITION, best_heads, heads_of
from activation_logging.detectors.linear import LINEAR_PROBE
from activation_logging.detectors.refit import Refit
from activation_logging.detectors.results import Fitted
from activation_logging.detectors.sweep import (
    Cell,
    Fit,
    Sweep,
    Task,
    cross_validate,
    fit_here,
    fit_sweep,
)
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.progress import Progress, track

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.inputs import Signals
    from activation_logging.detectors.registry import Detector

States = dict[Cell, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Inputs:
    """What the detectors of one study read.

    ``sweep`` is that of the linear probe, ``states`` those of the cells that a fold has chosen.
    ``fit_sweep`` fits one at every head.
    """

    examples: Examples
    sweep: Sweep
    states: States
    signals: Signals
    seed: int
    fit_sweep: Fit = fit_here

    def fit(
        self, detectors: Iterable[Detector], progress: Progress
    ) -> tuple[list[Fitted], dict[str, str]]:
        """Score every answer by each detector, fitted on other folds.

        Returns:
            Those that could be fitted, and by title why others could not. One that reads a place
            that the study does not have is in neither.
        """
        fitted: list[Fitted] = []
        left_out: dict[str, str] = {}
        wanted = [detector for detector in detectors if self._has_place(detector)]
        for detector in track(wanted, "fitting detectors", len(wanted), progress):
            found = self._fit_or_reason(detector, progress)
            if isinstance(found, str):
                left_out[detector.title] = found
            else:
                fitted.append(found)
        return fitted, left_out

    def _fit_or_reason(self, detector: Detector, progress: Progress) -> Fitted | str:
        try:
            return self._fit(detector, progress)
        except InputMissing as missing:
            return str(missing)

    def _has_place(self, detector: Detector) -> bool:
        return detector.needs != "state" or bool(self.sweep.choose(detector.where))

    def _fit(self, detector: Detector, progress: Progress) -> Fitted:
        """Score every answer by one detector.

        Raises:
            InputMissing: some answers lack what it reads; says what to do.
        """
        if detector.needs == "heads":
            cells, scores = best_heads(self._sweep_of_heads(detector, progress))
            return Fitted(detector, cells, scores)
        cells = self.sweep.choose(detector.where) if detector.needs == "state" else []
        if self.sweep.fits(detector):
            return Fitted(detector, cells, self.sweep.combine(cells))
        refit = self.refit(detector, cells)
        scores = cross_validate(
            refit.make, refit.features, self.sweep.y, self.sweep.folds, refit.fit_with
        )
        return Fitted(detector, cells, scores)

    def refit(self, detector: Detector, cells: Sequence[Cell]) -> Refit:
        """What a detector is fitted on at the place of each fold.

        Raises:
            InputMissing: some answers lack what it reads; says what to do.
        """
        fit_with = {
            name: self.examples.groups if name == "groups" else self._numbers([name])
            for name in detector.fit_with
        }
        make = partial(detector.make, self.seed)
        return Refit(make, self._features(detector, cells), fit_with)

    def _features(self, detector: Detector, cells: Sequence[Cell]) -> list[npt.NDArray[Any]]:
        """For each fold what a detector is fitted on."""
        if detector.needs == "text":
            return [self.signals.texts] * len(self.sweep.folds)
        if detector.needs == "replay":
            return [self._replayed(detector.name)] * len(self.sweep.folds)
        if detector.needs != "state":
            return [self._numbers([detector.name])[:, None]] * len(self.sweep.folds)
        found: list[npt.NDArray[Any]] = [self.states[cell] for cell in cells]
        if detector.beside:
            column = self._numbers(detector.beside)
            found = [np.column_stack([states, column]) for states in found]
        return found

    def _replayed(self, name: str) -> npt.NDArray[np.float32]:
        """What a replay has kept for a detector, ``[n, width]``."""
        if name not in self.signals.features:
            raise InputMissing(self.signals.missing[name])
        return self.signals.features[name]

    def _numbers(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """The numbers of the first of these detectors that has any, ``[n]``."""
        for name in names:
            if name in self.signals.values:
                return self.signals.values[name]
        raise InputMissing(self.signals.missing[names[-1]])

    def _sweep_of_heads(self, detector: Detector, progress: Progress) -> Sweep:
        """A classifier of each head that was logged, at the answer's last token."""
        heads = heads_of(self.examples)
        if not heads:
            raise InputMissing(
                "no heads that all answers have; log them (ACTIVATION_SITES=heads@8;12, or "
                "--activation-sites)"
            )
        if not locate(self.examples, [POSITION]).there.all():
            raise InputMissing(f"some answers have no state at {POSITION}")
        swept = self.sweep.scores if detector.make is LINEAR_PROBE.make else {}
        known = {cell: swept[cell] for head in heads if (cell := Cell(head, POSITION)) in swept}
        missing = [head for head in heads if Cell(head, POSITION) not in known]
        folds = self.sweep.folds
        if missing:
            try:
                task = Task(self.examples, folds, detector, seed=self.seed)
                more = fit_sweep(task, missing, [POSITION], fit=self.fit_sweep, progress=progress)
            except DatasetError as error:  # a study of other sites need not end for that
                raise InputMissing(str(error)) from None
            known.update(more.scores)
        ordered = {cell: known[cell] for cell in (Cell(head, POSITION) for head in heads)}
        return Sweep(detector, ordered, self.sweep.y, folds, self.examples.num_layers)
