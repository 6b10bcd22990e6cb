"""The whole study of one labelled store: sweep, choose, fit, evaluate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import refuse_one_class, select_examples
from activation_logging.dataset.features import finite, locate, read_blocks
from activation_logging.dataset.layers import in_order
from activation_logging.dataset.positions import parse_position
from activation_logging.detectors.inputs import Signals, read_signals
from activation_logging.detectors.linear import LINEAR_PROBE
from activation_logging.detectors.registry import Detector, load_detectors
from activation_logging.detectors.results import Evaluator, Fitted, Options, Study
from activation_logging.detectors.splits import make_folds, refuse_small
from activation_logging.detectors.sweep import Cell, Sweep, cross_validate, fit_sweep
from activation_logging.detectors.transfer import transfer_matrix
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.extras import require
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Examples
    from activation_logging.store import Store

RARE = 0.05
"""A position that more than this share of the answers lacks is left out of the study; where fewer
lack it, those answers are."""

States = dict[Cell, npt.NDArray[np.float32]]


def run_study(
    store: Store,
    label: str | None = None,
    options: Options | None = None,
    *,
    progress: Progress = silent,
) -> Study:
    """Fit and evaluate every detector on the answers that one evaluator has judged.

    Args:
        store: an open store.
        label: the evaluator's name; may be left out where only one has judged.
        options: which classes, layers and positions, how many folds, which seed.
        progress: told what is being done.

    Raises:
        DatasetError: the answers cannot be learned from, or there are too few; says what to do.
        ExtraMissing: scikit-learn is not installed.
        PluginError: a detector of another package cannot be used.
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Fits this small lose more to threads waiting for each other than they gain.
    with threadpool_limits(1):
        return _run_study(store, label, options or Options(), progress)


def _run_study(store: Store, label: str | None, options: Options, progress: Progress) -> Study:
    detectors = load_detectors()
    examples, layers, positions, positions_left_out = select_answers(
        store, label, options, progress
    )
    folds = make_folds(examples.y, examples.groups, folds=options.folds, seed=options.seed)
    signals = read_signals(examples, detectors, progress=progress)
    sweep = fit_sweep(
        examples, folds, layers, positions, LINEAR_PROBE, seed=options.seed, progress=progress
    )
    place, chosen = sweep.best(), sweep.choose()
    states = _read_states(examples, {place, *chosen, *_cells_of(detectors, sweep)}, progress)
    usable = [detector for detector in detectors if _is_usable(detector, sweep, signals)]
    fitted = [
        _fit(detector, sweep, states, signals, options)
        for detector in track(usable, "fitting detectors", len(usable), progress)
    ]
    baseline = next((one.scores for one in fitted if one.detector.baseline), None)
    evaluator = Evaluator(examples, folds, options, baseline)
    results = [evaluator.result(one) for one in track(fitted, "intervals", len(fitted), progress)]
    cells = {
        cell: evaluator.auroc(scores)
        for cell, scores in track(
            sweep.scores.items(), "intervals of the sweep", len(sweep.scores), progress
        )
    }
    transfer, transfer_left_out = None, ""
    try:
        transfer = transfer_matrix(examples, states[place], sweep.scores[place], folds, options)
    except InputMissing as missing:
        transfer_left_out = str(missing)
    return Study(
        examples=examples,
        options=options,
        folds=folds,
        signals=signals,
        cells=cells,
        cell_scores=sweep.scores,
        chosen=chosen,
        place=place,
        states=states,
        results=results,
        transfer=transfer,
        transfer_left_out=transfer_left_out,
        detectors_left_out={
            detector.title: signals.missing[detector.name]
            for detector in detectors
            if detector.name in signals.missing
        },
        positions_left_out=positions_left_out,
    )


def select_answers(
    store: Store, label: str | None, options: Options, progress: Progress
) -> tuple[Examples, list[int | str], list[str | int], dict[str, str]]:
    """The answers, layers and positions to study, and why other positions are left out."""
    examples = select_examples(
        store,
        label,
        positive=options.positive,
        negative=options.negative,
        model=options.model,
        tags=options.tags,
        group=options.group,
        broken=options.broken,
        progress=progress,
    )
    layers = examples.labels_of(options.layers)
    examples, positions, left_out = _positions(examples, options)
    if options.broken == "skip":
        examples = finite(examples, layers, positions, progress=progress)
    refuse_one_class(examples)
    refuse_small(examples.y, {0: examples.negative, 1: examples.positive})
    return examples, layers, positions, left_out


def _positions(
    examples: Examples, options: Options
) -> tuple[Examples, list[str | int], dict[str, str]]:
    """The examples that have every position in use, those positions, and why others are out."""
    wanted = [parse_position(position) for position in options.positions]
    located = locate(examples, wanted)
    missing = ~located.there
    used: list[int] = []
    left_out: dict[str, str] = {}
    for column, position in enumerate(wanted):
        count = int(missing[:, column].sum())
        if count <= RARE * len(examples):
            used.append(column)
            continue
        reason = next(filter(None, located.reasons[:, column]))
        by_class = ", ".join(
            f"{int(missing[examples.y == value, column].sum())} {name}"
            for value, name in ((1, examples.positive), (0, examples.negative))
        )
        left_out[str(position)] = (
            f"{count} of {len(examples)} answers have no state there ({by_class}; "
            f"{reason.partition(': ')[2]})"
        )
    if not used:
        raise DatasetError(
            "no position is there for all answers: "
            + "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        )
    keep = np.flatnonzero(~missing[:, used].any(axis=1))
    examples = examples.take(keep, why="too short for every position")
    return examples, [wanted[column] for column in used], left_out


def _cells_of(detectors: Sequence[Detector], sweep: Sweep) -> set[Cell]:
    """Where the detectors read states that the sweep has not scored already."""
    return {
        cell
        for detector in detectors
        if detector.needs == "state" and not sweep.fits(detector)
        for cell in sweep.choose(detector.where)
    }


def _read_states(examples: Examples, cells: set[Cell], progress: Progress) -> States:
    positions = sorted({cell.position for cell in cells}, key=str)
    layers = in_order(cell.layer for cell in cells)
    return {
        Cell(block.layer, position): block.X[:, column].copy()
        for block in read_blocks(examples, layers, positions, progress=progress)
        for column, position in enumerate(positions)
        if Cell(block.layer, position) in cells
    }


def _is_usable(detector: Detector, sweep: Sweep, signals: Signals) -> bool:
    if detector.needs == "state":
        return bool(sweep.choose(detector.where))
    if detector.needs == "replay":
        return detector.name in signals.features
    return detector.needs == "text" or detector.name in signals.values


def _fit(
    detector: Detector, sweep: Sweep, states: States, signals: Signals, options: Options
) -> Fitted:
    """Score every answer by one detector that was fitted on other folds."""
    cells = sweep.choose(detector.where) if detector.needs == "state" else []
    if sweep.fits(detector):
        return Fitted(detector, cells, sweep.combine(cells))
    inputs: list[Any]
    if detector.needs == "state":
        inputs = [states[cell] for cell in cells]
    elif detector.needs == "text":
        inputs = [signals.texts] * len(sweep.folds)
    elif detector.needs == "replay":
        inputs = [signals.features[detector.name]] * len(sweep.folds)
    else:
        inputs = [signals.values[detector.name][:, None]] * len(sweep.folds)
    make = partial(detector.make, options.seed)
    return Fitted(detector, cells, cross_validate(make, inputs, sweep.y, sweep.folds))
