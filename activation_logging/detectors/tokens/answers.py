"""Scores of whole answers, from all of their tokens that have a state, in one pass per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.detectors.tokens.fitting import Linear
from activation_logging.detectors.tokens.losses import Runs
from activation_logging.detectors.tokens.pooled import AttentionProbe, MultimaxProbe
from activation_logging.detectors.tokens.results import TokenScores
from activation_logging.detectors.tokens.rows import MEMORY, InMemory
from activation_logging.detectors.tokens.scored import Scored
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.arrays import Floats, Ints
    from activation_logging.dataset import Tokens
    from activation_logging.detectors.tokens.cells import Cell, Split
    from activation_logging.detectors.tokens.results import Place


KINDS: dict[str, tuple[str, str, type[AttentionProbe | MultimaxProbe]]] = {
    "answer_attention": (
        "Attention-pooled probe of answers",
        "McKenzie et al. 2025, arXiv:2506.10805",
        AttentionProbe,
    ),
    "answer_multimax": (
        "Multimax probe of answers",
        "Kramár et al. 2026, arXiv:2601.11516",
        MultimaxProbe,
    ),
}
"""The probes of whole answers: title, source and class, by name."""


class Chosen(NamedTuple):
    """The cells of one detector, and the place of each fold."""

    cells: Mapping[Place, Cell]
    places: Sequence[Place]


def highest_of_answers(split: Split, detectors: Sequence[Chosen]) -> list[Floats]:
    """The maximum over the tokens of each answer, ``[k]``, by the fold that did not fit it."""
    found = [np.full(len(split.tokens.keys), -np.inf) for _ in detectors]
    layers = {place.layers for one in detectors for place in one.places}
    for here in sorted(layers, key=str):
        # The columns of every detector's fold that looks here.
        columns = [
            (number, fold, place)
            for number, one in enumerate(detectors)
            for fold, place in enumerate(one.places)
            if place.layers == here
        ]
        fitted = [detectors[number].cells[place].fitted for number, _, place in columns]
        weight = np.stack([f.weight[fold] for f, (_, fold, _) in zip(fitted, columns, strict=True)])
        bias = np.array([f.bias[fold] for f, (_, fold, _) in zip(fitted, columns, strict=True)])
        for batch in split.tokens.at(*here).whole_answers():
            odds = Linear(weight, bias).odds(InMemory(batch.X))
            for column, (number, fold, _) in enumerate(columns):
                own = split.fold_of_answer[batch.answer] == fold
                np.maximum.at(found[number], batch.answer[own], odds[own, column])
    return found


def pooled_probes(
    split: Split,
    wrong: Ints,
    places: Sequence[Place],
    *,
    names: Sequence[str] = tuple(KINDS),
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress = silent,
) -> list[Scored]:
    """Attention and multimax probes of whole answers, at the layer of each fold.

    Args:
        split: the folds.
        wrong: class of each answer, ``[k]``.
        places: where each fold looks.
        names: which of :data:`KINDS`.
        seed: of the probes' starting points, and of the answers where not all fit in memory.
        memory: most bytes of states to fit on; beyond it answers are drawn.
        progress: told how many probes are fitted.
    """
    scores = {name: np.full(len(wrong), np.nan) for name in names}
    for layers in sorted({place.layers for place in places}, key=str):
        here = [fold for fold, place in enumerate(places) if place.layers == layers]
        X, answer = held_answers(split.tokens.at(*layers), memory=memory, seed=seed)
        runs = Runs.of(answer)
        number = answer[runs.starts]
        train = (split.fold_of_answer[number][:, None] != here).astype(np.float64)
        probes = {}
        for done, name in enumerate(names):
            progress("fitting probes of answers", done, len(names))
            kind = KINDS[name][2]
            found = kind(random_state=seed).fit_many(InMemory(X), wrong[number], train, runs)
            probes.update({(name, fold): probe for fold, probe in zip(here, found, strict=True)})
        for batch in split.tokens.at(*layers).whole_answers():
            for (name, fold), probe in probes.items():
                own = split.fold_of_answer[batch.answer] == fold
                if own.any():
                    numbers = batch.answer[own]
                    scores[name][np.unique(numbers)] = probe.span_odds(batch.X[own], numbers)
    return [
        Scored(name, *KINDS[name][:2], "probe", TokenScores(answer=scores[name]), places)
        for name in names
    ]


def held_answers(
    tokens: Tokens, *, memory: int = MEMORY, seed: int = 0
) -> tuple[npt.NDArray[np.float32], Ints]:
    """States of all tokens of answers ``[n, width]``, and the numbers of the answers ``[n]``.

    Args:
        tokens: the answers, at some layers.
        memory: most bytes of states; beyond it answers are drawn.
        seed: of the draw.
    """
    counts = np.array([max(p.num_response - p.num_unread, 0) for p in tokens.places])
    order = np.random.default_rng(seed).permutation(len(counts))
    fits = np.cumsum(counts[order]) * tokens.width * 4 <= memory
    kept = np.zeros(len(counts), bool)
    kept[order[fits]] = True
    parts = [(b.X[kept[b.answer]], b.answer[kept[b.answer]]) for b in tokens.whole_answers()]
    return np.concatenate([X for X, _ in parts]), np.concatenate([answer for _, answer in parts])
