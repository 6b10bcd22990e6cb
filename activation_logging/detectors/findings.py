"""What is studied, and what came out: the options, a line of the table, the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from activation_logging.dataset.examples import GROUP_TAGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.dataset.examples import Broken
    from activation_logging.detectors.metrics import Interval
    from activation_logging.detectors.signals import Signals
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.sweep import (
        Cell,
        Scores,
    )
    from activation_logging.detectors.transfer import Transfer
    from activation_logging.records import Label

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
    layers: Sequence[int | str] | None = None
    positions: Sequence[str | int] = POSITIONS
    transfer_by: str | None = None
    folds: int = 5
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """One line of the table: a detector, where it looked, and how well it did.

    ``over_text`` is its AUROC less that of the text-only control on the same bootstrap draws.
    """

    name: str
    title: str
    source: str
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
    fold chose, ``place`` the one that is best on average over the validation parts.
    """

    examples: Examples
    options: Options
    folds: list[Fold]
    signals: Signals
    cells: dict[Cell, Interval]
    cell_scores: dict[Cell, Scores]
    chosen: list[Cell]
    place: Cell
    states: dict[Cell, npt.NDArray[np.float32]]
    results: list[Result]
    transfer: Transfer | str
    detectors_left_out: dict[str, str]
    positions_left_out: dict[str, str]

    def result(self, name: str) -> Result:
        """The line of one detector; KeyError where it was left out."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)
