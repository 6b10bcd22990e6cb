"""From labelled answers to a saved linear probe with all that is to be known of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.dataset.features import read_blocks
from activation_logging.detectors import metrics
from activation_logging.detectors.drift import Reference
from activation_logging.detectors.fitted_on import fitted_on, prompts_of, subjects_among
from activation_logging.detectors.held_out import split
from activation_logging.detectors.linear import LINEAR_PROBE, LinearProbe
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.detectors.operating import (
    calibrate,
    calibration_error,
    operating_points,
)
from activation_logging.detectors.probe_controls import Rivals, beside, controls_of_answers
from activation_logging.detectors.results import Options
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.study import select_answers
from activation_logging.detectors.sweep import Cell, Scores, Task, fit_sweep
from activation_logging.detectors.text import TEXT_ONLY
from activation_logging.extras import require
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.detectors.results import Study
    from activation_logging.detectors.splits import Fold
    from activation_logging.store import Store

_EDGE = 1e-16


def fit_answer_probe(
    store: Store,
    label: str | None = None,
    options: Options | None = None,
    *,
    progress: Progress = silent,
) -> SavedProbe:
    """Choose a layer and a position, and fit a linear probe there, for use on new answers.

    Args:
        store: an open store.
        label: the evaluator's name; may be left out where only one has judged.
        options: which classes, layers and positions, how many folds, which seed.
        progress: told what is being done.

    Raises:
        DatasetError: the answers cannot be learned from, or there are too few; says what to do.
        ExtraMissing: scikit-learn is not installed.
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    options = options or Options()
    with threadpool_limits(1):
        examples, layers, positions, _ = select_answers(store, label, options, progress)
        examples, folds = split(examples, options)
        task = Task(examples, folds, LINEAR_PROBE, seed=options.seed)
        sweep = fit_sweep(task, layers, positions, progress=progress)
        place = sweep.best()
        (block,) = read_blocks(examples, [place.layer], [place.position], progress=progress)
        return _make(
            examples,
            folds,
            place,
            block.X[:, 0],
            held_out=sweep.scores[place],
            nested=sweep.combine(sweep.choose()),
            controls=controls_of_answers(examples, folds, options.seed, progress)[0],
            options=options,
        )


def fit_probe(study: Study) -> SavedProbe:
    """The linear probe at a study's best place, fitted on all answers, for use on new ones."""
    controls = {one.name: one.scores.probability for one in study.results if one.control}
    return _make(
        study.examples,
        study.folds,
        study.place,
        study.states[study.place],
        held_out=study.cell_scores[study.place],
        nested=study.result(LINEAR_PROBE.name).scores,
        controls=Rivals([fold.test for fold in study.folds], controls),
        options=study.options,
    )


def _make(
    examples: Examples,
    folds: Sequence[Fold],
    place: Cell,
    states: npt.NDArray[np.float32],
    *,
    held_out: Scores,
    nested: Scores,
    controls: Rivals,
    options: Options,
) -> SavedProbe:
    """The probe at one place.

    Args:
        examples: the answers.
        folds: their splits.
        place: where the probe reads.
        states: the states there, ``[n, width]``.
        held_out: what probes at that place said, each answer as part of the test side. It gives
            the calibration and the thresholds.
        nested: the same at the place that each fold chose by itself. It gives the report, since
            the choice of ``place`` has seen all answers.
        controls: what is told without states, on the same folds.
        options: number of resamples, and the seed.
    """
    y = examples.y
    bootstrap = Bootstrap(examples.groups, draws=options.draws, seed=options.seed)
    fitted = LinearProbe().fit(states, y)
    log_odds = _log_odds(held_out.probability)
    calibration = calibrate(log_odds, y)
    probe = SavedProbe(
        kind="answer",
        form="linear",
        tensors={"weight": fitted.coef_[0], "bias": fitted.intercept_},
        sources=(place.layer,),
        position=place.position,
        threshold=0.5,
        calibration=calibration,
        model=examples.model,
        num_layers=examples.num_layers,
        label=examples.label,
        positive=examples.positive,
        negative=examples.negative,
    )
    probability = probe.probability(log_odds)
    report = _report(y, nested.probability, controls, bootstrap)
    report["ece"] = calibration_error(log_odds, y, controls.parts, bootstrap)._asdict()
    report |= Reference.of(probability).as_json()
    names = np.where(y == 1, examples.positive, examples.negative)
    return replace(
        probe,
        threshold=metrics.best_f1_threshold(y, probability),
        operating_points=operating_points(y, probability, bootstrap),
        data={
            **fitted_on(examples.keys, names),
            **examples.counts(),
            "groups": len(np.unique(examples.groups)),
            "store": examples.store.path.name,
        },
        prompts=prompts_of(examples.keys),
        subjects=subjects_among(examples.tags, options.group),
        report=report,
        provenance={
            "method": f"logistic regression, C = {fitted.C}, standardised states",
            "folds": len(folds),
            "seed": options.seed,
            "draws": options.draws,
        },
    )


def _report(
    y: npt.NDArray[np.int64],
    p: npt.NDArray[np.float64],
    controls: Rivals,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Metrics of cross-validated scores beside those of the controls, with intervals."""
    interval, tests = bootstrap.interval, controls.parts
    text = controls.scores[TEXT_ONLY.name]

    def auroc(score: npt.NDArray[np.float64]) -> Interval:
        return interval(lambda w: metrics.auroc(y, score, w, tests))

    return {
        "auroc": auroc(p)._asdict(),
        "auprc": interval(lambda w: metrics.auprc(y, p, w, tests))._asdict(),
        "aurc": interval(lambda w: metrics.aurc(y, p, w, tests))._asdict(),
        "recall_at": {
            str(rate): interval(
                partial(metrics.recall_at_fpr, y, p, folds=tests, fpr=rate)
            )._asdict()
            for rate in metrics.FALSE_POSITIVE_RATES
        },
        "text_only": {"auroc": auroc(text)._asdict()},
        "over_text": interval(lambda w: metrics.auroc_over(y, p, text, w, tests))._asdict(),
        **beside(controls, y, p, bootstrap).as_json(),
    }


def _log_odds(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    p = np.clip(probability, _EDGE, 1 - _EDGE)
    return np.log(p) - np.log1p(-p)
