"""The whole study of one labelled store: sweep, choose, fit, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.dataset.examples import or_claims, refuse_one_class, select_examples
from activation_logging.dataset.features import finite, locate, read_blocks
from activation_logging.dataset.layers import in_order
from activation_logging.dataset.positions import parse_position
from activation_logging.detectors.conformal import calibration_cuts
from activation_logging.detectors.fitting import Inputs, States
from activation_logging.detectors.held_out import split
from activation_logging.detectors.inputs import read_signals
from activation_logging.detectors.linear import LINEAR_PROBE
from activation_logging.detectors.registry import load_detectors
from activation_logging.detectors.results import Evaluator, Fitted, Options, Study
from activation_logging.detectors.splits import refuse_small
from activation_logging.detectors.sweep import Cell, Fit, Sweep, Task, fit_here, fit_sweep
from activation_logging.detectors.transfer import fill_transfer, plan_transfer
from activation_logging.detectors.trust import study_trust
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.extras import require
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.registry import Detector
    from activation_logging.store import Store

RARE = 0.05
"""A position that more than this share of the answers lacks is left out of the study; where fewer
lack it, those answers are."""


def run_study(
    store: Store,
    label: str | None = None,
    options: Options | None = None,
    *,
    fit: Fit | None = None,
    progress: Progress = silent,
) -> Study:
    """Fit and evaluate every detector on the answers that one evaluator has judged.

    Args:
        store: an open store.
        label: the evaluator's name; may be left out where only one has judged.
        options: which classes, layers and positions, how many folds, which seed.
        fit: where the probes at every layer and position are fitted: on this machine if left out,
            or on a Ray cluster (:func:`activation_logging.ray.fit_on_ray`).
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
        return _run_study(store, label, options or Options(), fit or fit_here, progress)


def _run_study(
    store: Store, label: str | None, options: Options, fit: Fit, progress: Progress
) -> Study:
    detectors = load_detectors()
    examples, layers, positions, positions_left_out = select_answers(
        store, label, options, progress
    )
    examples, folds = split(examples, options)
    signals = read_signals(examples, detectors, progress=progress)
    transfer, transfer_left_out = None, ""
    try:
        transfer = plan_transfer(examples, folds, options)
    except InputMissing as missing:
        transfer_left_out = str(missing)
    cuts = calibration_cuts(examples, folds, seed=options.seed)
    trials = [*(cut.trial for cut in cuts), *(transfer.trials if transfer else ())]
    task = Task(examples, folds, LINEAR_PROBE, trials, options.seed)
    sweep = fit_sweep(task, layers, positions, fit=fit, progress=progress)
    place, chosen, tried = sweep.best(), sweep.choose(), sweep.choose_tried()
    cells_read = {place, *chosen, *tried, *_cells_of(detectors, sweep)}
    states = _read_states(examples, cells_read, progress)
    inputs = Inputs(examples, sweep, states, signals, options.seed, fit)
    fitted, left_out = inputs.fit(detectors, progress)
    evaluator = Evaluator(examples, folds, options)
    controls = evaluator.controls(fitted)
    results = [
        evaluator.result(one, controls) for one in track(fitted, "intervals", len(fitted), progress)
    ]
    cells = {
        cell: evaluator.auroc(scores)
        for cell, scores in track(
            sweep.scores.items(), "intervals of the sweep", len(sweep.scores), progress
        )
    }
    if transfer:
        fill_transfer(
            transfer,
            examples,
            places=tried[len(cuts) :],
            states=states,
            within=sweep.combine(chosen),
            folds=folds,
            options=options,
        )
    main = _main_probe(fitted)
    trust = study_trust(
        examples,
        folds,
        evaluator.bootstrap,
        controls,
        {
            one.detector.name: inputs.refit(one.detector, one.cells)
            for one in (main, controls.best)
            if one is not None
        },
        calibrated=(cuts, inputs.refit(main.detector, tried[: len(cuts)])),
        seed=options.seed,
        progress=progress,
    )
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
        trust=trust,
        detectors_left_out=left_out,
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
    try:
        refuse_small(examples.y, {0: examples.negative, 1: examples.positive})
    except DatasetError as error:
        raise DatasetError(f"{error}{or_claims(examples)}") from None
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
    examples = examples.take(keep, why="without a state at every position")
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


def _main_probe(fitted: Sequence[Fitted]) -> Fitted:
    """The linear probe, where each fold's validation part chose."""
    return next(one for one in fitted if one.detector.name == LINEAR_PROBE.name)
