"""A probe's probabilities and thresholds moved to labels that came later, such as users' feedback.

The weights stay, and with them the ranking. What changes is the logistic curve from log-odds to
probabilities (Platt 1999), and the thresholds, which are set anew at the shares of false positives
that they stood for. Two numbers are fitted, so a few dozen labels of each class are enough where a
new probe would need hundreds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import choose_evaluator, listing
from activation_logging.dataset.groups import join_groups, subjects_of
from activation_logging.detectors import metrics
from activation_logging.detectors.answer_scores import answer_said, own_rows, scored_answers
from activation_logging.detectors.drift import Reference
from activation_logging.detectors.fitted_on import fitted_on, prompts_of, subjects_among
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.detectors.operating import SMALLEST_SLOPE, calibrate, operating_points
from activation_logging.detectors.saved_probe import Calibration, SavedProbe, probability_of
from activation_logging.detectors.splits import make_folds, refuse_small
from activation_logging.errors import DatasetError, InputMissing, ProbeError
from activation_logging.extras import require
from activation_logging.progress import Progress, silent
from activation_logging.store.query import Filter
from activation_logging.store.statistics import counts
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.arrays import Floats, Ints
    from activation_logging.records import Evaluation
    from activation_logging.store import Entry, Store

_EDGE = float(np.finfo(np.float32).epsneg)
"""Scores are kept as float32: nearer to 1 than this there is only 1 itself."""


class Reliability(NamedTuple):
    """How far the probabilities are from what happens, with 95 % intervals over groups.

    ``brier`` is the mean squared distance of probability and class (Brier 1950), ``ece`` the
    expected calibration error, see :func:`.metrics.expected_calibration_error`.
    """

    brier: Interval
    ece: Interval

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {"brier": self.brier._asdict(), "ece": self.ece._asdict()}


@dataclass(frozen=True)
class Recalibrated:
    """What came out.

    ``before`` is of the probe as it was, ``after`` of curves that were fitted on the other folds,
    ``gain`` the Brier score before less that after. ``positives`` and ``negatives`` count what the
    thresholds decide on, answers or claims; ``at`` says what the main threshold was chosen for.
    """

    probe: SavedProbe
    before: Reliability
    after: Reliability
    gain: Interval
    positives: int
    negatives: int
    at: str
    left_out: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """For JSON, without the probe."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "gain": self.gain._asdict(),
            "positives": self.positives,
            "negatives": self.negatives,
            "at": self.at,
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True)
class RecalibrationOptions:
    """How to recalibrate.

    Attributes:
        name: what the probe's scores are called beside the entries; of entries without them, the
            rows give them.
        rate: the share of false positives to set the main threshold for; None for that which the
            probe's threshold was set for, or the best F1 where it was set for none.
        since: only answers asked at this time or later, seconds since the epoch.
        until: only answers asked before this time.
        tags: only answers that carry all of these tags.
        group: tags that name what an answer is about, so that it is never on both sides.
        folds: number of parts of the cross-fitting.
        draws: number of bootstrap resamples.
        seed: of folds and resamples.
    """

    name: str
    rate: float | None = None
    since: float | None = None
    until: float | None = None
    tags: Mapping[str, str] | None = None
    group: Sequence[str] = GROUP_TAGS
    folds: int = 5
    draws: int = 1000
    seed: int = 0


class _Level(NamedTuple):
    """Probabilities by the probe as it is, classes, and the number of the answer, ``[n]`` each."""

    p: Floats
    y: Ints
    answer: Ints


class _Labelled(NamedTuple):
    """What was labelled: ``fitted`` has what the curve is fitted on, ``decided`` what is flagged.

    Of a probe of tokens these are the tokens of claims, and the claims; of others both are answers.
    """

    fitted: _Level
    decided: _Level
    keys: Sequence[str]
    labels: Sequence[str]
    tags: Sequence[Mapping[str, str]]
    groups: npt.NDArray[np.str_]


def recalibrate(
    store: Store,
    probe: SavedProbe,
    label: str | None,
    options: RecalibrationOptions,
    *,
    progress: Progress = silent,
) -> Recalibrated:
    """Fit a probe's calibration and thresholds again, on labels of a store.

    Args:
        store: an open store.
        probe: the probe.
        label: the evaluator's name; may be left out where only one has judged.
        options: which scores and labels, and how.
        progress: told what is being done.

    Raises:
        DatasetError: there are too few labels of a class, or the scores do not rise with them.
        ExtraMissing: scikit-learn is not installed.
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    label = choose_evaluator(store, label, counts(store, progress))
    left_out: Counter[str] = Counter()
    asked = _Asked(store, probe, label, options)
    found = _labelled(asked, left_out, progress)
    with threadpool_limits(1):
        return _fit(asked, found, left_out)


class _Asked(NamedTuple):
    """The arguments of :func:`recalibrate`."""

    store: Store
    probe: SavedProbe
    label: str
    options: RecalibrationOptions

    def bootstrap(self, groups: npt.NDArray[np.str_]) -> Bootstrap:
        return Bootstrap(groups, draws=self.options.draws, seed=self.options.seed)


def _fit(asked: _Asked, found: _Labelled, left_out: Mapping[str, int]) -> Recalibrated:
    probe, options = asked.probe, asked.options
    fitted, decided = found.fitted, found.decided
    groups = found.groups[decided.answer]
    folds = make_folds(decided.y, groups, folds=options.folds, seed=options.seed)
    odds = _log_odds(fitted.p, probe.calibration)
    curve = calibrate(odds, fitted.y)
    if curve.a <= SMALLEST_SLOPE:
        raise DatasetError(
            f"the probe's scores do not rise with the label {probe.positive} of {asked.label!r}: "
            "no calibration makes them of use here; fit a new probe on these labels (probe fit)"
        )
    after = np.empty(len(odds))
    for fold in folds:
        part = np.isin(fitted.answer, decided.answer[fold.test])
        after[part] = probability_of(odds[part], calibrate(odds[~part], fitted.y[~part]))
    bootstrap = asked.bootstrap(found.groups[fitted.answer])
    made, at = _made(asked, found, curve)
    result = Recalibrated(
        probe=made,
        before=_reliability(fitted.y, fitted.p, bootstrap),
        after=_reliability(fitted.y, after, bootstrap),
        gain=bootstrap.interval(
            lambda w: _brier(fitted.y, fitted.p, w) - _brier(fitted.y, after, w)
        ),
        positives=int(decided.y.sum()),
        negatives=int((1 - decided.y).sum()),
        at=at,
        left_out=left_out,
    )
    return replace(result, probe=_with_report(probe, result))


def _made(asked: _Asked, found: _Labelled, curve: Calibration) -> tuple[SavedProbe, str]:
    """The new probe without its report, and what its threshold was chosen for."""
    probe, options, decided = asked.probe, asked.options, found.decided
    p = probability_of(_log_odds(decided.p, probe.calibration), curve)
    rate = _rate(probe) if options.rate is None else options.rate
    rates = {one.false_positive_rate for one in probe.operating_points}
    rates = rates or set(metrics.FALSE_POSITIVE_RATES)
    bootstrap = asked.bootstrap(found.groups[decided.answer])
    chosen = sorted(rates if rate is None else {*rates, rate})
    points = operating_points(decided.y, p, bootstrap, chosen)
    if rate is None:
        threshold, at = metrics.best_f1_threshold(decided.y, p), "the best F1"
    else:
        threshold = points[chosen.index(rate)].threshold
        at = f"{rate:.3g} of the negatives above it"
    told = {
        "from": probe.digest,
        "label": asked.label,
        "store": asked.store.path.name,
        "answers": len(found.keys),
        "digest": fitted_on(found.keys, found.labels)["digest"],
        "calibration_before": probe.calibration._asdict(),
        "threshold_before": probe.threshold,
        "threshold_at": at,
        "folds": options.folds,
        "seed": options.seed,
    }
    made = replace(
        probe,
        calibration=curve,
        threshold=threshold,
        operating_points=points,
        # On these labels, too, it would now look better than it is.
        prompts=np.union1d(probe.prompts, prompts_of(found.keys)),
        subjects=np.union1d(probe.subjects, subjects_among(found.tags, options.group)),
        provenance={**probe.provenance, "recalibrated": told},
    )
    return made, at


def _with_report(before: SavedProbe, result: Recalibrated) -> SavedProbe:
    """The new probe with what is known of its probabilities, and of the scores it has given."""
    probe = result.probe
    report = {
        **before.report,
        "ece": result.after.ece._asdict(),
        "recalibration": {
            "before": result.before.as_json(),
            "after": result.after.as_json(),
            "gain": result.gain._asdict(),
        },
    }
    try:
        known = Reference.of_probe(before)
    except ProbeError:
        return replace(probe, report=report)
    moved = probability_of(_log_odds(known.quantiles, before.calibration), probe.calibration)
    return replace(probe, report={**report, **known._replace(quantiles=moved).as_json()})


def _rate(probe: SavedProbe) -> float | None:
    """The share of false positives that the probe's threshold was set for; None for none."""
    for point in probe.operating_points:
        if point.threshold == probe.threshold:
            return point.false_positive_rate
    return None


def _labelled(asked: _Asked, left_out: Counter[str], progress: Progress) -> _Labelled:
    store, probe, label, options = asked
    wanted = Filter(evaluator=label, tags=options.tags, since=options.since, until=options.until)
    read = _read_claims if probe.kind == "token" else _read_answer
    fitted: list[tuple[Floats, Ints]] = []
    decided: list[tuple[Floats, Ints]] = []
    keys, labels, tags, subjects = [], [], [], []
    scored = scored_answers(store, probe, options.name, wanted, left_out, progress=progress)
    for entry, scores in scored:
        try:
            one, many = read(probe, entry, scores, entry.evaluations[label], left_out)
        except InputMissing as missing:
            left_out[str(missing)] += 1
            continue
        fitted.append(one)
        decided.append(many)
        keys.append(entry.key)
        labels.append(entry.evaluations[label].label)
        tags.append(entry.tags)
        subjects.append(subjects_of(entry, options.group))
    if not keys:
        raise DatasetError(
            f"no answer has both a score by this probe and a label by {label!r} that it could "
            f"learn from{listing(left_out)}"
        )
    groups = join_groups(subjects)
    found = _Labelled(_joined(fitted), _joined(decided), keys, labels, tags, groups)
    refuse_small(found.decided.y, {0: probe.negative, 1: probe.positive})
    return found


def _read_answer(
    probe: SavedProbe,
    entry: Entry,
    scores: npt.NDArray[np.float32],
    verdict: Evaluation,
    _left_out: Counter[str],
) -> tuple[tuple[Floats, Ints], tuple[Floats, Ints]]:
    """The probability and the class of an answer, twice."""
    classes = {probe.positive: 1, probe.negative: 0}
    if verdict.label not in classes:
        raise InputMissing(f"labelled {verdict.label}")
    found = np.array([answer_said(probe, entry, scores)]), np.array([classes[verdict.label]])
    return found, found


def _read_claims(
    probe: SavedProbe,
    entry: Entry,
    scores: npt.NDArray[np.float32],
    verdict: Evaluation,
    left_out: Counter[str],
) -> tuple[tuple[Floats, Ints], tuple[Floats, Ints]]:
    """The probabilities and classes of the tokens of judged claims, and of the claims."""
    classes = {probe.positive: 1, probe.negative: 0}
    own = scores[own_rows(entry)].astype(np.float64)
    tokens: list[tuple[Floats, Ints]] = []
    claims: list[tuple[float, int]] = []
    for span in verdict.spans:
        if span.label not in classes:
            left_out[f"claims that are {span.label}"] += 1
            continue
        try:
            index = entry.span_tokens(span)
        except InputMissing as missing:
            left_out[f"claims without tokens ({str(missing).partition(': ')[2]})"] += 1
            continue
        p = own[index[index < len(own)]]
        p = p[np.isfinite(p)]
        if not len(p):
            left_out["claims of which no token has a score"] += 1
            continue
        y = classes[span.label]
        tokens.append((p, np.full(len(p), y)))
        claims.append((float(p.max()), y))
    if not claims:
        raise InputMissing("whose label has no usable claims; a probe of tokens learns from those")
    highest, classes_of = zip(*claims, strict=True)
    every, y_of = (np.concatenate(part) for part in zip(*tokens, strict=True))
    return (every, y_of), (np.array(highest), np.array(classes_of))


def _joined(parts: Sequence[tuple[Floats, Ints]]) -> _Level:
    sizes = [len(p) for p, _ in parts]
    p, y = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Level(p.astype(np.float64), y.astype(np.int64), np.repeat(np.arange(len(parts)), sizes))


def _log_odds(p: Floats, calibration: Calibration) -> Floats:
    """The log-odds that a calibration made these probabilities of."""
    inside = np.clip(p, np.finfo(np.float32).tiny, 1 - _EDGE)
    return np.asarray((np.log(inside) - np.log1p(-inside) - calibration.b) / calibration.a)


def _reliability(y: Ints, p: Floats, bootstrap: Bootstrap) -> Reliability:
    return Reliability(
        bootstrap.interval(partial(_brier, y, p)),
        bootstrap.interval(partial(metrics.expected_calibration_error, y, p)),
    )


def _brier(y: Ints, p: Floats, weights: npt.NDArray[np.floating[Any]]) -> Floats:
    return np.asarray(metrics.share((p - y) ** 2, np.ones(len(y)), weights))
