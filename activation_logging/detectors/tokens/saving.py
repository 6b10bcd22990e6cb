"""From a study of tokens to a probe that can be saved, with all that is to be known of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from activation_logging.detectors import metrics
from activation_logging.detectors.drift import Reference
from activation_logging.detectors.fitted_on import (
    claims_fitted_on,
    fitted_on,
    prompts_of,
    subjects_among,
)
from activation_logging.detectors.metrics import Bootstrap
from activation_logging.detectors.operating import calibrate, operating_points
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.tokens.answers import (
    KINDS,
    Chosen,
    held_answers,
    highest_of_answers,
    pooled_probes,
)
from activation_logging.detectors.tokens.cells import Split
from activation_logging.detectors.tokens.fitting import Problems
from activation_logging.detectors.tokens.losses import Runs
from activation_logging.detectors.tokens.rows import InMemory, gather
from activation_logging.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.arrays import Floats
    from activation_logging.detectors.tokens.results import (
        LevelName,
        TokenResult,
        TokenStudy,
    )


FormName = Literal["linear", "attention", "multimax"]


def fit_token_probe(
    study: TokenStudy, form: FormName = "linear", *, span_max: bool = False
) -> SavedProbe:
    """A probe at a study's best place, fitted on all of its answers, for use on new ones.

    A linear probe is one of tokens. Its probabilities are calibrated on held-out tokens, and its
    thresholds count claims: a claim is flagged where its highest token is. The other forms are
    probes of answers, of which those with a contradicted claim are ``hallucinated`` and the others
    ``correct``.

    Args:
        study: what :func:`.run_token_study` gave.
        form: ``linear``, ``attention`` or ``multimax``.
        span_max: fit the highest token of each claim in the end; only for ``linear``.

    Raises:
        DatasetError: the study has no probes of whole answers; says why.
    """
    if form == "linear":
        return _of_tokens(study, span_max=span_max)
    return _of_answers(study, form)


def _of_tokens(study: TokenStudy, *, span_max: bool) -> SavedProbe:
    tokens = study.tokens.at(*study.place.layers)
    runs = Runs.of(tokens.rows.span)
    rows = gather((batch.X for batch in tokens.batches()), len(tokens), tokens.width)
    everything = np.ones((len(tokens), 1), bool)
    problems = Problems(rows, tokens.y, tokens.weights, everything, runs)
    (fitted,) = problems.fit([study.place.C], span_max=span_max)
    row = study.result("token_span_max" if span_max else "token_linear")
    held_out, answers = study.held_out, study.held_out_answers
    if span_max:
        # The row's own scores are of the place of each fold, whose penalties give other log-odds.
        split, place = Split.of(tokens, study.folds), study.place
        cells = split.cells(rows, place.layers, [place.C], span_max=True)
        held_out = cells[place].token
        (answers,) = highest_of_answers(split, [Chosen(cells, [place] * len(study.folds))])
    judged = np.flatnonzero(tokens.rows.span >= 0)
    span_odds = runs.highest(held_out)[tokens.rows.span[runs.starts] >= 0]
    spans = tokens.spans
    probe = SavedProbe(
        kind="token",
        form="linear",
        tensors={"weight": fitted.weight[0], "bias": fitted.bias},
        sources=study.place.layers,
        position=None,
        threshold=0.5,
        calibration=calibrate(held_out[judged], tokens.y[judged]),
        model=tokens.model,
        num_layers=tokens.num_layers,
        label=tokens.label,
        positive="contradicted",
        negative="supported",
    )
    return _with_thresholds(
        probe,
        study,
        (span_odds, spans.y, tokens.answer_groups[spans.answer]),
        answers=answers,
        data=claims_fitted_on(tokens),
        report=_report(study, row, "span"),
        method="maximum over claims" if span_max else "cross-entropy over tokens",
    )


def _of_answers(study: TokenStudy, form: FormName) -> SavedProbe:
    name = f"answer_{form}"
    try:
        row = study.result(name)
    except KeyError:
        reason = study.left_out.get("Whole answers", "the option answers was off")
        raise DatasetError(f"the study has no {form} probe of answers: {reason}") from None
    odds = row.scores.answer
    if any(one.layers != study.place.layers for one in study.chosen):
        # The row's own scores are of the layer of each fold, which gives other log-odds.
        (here,) = pooled_probes(
            Split.of(study.tokens, study.folds),
            study.wrong,
            [study.place] * len(study.folds),
            names=[name],
            seed=study.options.seed,
        )
        odds = here.scores.answer
    assert odds is not None
    tokens = study.tokens.at(*study.place.layers)
    X, answer = held_answers(tokens, seed=study.options.seed)
    runs = Runs.of(answer)
    number = answer[runs.starts]
    kind = KINDS[name][2](random_state=study.options.seed)
    weight = np.ones((len(number), 1))
    (fitted,) = kind.fit_many(InMemory(X), study.wrong[number], weight, runs)
    probe = SavedProbe(
        kind="answer",
        form=form,
        tensors=fitted.tensors_,
        sources=study.place.layers,
        position=None,
        threshold=0.5,
        calibration=calibrate(odds, study.wrong),
        model=tokens.model,
        num_layers=tokens.num_layers,
        label=tokens.label,
        positive="hallucinated",
        negative="correct",
    )
    names = np.where(study.wrong == 1, "hallucinated", "correct")
    return _with_thresholds(
        probe,
        study,
        (odds, study.wrong, tokens.answer_groups),
        answers=odds,
        data=fitted_on(tokens.keys, names),
        report=_report(study, row, "answer"),
        method=f"{form}, {kind.heads} heads, C = {kind.C}",
    )


def _with_thresholds(
    probe: SavedProbe,
    study: TokenStudy,
    held_out: tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.str_]],
    *,
    answers: Floats,
    data: dict[str, Any],
    report: dict[str, Any],
    method: str,
) -> SavedProbe:
    """With thresholds from held-out log-odds, classes and groups; and where it is from.

    ``answers`` are the held-out log-odds of whole answers, ``[k]``.
    """
    odds, y, groups = held_out
    options, tokens = study.options, study.tokens
    probability = probe.probability(odds)
    bootstrap = Bootstrap(groups, draws=options.draws, seed=options.seed)
    return replace(
        probe,
        threshold=metrics.best_f1_threshold(y, probability),
        operating_points=operating_points(y, probability, bootstrap),
        data={
            **data,
            probe.positive: int(y.sum()),
            probe.negative: int((1 - y).sum()),
            "groups": len(np.unique(groups)),
            "store": tokens.store.path.name,
        },
        prompts=prompts_of(tokens.keys),
        subjects=subjects_among(tokens.tags, options.group),
        report={
            **report,
            **Reference.of(probe.probability(answers[np.isfinite(answers)])).as_json(),
        },
        provenance={
            "method": f"logistic regression, {method}, C = {study.place.C}, standardised states"
            if probe.kind == "token"
            else method,
            "folds": len(study.folds),
            "seed": options.seed,
            "draws": options.draws,
        },
    )


def _report(study: TokenStudy, row: TokenResult, main: LevelName) -> dict[str, Any]:
    """The metrics of one level, those without states there, and AUROCs of all levels."""
    levels = {name: {"auroc": level.auroc._asdict()} for name, level in row.levels.items()}
    controls = {
        one.name: {"auroc": one.levels[main].auroc._asdict()}
        for one in study.results
        if one.role in {"signal", "control"} and main in one.levels
    }
    return {**row.levels[main].as_json(), "controls": controls, "by": levels}
