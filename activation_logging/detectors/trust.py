"""What it takes to trust a probe, besides its AUROC.

The best control to compare with, a floor from shuffled labels, thresholds whose promise was
tested, and what more answers would bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from activation_logging.detectors.conformal import Cut, Promise, conformal_promises
from activation_logging.detectors.learning_curve import Point, learning_curve
from activation_logging.detectors.shuffled import Shuffled, shuffled_labels
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.dataset import Examples
    from activation_logging.detectors.metrics import Bootstrap
    from activation_logging.detectors.refit import Refit
    from activation_logging.detectors.results import Controls
    from activation_logging.detectors.splits import Fold


@dataclass(frozen=True)
class Trust:
    """What came out; detectors are meant by their names.

    ``best_control`` has the highest AUROC of the controls on the test sides, ``prompt_control``
    that of those which read nothing of the answer; None where there is no such control. The
    shuffled labels and the promises are of ``probe``, the learning curves of that and of the best
    control.
    """

    controls: Sequence[str]
    best_control: str | None
    prompt_control: str | None
    probe: str
    shuffled: Shuffled
    promises: Sequence[Promise]
    learning_curves: Mapping[str, Sequence[Point]]


def study_trust(
    examples: Examples,
    folds: Sequence[Fold],
    bootstrap: Bootstrap,
    controls: Controls,
    refits: Mapping[str, Refit],
    *,
    calibrated: tuple[Sequence[Cut], Refit],
    seed: int = 0,
    progress: Progress = silent,
) -> Trust:
    """Shuffle labels, calibrate thresholds, and fit on fewer groups.

    Args:
        examples: the labelled answers.
        folds: the splits.
        bootstrap: resamples the groups.
        controls: what the probe is compared with.
        refits: the probe by its name, and after it the best control, if there is any.
        calibrated: the cuts to calibrate thresholds by, and the probe at the place of each.
        seed: the same seed gives the same numbers.
        progress: told what is being done.
    """
    name, probe = next(iter(refits.items()))
    steps = 2 + len(refits)
    progress("shuffled labels", 0, steps)
    shuffled = shuffled_labels(examples, probe, folds, bootstrap, seed=seed)
    progress("conformal thresholds", 1, steps)
    cuts, at_cuts = calibrated
    promises = conformal_promises(examples, at_cuts, cuts, folds, bootstrap)
    curves = {}
    for done, (fitted, refit) in enumerate(refits.items(), start=2):
        progress("learning curves", done, steps)
        curves[fitted] = learning_curve(examples, refit, folds, bootstrap, seed=seed)
    progress("learning curves", steps, steps)
    return Trust(
        controls=controls.names,
        best_control=controls.best and controls.best.detector.name,
        prompt_control=controls.prompt and controls.prompt.detector.name,
        probe=name,
        shuffled=shuffled,
        promises=promises,
        learning_curves=curves,
    )
