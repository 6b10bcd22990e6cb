"""How good scores of tokens, claims and answers are, with intervals over the answers' groups.

All metrics of one detector at one level come from one table: the weight of positives and negatives
at each score, in each resample. It is made by a sparse product, so a million tokens cost no more
than a pass per resample, and of more than :data:`STEPS` distinct scores neighbours share a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from activation_logging.dataset.examples import listing
from activation_logging.detectors import metrics
from activation_logging.detectors.metrics import Interval
from activation_logging.detectors.splits import MIN_PER_CLASS
from activation_logging.detectors.tokens.results import (
    LevelName,
    LevelResult,
    TokenResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from activation_logging.arrays import AnyFloats, Ints
    from activation_logging.dataset import Tokens
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.tokens.scored import Scored


STEPS = 2000
"""Most distinct scores of a part that are told apart; more are ranked into so many equal steps."""


@dataclass(frozen=True)
class Level:
    """What is scored: its classes, weights, and numbers of groups, ``[n]``; its test parts."""

    y: Ints
    weight: AnyFloats
    group: Ints
    parts: Sequence[Ints]
    types: npt.NDArray[np.str_] | None = None

    def by_type(self) -> list[Ints]:
        """The parts, each divided by type; without those of one class, which have no pairs.

        What a claim says may be its type, so there may be as many types as claims.
        """
        assert self.types is not None
        _, code = np.unique(self.types, return_inverse=True)
        found: list[Ints] = []
        for part in self.parts:
            sorted_by_type = part[np.argsort(code[part], kind="stable")]
            cuts = np.flatnonzero(np.diff(code[sorted_by_type])) + 1
            found += np.split(sorted_by_type, cuts)
        return [inside for inside in found if 0 < self.y[inside].sum() < len(inside)]


class Evaluator:
    """Metrics of any detector's scores, with intervals from the same resamples of groups.

    Args:
        tokens: what was scored.
        folds: the splits of claims.
        draws: number of resamples.
        seed: of the resamples.
    """

    def __init__(self, tokens: Tokens, folds: Sequence[Fold], draws: int, seed: int) -> None:
        names, group = np.unique(tokens.answer_groups, return_inverse=True)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        self._resamples = np.vstack([np.ones(len(names)), drawn])
        rows, spans = tokens.rows, tokens.spans
        judged = np.flatnonzero(rows.span >= 0)
        fold_of_span = np.zeros(len(spans.y), np.int64)
        for number, fold in enumerate(folds):
            fold_of_span[fold.test] = number
        fold_of_answer = np.zeros(len(tokens.keys), np.int64)
        fold_of_answer[spans.answer] = fold_of_span
        wrong = spans.wrong_answers()

        def parts(of: Ints) -> list[Ints]:
            return [np.flatnonzero(of == number) for number in range(len(folds))]

        ones = np.ones(len(spans.y))
        of_spans = Level(spans.y, ones, group[spans.answer], parts(fold_of_span), spans.type)
        self.judged = judged
        self.levels: Mapping[LevelName, Level] = {
            "token": Level(
                rows.y[judged],
                rows.weight[judged],
                group[rows.answer[judged]],
                parts(fold_of_span[rows.span[judged]]),
                tokens.types[judged],
            ),
            "span": of_spans,
            "first": of_spans,
            "answer": Level(wrong, np.ones(len(wrong)), group, parts(fold_of_answer)),
        }

    def results(self, scored: Sequence[Scored]) -> list[TokenResult]:
        """One row of the table for each detector."""
        found: list[dict[LevelName, tuple[LevelResult, AnyFloats, AnyFloats | None]]] = [
            {
                name: self._level(level, found_there)
                for name, level in self.levels.items()
                if (found_there := self._at(one, name))
            }
            for one in scored
        ]
        rivals = [n for n, one in enumerate(scored) if one.role in {"signal", "control"}]
        return [
            TokenResult(
                one.name,
                one.title,
                one.source,
                one.role,
                one.places,
                {
                    name: _beside(level, name, [(scored[n].name, found[n]) for n in rivals])
                    if one.role == "probe"
                    else level[0]
                    for name, level in levels.items()
                },
                one.scores,
            )
            for one, levels in zip(scored, found, strict=True)
        ]

    def auroc(self, level: LevelName, score: AnyFloats, parts: Sequence[Ints]) -> Interval:
        """The AUROC within parts of one level."""
        return interval_of(self._table(self.levels[level], score, parts)(metrics.auroc))

    def _at(self, one: Scored, name: LevelName) -> list[AnyFloats]:
        """The scores at one level, of every draw; none where the detector says nothing there."""
        found = [getattr(scores, name) for scores in (one.scores, *one.more)]
        there = [score for score in found if score is not None]
        return [score[self.judged] for score in there] if name == "token" else there

    def _level(
        self, level: Level, scores: Sequence[AnyFloats]
    ) -> tuple[LevelResult, AnyFloats, AnyFloats | None]:
        tables = [self._table(level, score, level.parts) for score in scores]

        def figure(metric: Callable[..., AnyFloats], *more: float) -> AnyFloats:
            return _joined([table(metric, *more) for table in tables])

        auroc, within = figure(metrics.auroc), None
        if level.types is not None and (parts := level.by_type()):
            within = _joined([self._table(level, one, parts)(metrics.auroc) for one in scores])
        result = LevelResult(
            auroc=interval_of(auroc),
            auprc=interval_of(figure(metrics.auprc)),
            aurc=interval_of(figure(metrics.aurc)),
            recall_at={
                fpr: interval_of(figure(metrics.recall_at_fpr, fpr))
                for fpr in metrics.FALSE_POSITIVE_RATES
            },
            within_types=None if within is None else interval_of(within),
        )
        return result, auroc, within

    def _table(
        self, level: Level, score: AnyFloats, parts: Sequence[Ints]
    ) -> Callable[..., AnyFloats]:
        """A function that takes a metric of :mod:`.metrics`, and gives it for all resamples."""
        place = np.full(len(score), -1)
        classes, ranks, folds = [], [], []
        size = 0
        for part in parts:
            steps = _steps(score[part])
            cells, cell = np.unique(2 * steps + level.y[part], return_inverse=True)
            place[part] = size + cell
            classes.append(cells % 2)
            ranks.append(cells // 2)
            folds.append(np.arange(size, size + len(cells)))
            size += len(cells)
        used = np.flatnonzero(place >= 0)
        y, rank = np.concatenate(classes), np.concatenate(ranks).astype(np.float64)
        shape = (self._resamples.shape[1], size)
        per_group = csr_matrix((level.weight[used], (level.group[used], place[used])), shape)
        weights = np.asarray(per_group.T @ self._resamples.T).T
        return lambda metric, *more: np.asarray(metric(y, rank, weights, folds, *more))


def why_no_answers(answers: Level) -> str:
    """Why whole answers cannot be compared; empty where they can."""
    wrong = int(answers.y.sum())
    counts = {"with": wrong, "without": len(answers.y) - wrong}
    every = np.arange(len(answers.y))
    sides = [side for part in answers.parts for side in (part, np.setdiff1d(every, part))]
    enough = min(counts.values()) >= MIN_PER_CLASS
    if enough and all(len(np.unique(answers.y[side])) == 2 for side in sides):
        return ""
    return (
        f"too few answers with, or without, a contradicted claim{listing(counts)}; "
        f"{MIN_PER_CLASS} of each are needed, and some of both in every fold"
    )


def interval_of(values: AnyFloats) -> Interval:
    """The first value, with the interval of the others; NaN where none of them is finite."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


def _joined(draws: Sequence[AnyFloats]) -> AnyFloats:
    """The mean of the first values, followed by all others."""
    first = np.mean([values[0] for values in draws])
    return np.concatenate([[first], *(values[1:] for values in draws)])


def _steps(score: AnyFloats) -> Ints:
    """The rank of each score among the distinct ones, or the step that it falls into."""
    distinct, rank = np.unique(score, return_inverse=True)
    if len(distinct) <= STEPS:
        return np.asarray(rank, np.int64)
    edges = np.sort(score)[np.linspace(0, len(score) - 1, STEPS + 1).astype(np.int64)][1:-1]
    return np.asarray(np.searchsorted(edges, score, side="right"), np.int64)


def _beside(
    own: tuple[LevelResult, AnyFloats, AnyFloats | None],
    name: LevelName,
    rivals: Sequence[
        tuple[str, Mapping[LevelName, tuple[LevelResult, AnyFloats, AnyFloats | None]]]
    ],
) -> LevelResult:
    """A probe's result with the differences to the best control or signal of the same level."""
    result, auroc, within = own
    there = [(rival, levels[name]) for rival, levels in rivals if name in levels]
    if not there:
        return result
    best, (_, of_best, _) = max(there, key=lambda pair: pair[1][1][0])
    changes = {"best_control": best, "over_best_control": interval_of(auroc - of_best)}
    inside = [(rival, level[2]) for rival, level in there if level[2] is not None]
    if within is not None and inside:
        best, of_type = max(inside, key=lambda pair: pair[1][0])
        changes |= {
            "best_control_within_types": best,
            "within_types_over_best_control": interval_of(within - of_type),
        }
    return LevelResult(**{**vars(result), **changes})
