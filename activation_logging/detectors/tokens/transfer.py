"""Does a token probe fitted on one kind of claim work on another? Fit on rows, test on columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.groups import subjects_of
from activation_logging.dataset.tokens import make_tokens
from activation_logging.detectors.metrics import Bootstrap, Interval, auroc
from activation_logging.detectors.splits import MIN_PER_CLASS
from activation_logging.detectors.tokens.losses import Runs
from activation_logging.detectors.tokens.results import TYPE, TokenTransfer
from activation_logging.detectors.tokens.rows import gather
from activation_logging.errors import DatasetError, InputMissing

if TYPE_CHECKING:
    from activation_logging.detectors.tokens.cells import Split
    from activation_logging.detectors.tokens.evaluation import Evaluator
    from activation_logging.detectors.tokens.results import Place, TokenOptions
    from activation_logging.detectors.tokens.rows import Rows

_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))
OTHERS = "all others"


def transfer_between(
    tag: str, split: Split, rows: Rows, place: Place, evaluator: Evaluator
) -> TokenTransfer:
    """Fit on the claims with one value of a tag, test on those with another.

    Args:
        tag: ``type``, or the name of a tag of the answers.
        split: the folds.
        rows: the tokens' states at the place.
        place: whose penalty is used.
        evaluator: gives the intervals.

    Raises:
        InputMissing: the tag has no two values with enough claims of both classes.
    """
    tokens = split.tokens
    spans = tokens.spans
    value = (
        spans.type
        if tag == TYPE
        else np.array([tokens.tags[answer].get(tag, "") for answer in spans.answer])
    )
    values, left_out = _usable(value, spans.y)
    if len(values) < 2:
        raise InputMissing(
            f"{len(values)} of {len(values) + len(left_out)} values of {tag} have "
            f"{MIN_PER_CLASS} claims of both classes; two are needed"
        )
    # Each source in each fold is one problem, and all are solved over the same rows.
    of_token = np.append(value, "")[tokens.rows.span]
    known = [of_token == one for one in values]
    sources = [*known, *(np.isin(of_token, values) & ~one for one in known)]
    use = np.stack([source & split.train[:, f] for source in sources for f in _folds(split)], 1)
    classes = [len(np.unique(tokens.y[column])) for column in use.T]
    solvable = np.flatnonzero(np.array(classes) == 2)
    (fitted,) = split.problems(rows, use[:, solvable]).fit([place.C])
    score = np.full((len(spans.y), use.shape[1]), np.nan)
    score[:, solvable] = split.of_spans(fitted.odds(rows))

    def cell(source: int, target: str) -> Interval:
        own = np.full(len(spans.y), np.nan)
        parts = []
        for number, fold in enumerate(split.folds):
            part = fold.test[value[fold.test] == target]
            own[part] = score[part, source * len(split.folds) + number]
            if len(part) and np.isfinite(own[part]).all():
                parts.append(part)
        return evaluator.auroc("span", own, parts) if parts else _UNKNOWN

    matrix = [[cell(number, target) for target in values] for number in range(len(values))]
    matrix.append([cell(len(values) + number, target) for number, target in enumerate(values)])
    return TokenTransfer(tag, [*values, OTHERS], values, matrix, left_out)


def transfer_to(
    label: str, split: Split, rows: Rows, place: Place, options: TokenOptions
) -> Interval:
    """The AUROC per claim, on what another evaluator has judged, of a probe fitted here.

    Tokens whose answers are about something that the other claims are about, too, are left out of
    the fit.

    Raises:
        DatasetError: the other claims make no data set, or nothing is left to fit on.
    """
    tokens = split.tokens
    other = make_tokens(
        tokens.store,
        label,
        layer=place.layers,
        model=tokens.model,
        tags=options.tags,
        group=options.group,
        broken=options.broken,
    )
    theirs = {what for entry in other.entries() for what in subjects_of(entry, options.group)}
    shared = [
        number
        for number, entry in enumerate(tokens.entries())
        if not theirs.isdisjoint(subjects_of(entry, options.group))
    ]
    use = ~np.isin(tokens.groups, tokens.answer_groups[shared])
    if len(np.unique(tokens.y[use])) < 2:
        raise DatasetError(
            f"the claims of {label} are about the same things as those of {tokens.label}: nothing "
            "is left to fit on; label other answers"
        )
    (fitted,) = split.problems(rows, use[:, None]).fit([place.C])
    there = gather((batch.X for batch in other.batches()), len(other), other.width)
    score = Runs.of(other.rows.span).highest(fitted.odds(there)[:, 0])
    bootstrap = Bootstrap(
        other.answer_groups[other.spans.answer], draws=options.draws, seed=options.seed
    )
    every = [np.arange(len(score))]
    return bootstrap.interval(lambda weights: auroc(other.spans.y, score, weights, every))


def _folds(split: Split) -> range:
    return range(len(split.folds))


def _usable(
    value: npt.NDArray[np.str_], y: npt.NDArray[np.int64]
) -> tuple[list[str], dict[str, str]]:
    """The values with enough claims of both classes, and why the others are left out."""
    wrong = Counter(value[y == 1].tolist())
    right = Counter(value[y == 0].tolist())
    names = sorted({*wrong, *right} - {""})
    enough = [name for name in names if min(wrong[name], right[name]) >= MIN_PER_CLASS]
    return enough, {
        name: f"{wrong[name]} contradicted and {right[name]} supported claims, "
        f"{MIN_PER_CLASS} of each are needed"
        for name in names
        if name not in enough
    }
