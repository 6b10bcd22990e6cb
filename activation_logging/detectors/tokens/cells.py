"""Linear token probes of every fold at one place: fitted together, each scored where it was not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.metrics import plain_auroc
from activation_logging.detectors.tokens.fitting import Linear, Problems
from activation_logging.detectors.tokens.losses import Runs
from activation_logging.detectors.tokens.results import Place, TokenScores
from activation_logging.detectors.tokens.rows import gather

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.arrays import Floats, Ints
    from activation_logging.dataset import Tokens
    from activation_logging.detectors.splits import Fold
    from activation_logging.detectors.tokens.rows import Rows
    from activation_logging.sites import AnySite


SHUFFLES = 4
"""Draws of shuffled labels."""


class Cell(NamedTuple):
    """``k`` probes, one per fold, fitted on its training side.

    ``token`` are their log-odds of the test sides' tokens, ``[n]``; ``validation`` the AUROC per
    claim of probes fitted without the validation parts, there, ``[k]``.
    """

    fitted: Linear
    token: Floats
    validation: Floats

    def without_scores(self) -> Cell:
        """Only how good it was."""
        return self._replace(token=np.zeros(0))


@dataclass(frozen=True)
class Split:
    """Which tokens and answers each of ``k`` folds has.

    ``fit`` and ``train`` are ``[n, k]``; ``fold`` ``[n]`` and ``fold_of_answer`` the fold whose
    test side has the token or the answer.
    """

    tokens: Tokens
    folds: Sequence[Fold]
    runs: Runs
    fit: npt.NDArray[np.bool_]
    train: npt.NDArray[np.bool_]
    fold: Ints
    fold_of_answer: Ints

    @classmethod
    def of(cls, tokens: Tokens, folds: Sequence[Fold]) -> Split:
        """From folds of claims; a group's claims, and so an answer's, are on one side of each."""
        spans, answer = tokens.spans, tokens.rows.answer
        count = len(tokens.keys)
        fold_of_answer = np.zeros(count, np.int64)
        fit = np.zeros((count, len(folds)), bool)
        for number, one in enumerate(folds):
            fold_of_answer[spans.answer[one.test]] = number
            fit[spans.answer[one.fit], number] = True
        fold = fold_of_answer[answer]
        train = fold[:, None] != np.arange(len(folds))
        return cls(
            tokens, folds, Runs.of(tokens.rows.span), fit[answer], train, fold, fold_of_answer
        )

    def rows(self, layers: Sequence[AnySite]) -> Rows:
        """The tokens' states at some layers, for many passes."""
        there = self.tokens.at(*layers)
        return gather((batch.X for batch in there.batches()), len(there), there.width)

    def cells(
        self,
        rows: Rows,
        layers: tuple[int | str, ...],
        strengths: Sequence[float],
        *,
        span_max: bool = False,
    ) -> dict[Place, Cell]:
        """Probes for each strength of the penalty, with what is needed to choose one."""
        problems = self.problems(rows, np.hstack([self.fit, self.train]))
        found = {}
        for C, fitted in zip(strengths, problems.fit(strengths, span_max=span_max), strict=True):
            odds = fitted.odds(rows)
            count = len(self.folds)
            validation = np.array(
                [
                    self._auroc(odds[:, number], fold.validation)
                    for number, fold in enumerate(self.folds)
                ]
            )
            trained = Linear(fitted.weight[count:], fitted.bias[count:])
            token = odds[np.arange(len(odds)), count + self.fold]
            found[Place(layers, C)] = Cell(trained, token, validation)
        return found

    def problems(self, rows: Rows, use: npt.NDArray[np.bool_]) -> Problems:
        """Fits on some of the tokens each, ``use`` is ``[n, k]``."""
        tokens = self.tokens
        return Problems(rows, tokens.y, tokens.weights, use, self.runs)

    def shuffled(
        self, rows: Rows, layers: tuple[int | str, ...], strengths: Sequence[float], seed: int
    ) -> list[dict[Place, Cell]]:
        """Probes of claims whose labels were shuffled on the training sides, one dict a draw.

        There are several draws: where the states differ much along some direction, each one sorts
        the claims along it by chance, one way or the other.
        """
        tokens, count = self.tokens, len(self.folds)
        y = np.repeat(tokens.y.astype(np.int8)[:, None], SHUFFLES * count, axis=1)
        judged = tokens.rows.span >= 0
        for column in range(SHUFFLES * count):
            train = self.folds[column % count].train
            labels = tokens.spans.y.copy()
            labels[train] = np.random.default_rng([seed, column]).permutation(labels[train])
            y[judged, column] = labels[tokens.rows.span[judged]]
        problems = replace(self.problems(rows, np.tile(self.train, SHUFFLES)), y=y)
        found: list[dict[Place, Cell]] = [{} for _ in range(SHUFFLES)]
        for C, fitted in zip(strengths, problems.fit(strengths), strict=True):
            odds = fitted.odds(rows)
            for draw, cells in enumerate(found):
                own = slice(draw * count, (draw + 1) * count)
                part = Linear(fitted.weight[own], fitted.bias[own])
                token = odds[np.arange(len(odds)), draw * count + self.fold]
                cells[Place(layers, C)] = Cell(part, token, np.zeros(0))
        return found

    def of_spans(self, token: Floats) -> Floats:
        """The maximum over the tokens of each claim, ``[m, ...]``."""
        of_runs = self.tokens.rows.span[self.runs.starts]
        return self.runs.highest(token)[of_runs >= 0]

    def of_firsts(self, token: Floats) -> Floats:
        """The score of the first token of each claim, ``[m]``."""
        span = self.tokens.rows.span
        judged = np.flatnonzero(span >= 0)
        return token[judged[np.unique(span[judged], return_index=True)[1]]]

    def combined(self, cells: Mapping[Place, Cell], places: Sequence[Place]) -> TokenScores:
        """The scores of each fold's own place; those of whole answers are not among them."""
        token = np.stack([cells[place].token for place in places])
        own = token[self.fold, np.arange(token.shape[1])]
        return TokenScores(own, self.of_spans(own), self.of_firsts(own))

    def choose(self, cells: Mapping[Place, Cell]) -> list[Place]:
        """The best place of each fold by its validation part, the first of several equal ones."""
        return [
            max(cells, key=lambda place: cells[place].validation[number])
            for number in range(len(self.folds))
        ]

    def _auroc(self, token: Floats, part: Ints) -> float:
        score, y = self.of_spans(token)[part], self.tokens.spans.y[part]
        return plain_auroc(y, score)
