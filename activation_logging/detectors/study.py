"""The whole study of one labelled store: every detector, everywhere, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import refuse_one_class, select_examples
from activation_logging.dataset.features import finite, read_blocks, where_there
from activation_logging.dataset.positions import parse_position
from activation_logging.detectors import metrics
from activation_logging.detectors.catalog import TEXT_CONTROL
from activation_logging.detectors.findings import Options, Result, Study
from activation_logging.detectors.lineup import Line, fit_detectors
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.detectors.probe_file import SavedProbe
from activation_logging.detectors.probes import LinearProbe
from activation_logging.detectors.samples import add_samples
from activation_logging.detectors.signals import read_signals
from activation_logging.detectors.splits import Fold, make_folds, refuse_small
from activation_logging.detectors.sweep import (
    Cell,
    Scores,
    choose,
    overall,
    sweep,
)
from activation_logging.detectors.transfer import transfer_matrix
from activation_logging.errors import DatasetError
from activation_logging.extras import require
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from activation_logging.dataset import Examples
    from activation_logging.store import Store

RARE = 0.05
"""A position that more than this share of the answers lacks is left out of the study; where fewer
lack it, those answers are."""


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
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Fits this small lose more to threads waiting for each other than they gain.
    with threadpool_limits(1):
        return _run_study(store, label, options or Options(), progress)


def _run_study(store: Store, label: str | None, options: Options, progress: Progress) -> Study:
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
    layers = _layers(examples, options)
    examples, positions, positions_left_out = _positions(examples, options)
    if options.broken == "skip":
        examples = finite(examples, layers, positions, progress=progress)
    refuse_one_class(examples)
    refuse_small(examples.y, {0: examples.negative, 1: examples.positive})
    folds = make_folds(examples.y, examples.groups, folds=options.folds, seed=options.seed)

    signals = read_signals(examples, progress=progress)
    add_samples(signals, examples, progress=progress)
    cell_scores = sweep(examples, folds, layers, positions, progress=progress)
    chosen, place = choose(cell_scores, len(folds)), overall(cell_scores)
    states = _read_cells(examples, {*chosen, place}, progress)

    judge = _Judge(examples, folds, options)
    found, detectors_left_out = fit_detectors(
        examples, folds, options, signals, cell_scores, chosen, states, progress
    )
    judge.text = next((scores for line, scores in found if line.name == TEXT_CONTROL), None)
    results = [
        judge.result(line, scores)
        for line, scores in track(found, "intervals", len(found), progress)
    ]
    cells = {
        cell: judge.auroc(scores)
        for cell, scores in track(
            cell_scores.items(), "intervals of the sweep", len(cell_scores), progress
        )
    }
    transfer = transfer_matrix(
        examples,
        states[place],
        cell_scores[place],
        [fold.test for fold in folds],
        tag=options.transfer_by,
        draws=options.draws,
        seed=options.seed,
    )
    return Study(
        examples=examples,
        options=options,
        folds=folds,
        signals=signals,
        cells=cells,
        cell_scores=cell_scores,
        chosen=chosen,
        place=place,
        states=states,
        results=results,
        transfer=transfer,
        detectors_left_out=detectors_left_out,
        positions_left_out=positions_left_out,
    )


def fit_probe(study: Study) -> SavedProbe:
    """The linear probe at the best place, fitted on all answers, for use on new ones.

    Its threshold has the best F1 on the cross-validated probabilities.
    """
    examples, place = study.examples, study.place
    probe = LinearProbe().fit(study.states[place], examples.y)
    out_of_fold = study.cell_scores[place].probability
    return SavedProbe(
        weight=probe.weight_,
        bias=probe.bias_,
        threshold=metrics.best_f1_threshold(examples.y, out_of_fold),
        layer=place.layer,
        position=place.position,
        model=examples.model,
        num_layers=examples.num_layers,
        label=examples.label,
        positive=examples.positive,
        negative=examples.negative,
        provenance={
            "answers": examples.counts(),
            "auroc": study.cells[place]._asdict(),
            "method": f"logistic regression, C = {probe.C}, standardised states",
            "seed": study.options.seed,
        },
    )


class _Judge:
    """Figures of merit of any detector's scores, all on the same bootstrap draws."""

    def __init__(self, examples: Examples, folds: list[Fold], options: Options) -> None:
        self.y = examples.y
        self.folds = folds
        self.tests = [fold.test for fold in folds]
        self.bootstrap = Bootstrap(examples.groups, draws=options.draws, seed=options.seed)
        self.text: Scores | None = None

    def auroc(self, scores: Scores) -> Interval:
        p = scores.probability
        return self.bootstrap.interval(lambda w: metrics.auroc(self.y, p, w, self.tests))

    def result(self, line: Line, scores: Scores) -> Result:
        y, p, tests = self.y, scores.probability, self.tests
        called = scores.called(self.folds)
        interval = self.bootstrap.interval
        over_text = None
        if self.text is not None and line.name != TEXT_CONTROL:
            t = self.text.probability
            over_text = interval(
                lambda w: metrics.auroc(y, p, w, tests) - metrics.auroc(y, t, w, tests)
            )
        return Result(
            **vars(line),
            auroc=self.auroc(scores),
            auprc=interval(lambda w: metrics.auprc(y, p, w, tests)),
            accuracy=interval(lambda w: metrics.accuracy(y, called, w)),
            ece=interval(lambda w: metrics.expected_calibration_error(y, p, w)),
            over_text=over_text,
            scores=scores,
        )


def _layers(examples: Examples, options: Options) -> list[int]:
    if options.layers is None:
        return list(examples.layers)
    return sorted({examples.layer_number(layer) for layer in options.layers})


def _positions(
    examples: Examples, options: Options
) -> tuple[Examples, list[str | int], dict[str, str]]:
    """The positions to use, the examples that have them all, and why the others are out."""
    wanted = [parse_position(position) for position in options.positions]
    found, there = where_there(examples, wanted)
    used: list[str | int] = []
    left_out: dict[str, str] = {}
    for column, position in enumerate(wanted):
        missing = int((~there[:, column]).sum())
        if missing <= RARE * len(examples):
            used.append(position)
            continue
        reason = next(cell for row in found if isinstance(cell := row[column], str))
        by_class = ", ".join(
            f"{int((~there[examples.y == value, column]).sum())} {name}"
            for value, name in ((1, examples.positive), (0, examples.negative))
        )
        left_out[str(position)] = (
            f"{missing} of {len(examples)} answers have no state there ({by_class}; "
            f"{reason.partition(': ')[2]})"
        )
    if not used:
        raise DatasetError(
            "no position is there for all answers: "
            + "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        )
    keep = there[:, [wanted.index(position) for position in used]].all(axis=1)
    examples = examples.take(np.flatnonzero(keep), why="too short for every position")
    return examples, used, left_out


def _read_cells(
    examples: Examples, cells: set[Cell], progress: Progress
) -> dict[Cell, npt.NDArray[np.float32]]:
    positions = sorted({cell.position for cell in cells}, key=str)
    layers = sorted({cell.layer for cell in cells})
    return {
        Cell(block.layer, position): block.X[:, column].copy()
        for block in read_blocks(examples, layers, positions, progress=progress)
        for column, position in enumerate(positions)
        if Cell(block.layer, position) in cells
    }
