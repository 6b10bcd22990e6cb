"""What is studied and what came out: the options, a row of the table, the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.detectors import metrics
from activation_logging.detectors.metrics import Bootstrap, Interval
from activation_logging.tags import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.dataset.examples import Broken
    from activation_logging.detectors.inputs import Signals
    from activation_logging.detectors.registry import Detector, Role
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.sweep import Cell, Scores
    from activation_logging.detectors.transfer import Transfer
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


@dataclass(frozen=True)
class Options:
    """What to study; everything here is written into the report."""

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
    draws: int = 1000
    seed: int = 0


class Fitted(NamedTuple):
    """One detector with its scores; ``cells`` is the place of each fold, if it reads states."""

    detector: Detector
    cells: Sequence[Cell]
    scores: Scores


@dataclass(frozen=True)
class Result:
    """One row of the table: a detector, where it looked, and how well it did.

    ``role`` and ``in_curves`` are the detector's own, see :class:`.Detector`. ``over_text`` is its
    AUROC less that of the text-only control on the same bootstrap resamples.
    """

    name: str
    title: str
    source: str
    role: Role
    in_curves: bool
    layer: str
    position: str
    auroc: Interval
    auprc: Interval
    accuracy: Interval
    ece: Interval
    over_text: Interval | None
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
        baseline: the scores that every AUROC is compared with.
    """

    def __init__(
        self,
        examples: Examples,
        folds: Sequence[Fold],
        options: Options,
        baseline: Scores | None = None,
    ) -> None:
        self._y = examples.y
        self._folds = folds
        self._tests = [fold.test for fold in folds]
        self._baseline = baseline
        self._bootstrap = Bootstrap(examples.groups, draws=options.draws, seed=options.seed)

    def auroc(self, scores: Scores) -> Interval:
        p = scores.probability
        return self._bootstrap.interval(lambda w: metrics.auroc(self._y, p, w, self._tests))

    def result(self, fitted: Fitted) -> Result:
        """One row of the table."""
        detector, cells, scores = fitted
        y, p, tests = self._y, scores.probability, self._tests
        predicted = scores.predicted(self._folds)
        interval = self._bootstrap.interval
        return Result(
            name=detector.name,
            title=detector.title,
            source=detector.source,
            role=detector.role,
            in_curves=detector.in_curves,
            layer=_listing(cell.layer for cell in cells),
            position=_listing(cell.position for cell in cells),
            auroc=self.auroc(scores),
            auprc=interval(lambda w: metrics.auprc(y, p, w, tests)),
            accuracy=interval(lambda w: metrics.accuracy(y, predicted, w)),
            ece=interval(lambda w: metrics.expected_calibration_error(y, p, w)),
            over_text=self._over_baseline(scores),
            scores=scores,
        )

    def _over_baseline(self, scores: Scores) -> Interval | None:
        if self._baseline is None or scores is self._baseline:
            return None
        y, p, tests = self._y, scores.probability, self._tests
        text = self._baseline.probability
        return self._bootstrap.interval(
            lambda w: metrics.auroc(y, p, w, tests) - metrics.auroc(y, text, w, tests)
        )


def _listing(values: Iterable[str | int]) -> str:
    return ", ".join(map(str, sorted(set(values), key=lambda v: (isinstance(v, str), v))))
