"""What is told without states of the answers that a probe is fitted or tried on.

A saved probe that is tried has never seen these answers, and the controls learn from them: they are
cross-validated, so what they have over the probe is on their side.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.detectors import metrics
from activation_logging.detectors.fitting import Inputs
from activation_logging.detectors.inputs import read_signals
from activation_logging.detectors.linear import LINEAR_PROBE
from activation_logging.detectors.registry import load_detectors
from activation_logging.detectors.splits import make_folds
from activation_logging.detectors.sweep import Sweep
from activation_logging.detectors.tokens.controls import controls, read
from activation_logging.detectors.tokens.evaluation import Evaluator, why_no_answers
from activation_logging.detectors.tokens.results import LEVELS, LevelName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from activation_logging.dataset import Examples, Tokens
    from activation_logging.detectors.metrics import Bootstrap, Interval
    from activation_logging.detectors.splits import Fold
    from activation_logging.progress import Progress

FOLDS = 5


class Rivals(NamedTuple):
    """The scores ``[n]`` of controls by name, each part ``[...]`` by fits on the other parts."""

    parts: Sequence[npt.NDArray[np.int64]]
    scores: Mapping[str, npt.NDArray[np.float64]]


class Beside(NamedTuple):
    """AUROCs of the controls by name; the name of the best, and the probe's AUROC less its own."""

    controls: Mapping[str, Interval]
    best_control: str | None
    over_best_control: Interval | None

    def as_json(self) -> dict[str, Any]:
        """For the report of a saved probe."""
        over = self.over_best_control
        return {
            "controls": {name: {"auroc": auroc._asdict()} for name, auroc in self.controls.items()},
            "best_control": self.best_control,
            "over_best_control": None if over is None else over._asdict(),
        }


def rivals_of_answers(
    examples: Examples, seed: int, progress: Progress
) -> tuple[Rivals, dict[str, str]]:
    """The controls of a study of answers, and why others of them are left out, by title.

    Raises:
        DatasetError: the answers are about too few things to be split.
    """
    folds = make_folds(examples.y, examples.groups, folds=FOLDS, seed=seed)
    return controls_of_answers(examples, folds, seed, progress)


def controls_of_answers(
    examples: Examples, folds: Sequence[Fold], seed: int, progress: Progress
) -> tuple[Rivals, dict[str, str]]:
    """The same on given folds."""
    detectors = [detector for detector in load_detectors() if detector.control]
    signals = read_signals(examples, detectors, progress=progress)
    nowhere = Sweep(LINEAR_PROBE, {}, examples.y, folds, examples.num_layers)
    fitted, left_out = Inputs(examples, nowhere, {}, signals, seed).fit(detectors, progress)
    scores = {one.detector.name: one.scores.probability for one in fitted}
    return Rivals([fold.test for fold in folds], scores), left_out


def rivals_of_tokens(
    tokens: Tokens, seed: int, progress: Progress
) -> tuple[dict[LevelName, Rivals], dict[str, str]]:
    """The controls and signals of a study of tokens, by level, and why others are left out.

    Raises:
        DatasetError: the claims are about too few things to be split.
    """
    spans = tokens.spans
    folds = make_folds(spans.y, tokens.answer_groups[spans.answer], folds=FOLDS, seed=seed)
    levels = Evaluator(tokens, folds, 0, seed).levels
    answers = None if why_no_answers(levels["answer"]) else levels["answer"]
    scored, left_out = controls(tokens, folds, answers, read(tokens, progress))
    judged = tokens.rows.span >= 0
    found: dict[LevelName, Rivals] = {}
    for level in LEVELS:
        said = {one.name: getattr(one.scores, level) for one in scored}
        there = {name: score for name, score in said.items() if score is not None}
        if level == "token":
            there = {name: score[judged] for name, score in there.items()}
        found[level] = Rivals(levels[level].parts, there)
    return found, left_out


def beside(
    rivals: Rivals,
    y: npt.NDArray[np.int64],
    p: npt.NDArray[np.floating],
    bootstrap: Bootstrap,
) -> Beside:
    """The controls' figures beside a probe's, all within the parts of the controls.

    Args:
        rivals: what the controls said.
        y: classes, ``[n]``.
        p: what the probe said, ``[n]``.
        bootstrap: resamples what the answers are about.
    """
    found = {
        name: bootstrap.interval(partial(metrics.auroc, y, score, folds=rivals.parts))
        for name, score in rivals.scores.items()
    }
    if not found:
        return Beside({}, None, None)
    best = max(found, key=lambda name: found[name].value)
    score = rivals.scores[best]
    over = bootstrap.interval(lambda w: metrics.auroc_over(y, p, score, w, rivals.parts))
    return Beside(found, best, over)
