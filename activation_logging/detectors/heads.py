"""The best attention heads together, as ITI finds them (Li et al. 2023, arXiv:2306.03341).

Every head that was logged has a linear probe of its own, at the answer's last token. In each fold
the heads whose probes are right most often on the validation part are taken, and their log-odds are
averaged. The test part has no say in which they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from activation_logging.dataset.layers import Source
from activation_logging.detectors.linear import LINEAR_PROBE
from activation_logging.detectors.metrics import best_f1_threshold, plain_auroc
from activation_logging.detectors.registry import Detector
from activation_logging.detectors.sweep import Cell, Scores
from activation_logging.sites import HEADS

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.dataset import Examples
    from activation_logging.detectors.sweep import Sweep

POSITION = "response_last"
SHARE = 48 / 1024
"""Of the heads, as many as the paper takes of LLaMA-7B's."""
LEAST = 4
_SURE = 1e-12  # a probability of 0 or 1 has no log-odds


def heads_of(examples: Examples) -> list[int | str]:
    """The label of every head that all answers have."""
    return [
        Source(site, head).label
        for site, shape in examples.shapes.items()
        if site.name == HEADS
        for head in range(shape[0])
    ]


def best_heads(sweep: Sweep) -> tuple[list[Cell], Scores]:
    """The scores of the best heads together, and a cell that says how many they are.

    Args:
        sweep: of every head, at one position.
    """
    cells = list(sweep.scores)
    count = min(len(cells), max(LEAST, round(SHARE * len(cells))))
    combined = Scores(np.full(len(sweep.y), np.nan))
    for number, fold in enumerate(sweep.folds):
        own = [sweep.scores[cell] for cell in cells]
        y = sweep.y[fold.validation]
        right = np.array([((s.validation[number] > 0.5) == y).mean() for s in own])
        # Stable: of two that are right equally often, the lower layer's goes first.
        chosen = [own[place] for place in np.argsort(-right, kind="stable")[:count]]
        held_out = _together([scores.validation[number] for scores in chosen])
        combined.validation.append(held_out)
        combined.threshold.append(best_f1_threshold(y, held_out))
        combined.validation_auroc.append(plain_auroc(y, held_out))
        combined.probability[fold.test] = _together(
            [scores.probability[fold.test] for scores in chosen]
        )
    return [Cell(f"{count} of {len(cells)} heads", cells[0].position)], combined


def _together(probabilities: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    p = np.clip(probabilities, _SURE, 1 - _SURE)
    return np.asarray(1 / (1 + np.exp(-np.mean(np.log(p) - np.log1p(-p), axis=0))))


BEST_HEADS = Detector(
    "best_heads",
    "Best attention heads",
    "Li et al. 2023, arXiv:2306.03341",
    "heads",
    LINEAR_PROBE.make,
)
