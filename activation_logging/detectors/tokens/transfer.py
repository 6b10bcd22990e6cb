"""Does a token probe fitted on one kind of claim work on another? Fit on rows, test on columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
    from collections.abc import Sequence

    from activation_logging.detectors.tokens.cells import Split
    from activation_logging.detectors.tokens.evaluation import Evaluator
    from activation_logging.detectors.tokens.results import Place, TokenOptions
    from activation_logging.detectors.tokens.rows import Rows

_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))
OTHERS = "all others"


@dataclass
class _Between:
    """Claims by the values of one tag. Each source in each fold is one problem.

    ``use`` ``[n, problems]`` are the tokens of its fit; ``score`` ``[m, problems]`` is what came
    out, and NaN of a source of one class.
    """

    tag: str
    value: npt.NDArray[np.str_]
    values: list[str]
    left_out: dict[str, str]
    use: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]

    @classmethod
    def of(cls, tag: str, split: Split) -> _Between:
        """Of the tag's usable values.

        Raises:
            InputMissing: it has no two values with enough claims of both classes.
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
        of_token = np.append(value, "")[tokens.rows.span]
        known = [of_token == one for one in values]
        sources = [*known, *(np.isin(of_token, values) & ~one for one in known)]
        use = np.stack([source & split.train[:, f] for source in sources for f in _folds(split)], 1)
        return cls(tag, value, values, left_out, use, np.full((len(spans.y), use.shape[1]), np.nan))

    def fit(self, split: Split, rows: Rows, C: float, folds: Sequence[int]) -> None:
        """Solve the problems of some folds together, over the rows of their place."""
        y = split.tokens.y
        own = np.flatnonzero(np.isin(np.arange(self.use.shape[1]) % len(split.folds), folds))
        columns = np.array([c for c in own if len(np.unique(y[self.use[:, c]])) == 2], np.int64)
        (fitted,) = split.problems(rows, self.use[:, columns]).fit([C])
        self.score[:, columns] = split.of_spans(fitted.odds(rows))

    def result(self, split: Split, evaluator: Evaluator) -> TokenTransfer:
        """The matrix of what was solved."""

        def cell(source: int, target: str) -> Interval:
            own = np.full(len(self.score), np.nan)
            parts = []
            for number, fold in enumerate(split.folds):
                part = fold.test[self.value[fold.test] == target]
                own[part] = self.score[part, source * len(split.folds) + number]
                if len(part) and np.isfinite(own[part]).all():
                    parts.append(part)
            return evaluator.auroc("span", own, parts) if parts else _UNKNOWN

        values = self.values
        matrix = [[cell(number, target) for target in values] for number in range(len(values))]
        matrix.append([cell(len(values) + number, target) for number, target in enumerate(values)])
        return TokenTransfer(self.tag, [*values, OTHERS], values, matrix, self.left_out)


def transfers_between(
    tags: Sequence[str], split: Split, chosen: Sequence[Place], evaluator: Evaluator
) -> tuple[list[TokenTransfer], dict[str, str]]:
    """Fit on the claims with one value of a tag, test on those with another; for each of the tags.

    Args:
        tags: ``type``, or names of tags of the answers.
        split: the folds.
        chosen: the place of each fold, which its training side has chosen.
        evaluator: gives the intervals.

    Returns:
        The transfers, and by tag why others are left out: it has no two values with enough claims
        of both classes.
    """
    found: list[_Between] = []
    left_out = {}
    for tag in tags:
        try:
            found.append(_Between.of(tag, split))
        except InputMissing as missing:  # noqa: PERF203 - of one tag alone
            left_out[tag] = str(missing)
    # The states of one place are in memory at a time.
    for layers in dict.fromkeys(place.layers for place in chosen) if found else ():
        rows = split.rows(layers)
        for place in dict.fromkeys(place for place in chosen if place.layers == layers):
            folds = [number for number, own in enumerate(chosen) if own == place]
            for one in found:
                one.fit(split, rows, place.C, folds)
    return [one.result(split, evaluator) for one in found], left_out


def transfer_to(label: str, split: Split, place: Place, options: TokenOptions) -> Interval:
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
    (fitted,) = split.problems(split.rows(place.layers), use[:, None]).fit([place.C])
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
