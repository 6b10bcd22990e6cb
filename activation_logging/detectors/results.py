"""What is studied and what came out: the options, a row of the table, the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from activation_logging.detectors import metrics
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.dataset.examples import Broken
    from activation_logging.detectors.inputs import Signals
    from activation_logging.detectors.registry import Detector, Role
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.sweep import Cell, Scores
    from activation_logging.detectors.transfer import Transfer
    from activation_logging.detectors.trust import Trust
    from activation_logging.records import Label
    from activation_logging.sites import AnySite

POSITIONS: tuple[str | int, ...] = (
    "prompt_last",
    "response_first",
    "response_last",
    "response_mean",
    "response_max",
    "answer_span",
)
COVERAGES = np.arange(1, 21) / 20
"""Shares of the answers that are kept, at which the risk is reported."""


@dataclass(frozen=True)
class Options:
    """What to study; everything here is written into the report.

    ``folds_by`` and ``match_length`` are described in :mod:`.held_out`.
    """

    positive: Label = "hallucinated"
    negative: Label = "correct"
    model: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    group: Sequence[str] = GROUP_TAGS
    broken: Broken = "error"
    layers: Sequence[AnySite] | None = None
    positions: Sequence[str | int] = POSITIONS
    transfer_by: str | None = None
    folds: int = 5
    folds_by: str = "group"
    match_length: bool = False
    draws: int = 1000
    seed: int = 0


class Fitted(NamedTuple):
    """One detector with its scores; ``cells`` is the place of each fold, if it reads states."""

    detector: Detector
    cells: Sequence[Cell]
    scores: Scores

    @property
    def is_before_answer(self) -> bool:
        """Whether it has read nothing of the answer."""
        if self.detector.needs == "state":
            places = {cell.position for cell in self.cells}
            return places == {"prompt_last"} and not self.detector.beside
        return self.detector.where == "before"


class Controls(NamedTuple):
    """What every detector is compared with; None where there is no such control.

    ``names`` has them all. ``text`` is the one of the words, ``best`` the best of all, ``prompt``
    the best of those that have read nothing of the answer.
    """

    names: Sequence[str]
    text: Fitted | None
    best: Fitted | None
    prompt: Fitted | None


class RiskCoverage(NamedTuple):
    """The share of positives among the answers that are kept, for each share of them that is.

    ``risk`` is ``[coverage]``, at :data:`COVERAGES`; ``aurc`` is the area under it, and less is
    better. See :func:`.metrics.aurc`.
    """

    risk: npt.NDArray[np.float64]
    aurc: Interval


@dataclass(frozen=True)
class Result:
    """One row of the table: a detector, where it looked, and how well it did.

    ``role``, ``control`` and ``in_curves`` are the detector's own, see :class:`.Detector`.
    ``before_answer`` says that it has read nothing of the answer. ``recall_at`` has a share of
    false positives for a key.

    The others are differences of AUROC on the same bootstrap resamples: ``over_text`` to the
    text-only control, ``over_best_control`` to the best of all controls, and, where nothing of the
    answer is read, ``over_prompt`` to the best control that reads nothing of it either. They are
    None for that control itself.
    """

    name: str
    title: str
    source: str
    role: Role
    control: bool
    before_answer: bool
    in_curves: bool
    layer: str
    position: str
    auroc: Interval
    auprc: Interval
    accuracy: Interval
    ece: Interval
    recall_at: Mapping[float, Interval]
    risk_coverage: RiskCoverage
    over_text: Interval | None
    over_best_control: Interval | None
    over_prompt: Interval | None
    scores: Scores


@dataclass(frozen=True)
class Study:
    """What came out.

    ``cells`` holds the AUROC of the linear probe at every place, ``chosen`` the place that each
    fold chose, ``place`` the one that is best on average over the validation parts. Where
    ``transfer`` is None, ``transfer_left_out`` says why.
    """

    examples: Examples
    options: Options
    folds: list[Fold]
    signals: Signals
    cells: dict[Cell, Interval]
    cell_scores: Mapping[Cell, Scores]
    chosen: list[Cell]
    place: Cell
    states: dict[Cell, npt.NDArray[np.float32]]
    results: list[Result]
    transfer: Transfer | None
    transfer_left_out: str
    trust: Trust
    detectors_left_out: dict[str, str]
    positions_left_out: dict[str, str]

    def result(self, name: str) -> Result:
        """The row of one detector; KeyError where it was left out."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)


class Evaluator:
    """Metrics of any detector's scores, with intervals from the same bootstrap resamples.

    Args:
        examples: the answers that were scored.
        folds: the splits.
        options: number of resamples, and the seed.
    """

    def __init__(self, examples: Examples, folds: Sequence[Fold], options: Options) -> None:
        self._y = examples.y
        self._folds = folds
        self._tests = [fold.test for fold in folds]
        self.bootstrap = Bootstrap(examples.groups, draws=options.draws, seed=options.seed)

    def controls(self, fitted: Sequence[Fitted]) -> Controls:
        """The controls to compare with.

        The best is the one of the highest AUROC on the test sides. Chosen there, chance is on its
        side and not on the side of the detectors that are compared with it.
        """
        controls = [one for one in fitted if one.detector.control]
        return Controls(
            names=[one.detector.name for one in controls],
            text=next((one for one in fitted if one.detector.baseline), None),
            best=self._best(controls),
            prompt=self._best([one for one in controls if one.is_before_answer]),
        )

    def _best(self, fitted: Sequence[Fitted]) -> Fitted | None:
        ones = np.ones((1, len(self._y)))
        return max(
            fitted,
            key=lambda one: metrics.auroc(self._y, one.scores.probability, ones, self._tests)[0],
            default=None,
        )

    def auroc(self, scores: Scores) -> Interval:
        p = scores.probability
        return self.bootstrap.interval(lambda w: metrics.auroc(self._y, p, w, self._tests))

    def result(self, fitted: Fitted, controls: Controls) -> Result:
        """One row of the table."""
        detector, cells, scores = fitted
        y, p, tests = self._y, scores.probability, self._tests
        predicted = scores.predicted(self._folds)
        interval = self.bootstrap.interval
        return Result(
            name=detector.name,
            title=detector.title,
            source=detector.source,
            role=detector.role,
            control=detector.control,
            before_answer=fitted.is_before_answer,
            in_curves=detector.in_curves,
            layer=_listing(cell.layer for cell in cells),
            position=_listing(cell.position for cell in cells),
            auroc=self.auroc(scores),
            auprc=interval(lambda w: metrics.auprc(y, p, w, tests)),
            accuracy=interval(lambda w: metrics.accuracy(y, predicted, w)),
            ece=interval(lambda w: metrics.expected_calibration_error(y, p, w)),
            recall_at={
                rate: interval(partial(metrics.recall_at_fpr, y, p, folds=tests, fpr=rate))
                for rate in metrics.FALSE_POSITIVE_RATES
            },
            risk_coverage=RiskCoverage(
                metrics.risk_at_coverage(y, p, tests, COVERAGES),
                interval(lambda w: metrics.aurc(y, p, w, tests)),
            ),
            over_text=self._over(scores, controls.text),
            over_best_control=self._over(scores, controls.best),
            over_prompt=self._over(scores, controls.prompt) if fitted.is_before_answer else None,
            scores=scores,
        )

    def _over(self, scores: Scores, control: Fitted | None) -> Interval | None:
        if control is None or scores is control.scores:
            return None
        y, p, tests = self._y, scores.probability, self._tests
        other = control.scores.probability
        return self.bootstrap.interval(lambda w: metrics.auroc_over(y, p, other, w, tests))


def _listing(values: Iterable[str | int]) -> str:
    return ", ".join(map(str, sorted(set(values), key=lambda v: (isinstance(v, str), v))))
