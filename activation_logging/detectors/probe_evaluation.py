"""A saved probe tried on labels that it was not fitted on: another store, or another benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import select_examples
from activation_logging.dataset.tokens import make_tokens
from activation_logging.detectors import metrics
from activation_logging.detectors.answer_scores import ABOUT, FITTED
from activation_logging.detectors.fitted_on import (
    claims_fitted_on,
    fitted_on,
    is_about,
    prompt_number,
)
from activation_logging.detectors.forms import form_of
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.detectors.probe_controls import (
    Rivals,
    beside,
    rivals_of_answers,
    rivals_of_tokens,
)
from activation_logging.detectors.splits import refuse_small
from activation_logging.detectors.tokens.scored import highest_of
from activation_logging.errors import DatasetError, ProbeError, RowsMissing
from activation_logging.extras import require
from activation_logging.progress import Progress, silent, track
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.arrays import AnyFloats, Floats, Ints
    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.detectors.tokens.results import LevelName
    from activation_logging.records import Label
    from activation_logging.store import Store


class Point(NamedTuple):
    """What one of the probe's own thresholds does here.

    ``promised`` is the share of false positives that it was chosen for.
    """

    promised: float
    threshold: float
    false_positive_rate: Interval
    recall: Interval


@dataclass(frozen=True)
class Level:
    """How good the probe is at one level: of answers, claims, their first tokens, or tokens.

    A token counts for its share of its claim, as in a study. ``aurc`` is the area under risk
    against coverage, see :func:`.metrics.aurc`; less is better.

    ``accuracy`` and ``points`` are at the probe's own thresholds, ``recall_at`` at the best ones
    here. ``controls`` are the AUROCs of what is told without states, by name, cross-validated on
    these answers; ``over_best_control`` is the probe's AUROC less that of the best of them. Both
    are within the folds of the controls. None where there is none.
    """

    positives: int
    negatives: int
    auroc: Interval
    auprc: Interval
    aurc: Interval
    accuracy: Interval
    ece: Interval
    recall_at: Mapping[float, Interval]
    points: Sequence[Point]
    controls: Mapping[str, Interval] = field(default_factory=dict)
    best_control: str | None = None
    over_best_control: Interval | None = None


@dataclass(frozen=True)
class ProbeEvaluation:
    """What came out: ``levels`` by name, what was ``left_out`` by reason, and ``warnings``.

    ``controls_left_out`` says by title why the probe is not compared with a control.
    """

    label: str
    model: str
    levels: Mapping[str, Level]
    left_out: Mapping[str, int]
    warnings: Sequence[str] = field(default_factory=list)
    controls_left_out: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return cast("dict[str, Any]", _plain(self))


class _Asked(NamedTuple):
    """The arguments of :func:`evaluate_probe`."""

    label: str | None
    tags: Mapping[str, str]
    group: Sequence[str]
    draws: int
    seed: int
    progress: Progress

    def bootstrap(self, groups: npt.NDArray[np.str_], weight: Floats | None = None) -> Bootstrap:
        return Bootstrap(groups, draws=self.draws, seed=self.seed, weight=weight)


class _Sides(NamedTuple):
    """Examples of one level: classes and probabilities, ``[n]``."""

    y: Ints
    p: AnyFloats
    bootstrap: Bootstrap


def evaluate_probe(
    store: Store,
    probe: SavedProbe,
    label: str | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    group: Sequence[str] = GROUP_TAGS,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> ProbeEvaluation:
    """Evaluate a probe on the labels of a store.

    Answers to prompts that the probe was fitted on, or about the same things, are left out, and
    counted.

    Args:
        store: an open store.
        probe: the probe.
        label: the evaluator's name; may be left out where only one has judged.
        tags: only answers that carry all of these tags.
        group: tags that name what an answer is about; intervals are over these.
        draws: number of bootstrap resamples.
        seed: of resamples and of the control's folds.
        progress: told what is being done.

    Raises:
        ProbeError: all are answers that the probe was fitted on or about the same things, or it
            does not fit them.
        DatasetError: there are too few labels, or none by the probe's model.
        ExtraMissing: scikit-learn is not installed.
        PluginError: a detector of another package cannot be used.
    """
    require("detect", "sklearn")
    evaluate = _tokens if probe.kind == "token" else _answers
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    asked = _Asked(label, tags or {}, group, draws, seed, progress)
    # Fits this small lose more to threads waiting for each other than they gain.
    with threadpool_limits(1):
        return evaluate(store, probe, asked)


def _answers(store: Store, probe: SavedProbe, asked: _Asked) -> ProbeEvaluation:
    examples = select_examples(
        store,
        asked.label,
        positive=cast("Label", probe.positive),
        negative=cast("Label", probe.negative),
        model=probe.model,
        tags=asked.tags,
        group=asked.group,
        broken="skip",
        progress=asked.progress,
    )
    names = np.where(examples.y == 1, examples.positive, examples.negative)
    digest = fitted_on(examples.keys, names)["digest"]
    prompts, about = _known(probe, examples.keys, examples.tags, digest)
    examples = examples.take(np.flatnonzero(~prompts), why=FITTED)
    examples = examples.take(np.flatnonzero(~about[~prompts]), why=ABOUT)
    p = np.full(len(examples), np.nan)
    why = ""
    for row, entry in enumerate(
        track(examples.entries(), "scoring", len(examples), asked.progress)
    ):
        try:
            p[row] = probe.score(entry)
        except (RowsMissing, DatasetError) as error:  # noqa: PERF203 - of one answer alone
            why = why or str(error)
    there = np.flatnonzero(np.isfinite(p))
    if not len(there):
        raise ProbeError(
            f"none of the {len(examples)} answers has what the probe reads, {probe.source} at "
            f"{probe.position or 'its tokens'} ({why}); log it, or fit a probe on what is there"
        )
    examples = examples.take(there, why=f"without a usable state ({why})")
    refuse_small(examples.y, {0: examples.negative, 1: examples.positive})
    sides = _Sides(examples.y, p[there], asked.bootstrap(examples.groups))
    level = _level(sides, probe)
    controls_left_out: dict[str, str] = {}
    warnings = _warnings(probe, int(prompts.sum()))
    try:
        rivals, controls_left_out = rivals_of_answers(examples, asked.seed, asked.progress)
        level = _beside(level, rivals, sides)
    except DatasetError as error:
        warnings.append(f"there are no controls: {error}")
    return ProbeEvaluation(
        examples.label,
        examples.model,
        {"answer": level},
        examples.left_out,
        warnings,
        controls_left_out,
    )


def _tokens(store: Store, probe: SavedProbe, asked: _Asked) -> ProbeEvaluation:
    tokens = make_tokens(
        store,
        asked.label,
        layer=list(probe.sources),
        model=probe.model,
        tags=asked.tags,
        group=asked.group,
        broken="skip",
        progress=asked.progress,
    )
    width = form_of(probe.form).width(probe.tensors)
    if (tokens.num_layers, tokens.width) != (probe.num_layers, width):
        raise ProbeError(
            f"the probe was fitted on {probe.num_layers} layers of {width}, these answers have "
            f"{tokens.num_layers} of {tokens.width}"
        )
    digest = claims_fitted_on(tokens)["digest"]
    prompts, about = _known(probe, tokens.keys, tokens.tags, digest)
    of_answer = tokens.rows.answer
    about = about[of_answer][~prompts[of_answer]]
    # What is counted here are tokens.
    tokens = tokens.without(prompts[of_answer], f"tokens of answers {FITTED}")
    tokens = tokens.without(about, f"tokens of answers {ABOUT}")
    names = {0: probe.negative, 1: probe.positive}
    spans = tokens.spans
    refuse_small(spans.y, names)
    p = np.concatenate([probe.of_tokens(batch.X) for batch in tokens.batches()])
    judged = tokens.rows.span >= 0
    number, token = tokens.rows.span[judged], p[judged]
    span = highest_of(token, number)
    _, firsts = np.unique(number, return_index=True)
    answer = np.full(len(tokens.keys), np.nan)
    for run in tokens.whole_answers():
        for one in np.unique(run.answer):
            answer[one] = probe.of_answer(run.X[run.answer == one])
    of_spans = tokens.answer_groups[spans.answer]
    of_tokens = tokens.groups[judged]
    sides: dict[LevelName, _Sides] = {
        "span": _Sides(spans.y, span, asked.bootstrap(of_spans)),
        "first": _Sides(spans.y, token[firsts], asked.bootstrap(of_spans)),
        # As in a study: a claim counts once, however long it is.
        "token": _Sides(
            tokens.y[judged], token, asked.bootstrap(of_tokens, tokens.weights[judged])
        ),
        "answer": _Sides(spans.wrong_answers(), answer, asked.bootstrap(tokens.answer_groups)),
    }
    warnings = _warnings(probe, int(prompts.sum()))
    rivals: dict[LevelName, Rivals] = {}
    controls_left_out: dict[str, str] = {}
    try:
        rivals, controls_left_out = rivals_of_tokens(tokens, asked.seed, asked.progress)
    except DatasetError as error:
        warnings.append(f"there are no controls: {error}")
    levels: dict[str, Level] = {}
    for name, here in sides.items():
        try:
            refuse_small(here.y, names)
        except DatasetError as error:
            warnings.append(f"{name}: {error}")
            continue
        levels[name] = _level(here, probe)
        if name in rivals:
            levels[name] = _beside(levels[name], rivals[name], here)
    return ProbeEvaluation(
        tokens.label, tokens.model, levels, tokens.left_out, warnings, controls_left_out
    )


def _known(
    probe: SavedProbe,
    keys: Sequence[str],
    tags: Sequence[Mapping[str, str]],
    digest: str,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which answers are to prompts that the probe was fitted on, and which about its subjects.

    Args:
        probe: the probe.
        keys: of the answers.
        tags: of the answers.
        digest: what :func:`.fitted_on` says of the answers and their labels.

    Returns:
        Two times ``[n]``.

    Raises:
        ProbeError: nothing is left.
    """
    same = probe.data.get("digest") == digest
    prompts = np.array([prompt_number(key) in probe.known_prompts for key in keys])
    about = np.array([is_about(own, probe.known_subjects) for own in tags])
    if same or (prompts | about).all():
        these = (
            "these"
            if same
            else "the prompts of these"
            if prompts.all()
            else "the prompts or the subjects of these"
        )
        raise ProbeError(
            f"the probe was fitted on {these} {len(keys)} "
            "answers: a number from them would mean nothing; `activation-logging probe show` has "
            "the cross-validated ones, and other answers can be evaluated here"
        )
    return prompts, about


def _warnings(probe: SavedProbe, count: int) -> list[str]:
    """What cannot be known of a probe; ``count`` answers are to prompts that it was fitted on."""
    found = []
    if count and not len(probe.subjects):
        found.append(f"left out {count} answers {FITTED}; their subjects may be the others' too")
    # A recalibrated one knows prompts, but those of later labels alone.
    if not len(probe.prompts) or "digest" not in probe.data:
        found.append("the probe does not say what it was fitted on: these answers may be among it")
    return found


def _level(sides: _Sides, probe: SavedProbe) -> Level:
    y, p, bootstrap = sides
    everything = [np.arange(len(y))]
    interval = bootstrap.interval
    predicted = (p >= probe.threshold).astype(np.int64)
    return Level(
        positives=int(y.sum()),
        negatives=int((1 - y).sum()),
        auroc=interval(partial(metrics.auroc, y, p, folds=everything)),
        auprc=interval(partial(metrics.auprc, y, p, folds=everything)),
        aurc=interval(partial(metrics.aurc, y, p, folds=everything)),
        accuracy=interval(partial(metrics.accuracy, y, predicted)),
        ece=interval(partial(metrics.expected_calibration_error, y, p)),
        recall_at={
            rate: interval(partial(metrics.recall_at_fpr, y, p, folds=everything, fpr=rate))
            for rate in metrics.FALSE_POSITIVE_RATES
        },
        points=[
            Point(
                point.false_positive_rate,
                point.threshold,
                interval(partial(_share_of, p >= point.threshold, 1 - y)),
                interval(partial(_share_of, p >= point.threshold, y)),
            )
            for point in probe.operating_points
        ],
    )


def _beside(level: Level, rivals: Rivals, sides: _Sides) -> Level:
    return replace(level, **beside(rivals, *sides)._asdict())


def _share_of(flagged: npt.NDArray[np.bool_], among: Ints, weights: AnyFloats) -> AnyFloats:
    """The share of ``among`` that is flagged, ``[resamples]``; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ (flagged * among)) / (weights @ among))


def _plain(value: Any) -> Any:
    if isinstance(value, (Interval, Point)):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (ProbeEvaluation, Level)):
        return {name: _plain(part) for name, part in vars(value).items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
