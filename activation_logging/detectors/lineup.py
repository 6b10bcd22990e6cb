"""Every detector of the catalog on the same folds, and the reasons for those left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from activation_logging.detectors.catalog import DETECTORS, Detector
from activation_logging.detectors.sweep import (
    Cell,
    Scores,
    choose,
    combine,
    cross_validate,
)
from activation_logging.progress import Progress, track

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.detectors.findings import Options
    from activation_logging.detectors.signals import Signals
    from activation_logging.detectors.splits import Fold


@dataclass(frozen=True)
class Line:
    """What the table says of a detector besides its figures."""

    name: str
    title: str
    source: str
    layer: str
    position: str


def fit_detectors(  # noqa: PLR0917 - one caller
    examples: Examples,
    folds: list[Fold],
    options: Options,
    signals: Signals,
    cell_scores: dict[Cell, Scores],
    chosen: list[Cell],
    states: dict[Cell, npt.NDArray[np.float32]],
    progress: Progress,
) -> tuple[list[tuple[Line, Scores]], dict[str, str]]:
    found: list[tuple[Line, Scores]] = []
    left_out: dict[str, str] = {}
    for detector in track(DETECTORS, "fitting detectors", len(DETECTORS), progress):
        line = Line(detector.name, detector.title, detector.source, "", "")
        if detector.needs == "state":
            where = {"layer": _several(c.layer for c in chosen)}
            where["position"] = _several(c.position for c in chosen)
            line = Line(detector.name, detector.title, detector.source, **where)
            if detector.name == "linear_probe":
                found.append((line, combine(cell_scores, chosen, folds)))
                found.extend(_fixed_places(detector, examples, cell_scores, folds))
                continue
            inputs: list[Any] = [states[cell] for cell in chosen]
        elif detector.needs == "text":
            inputs = [signals.texts] * len(folds)
        elif detector.name in signals.values:
            inputs = [signals.values[detector.name][:, None]] * len(folds)
        else:
            left_out[detector.title] = signals.missing[detector.name]
            continue
        scores = cross_validate(partial(detector.make, options.seed), inputs, examples.y, folds)
        found.append((line, scores))
    return found, left_out


def _fixed_places(
    detector: Detector, examples: Examples, cell_scores: dict[Cell, Scores], folds: list[Fold]
) -> list[tuple[Line, Scores]]:
    """The probe where a reader would put it unasked, and before the first word of the answer."""
    found = []
    last = Cell(examples.num_layers, "response_last")
    if last in cell_scores:
        line = Line(
            "linear_probe_last",
            f"{detector.title}, last layer",
            detector.source,
            str(last.layer),
            str(last.position),
        )
        found.append((line, cell_scores[last]))
    before = {cell: s for cell, s in cell_scores.items() if cell.position == "prompt_last"}
    if before:
        chosen = choose(before, len(folds))
        line = Line(
            "linear_probe_before",
            f"{detector.title}, before the answer",
            detector.source,
            _several(cell.layer for cell in chosen),
            "prompt_last",
        )
        found.append((line, combine(before, chosen, folds)))
    return found


def _several(values: Any) -> str:
    return ", ".join(map(str, sorted(set(values), key=lambda v: (isinstance(v, str), v))))
