"""Logistic regressions over the same rows, many at once: each fold, and each shuffling of labels.

``C * sum_i w_i BCE + |w|^2 / 2`` on standardised states, as scikit-learn's LogisticRegression
minimises it; each problem is standardised by its own rows. The descent is done in coordinates in
which the curvature is about the same in all directions, which takes a Gram matrix of some rows and
its Cholesky factor, and saves most of the passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular

from activation_logging.detectors.tokens.descent import minimise
from activation_logging.detectors.tokens.losses import Runs, loss
from activation_logging.detectors.tokens.rows import Rows, moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.arrays import Floats


STAGES = 5
"""Steps in which the maximum over a span takes the place of its tokens."""
_LOOK = {"max_iter": 8}
"""Before the curvature is looked at again, where the descent has come to."""
_ROUGH = {"tolerance": 1e-6, "max_iter": 10}
_SAMPLE = 2
_LEAST_SAMPLE = 2048


class Linear(NamedTuple):
    """``k`` fitted probes of raw states: ``weight`` ``[k, width]``, ``bias`` ``[k]``."""

    weight: Floats
    bias: Floats

    def odds(self, rows: Rows) -> Floats:
        """Log-odds of every row by every probe, ``[n, k]``."""
        found = np.empty((rows.shape[0], len(self.bias)))
        for part, X in rows.chunks():
            found[part] = X @ self.weight.T.astype(np.float32) + self.bias
        return found


@dataclass(frozen=True)
class Problems:
    """``k`` problems over the same rows.

    ``y`` are classes ``[n]``, or ``[n, k]`` where the problems have different labels; ``weight``
    is what each row counts for, ``[n]``; ``use`` says which rows each problem has, ``[n, k]``.
    ``runs`` are the spans, needed for the maximum over them.
    """

    rows: Rows
    y: npt.NDArray[np.integer[Any]]
    weight: Floats
    use: npt.NDArray[np.bool_]
    runs: Runs | None = None

    def fit(self, strengths: Sequence[float], *, span_max: bool = False) -> list[Linear]:
        """The probes for each strength of the penalty.

        Args:
            strengths: inverse strengths of the L2 penalty.
            span_max: end with the cross-entropy of each span's highest token. It takes the place
                of the tokens' in :data:`STAGES` steps, as annealed by Obeso et al. 2025
                (arXiv:2509.03531): none of it first, nothing but it at last.
        """
        mean, scale = moments(self.rows, self.weight, self.use)
        point = np.zeros((self.rows.shape[1] + 1, self.use.shape[1]))
        share = (self.weight @ (self.use * self.y.reshape(len(self.y), -1))) / self._size
        point[-1] = np.log(share) - np.log1p(-share)
        found = []
        for C in strengths:
            for limits in (_LOOK, {}):
                solver = _Solver(self, mean, scale, C, *self._curvature(point, mean, scale, C))
                point = solver.solve(point, 0.0, limits)
            final = point
            for omega in np.linspace(0, 1, STAGES)[1:] if span_max else ():
                final = solver.solve(final, float(omega), _ROUGH)
            found.append(solver.folded(final))
        return found

    @property
    def _size(self) -> Floats:
        return np.asarray(self.weight @ self.use)

    def _curvature(
        self, point: Floats, mean: Floats, scale: Floats, C: float
    ) -> tuple[Floats, float]:
        """The Cholesky factor of the Hessian by weights, and the root of that by the bias.

        The mean over the problems, of rows evenly spread: it guides the descent, and may be rough.
        """
        count, width = self.rows.shape
        every = max(1, count // max(_SAMPLE * width, _LEAST_SAMPLE))
        middle, spread, centre = mean.mean(axis=1), scale.mean(axis=1), point.mean(axis=1)
        found = np.zeros((width, width), np.float32)
        size = total = 0.0
        for part, X in self.rows.chunks():
            some = slice(-part.start % every, None, every)
            states = (X[some] - middle) / spread
            weight = self.weight[part][some]
            odds = states @ centre[:-1] + centre[-1]
            curved = weight / (2 + 2 * np.cosh(np.clip(odds, -30, 30)))
            states = (states * np.sqrt(curved)[:, None]).astype(np.float32)
            found += states.T @ states
            size += weight.sum()
            total += curved.sum()
        scaled = self._size.mean() / size
        hessian = scaled * found.astype(np.float64)
        hessian[np.diag_indices(width)] += 1 / C
        return cholesky(hessian, lower=True), float(np.sqrt(scaled * total))


@dataclass(frozen=True)
class _Solver:
    problems: Problems
    mean: Floats
    scale: Floats
    C: float
    factor: Floats
    steep: float

    def solve(self, point: Floats, omega: float, limits: Mapping[str, float]) -> Floats:
        """From standardised weights and biases ``[width + 1, k]`` to the best ones."""
        start = np.vstack([self.factor.T @ point[:-1], self.steep * point[-1:]])
        found = minimise(lambda u: self._evaluate(u, omega), start, **limits)  # type: ignore[arg-type]
        return np.vstack([self._turned(found[:-1]), found[-1:] / self.steep])

    def folded(self, point: Floats) -> Linear:
        """Applied to raw states."""
        weight = point[:-1] / self.scale
        return Linear(weight.T.copy(), point[-1] - (weight * self.mean).sum(axis=0))

    def _turned(self, u: Floats) -> Floats:
        return np.asarray(solve_triangular(self.factor, u, lower=True, trans="T"))

    def _evaluate(self, u: Floats, omega: float) -> tuple[Floats, Floats]:
        weight = self._turned(u[:-1])
        raw = weight / self.scale
        # Centred in float64: the offsets of raw states may be large.
        bias = u[-1] / self.steep - (raw * self.mean).sum(axis=0)
        value, slope, total = self._passed(raw.astype(np.float32), bias, omega)
        gradient = (slope - self.mean * total) / self.scale + weight / self.C
        turned = solve_triangular(self.factor, gradient, lower=True)
        value = value + (weight**2).sum(axis=0) / (2 * self.C)
        return value, np.vstack([turned, total / self.steep])

    def _passed(
        self, raw: npt.NDArray[np.float32], bias: Floats, omega: float
    ) -> tuple[Floats, Floats, Floats]:
        """The loss, and its derivatives by raw weights ``[width, k]`` and biases ``[k]``."""
        given = self.problems
        value, slope, total = np.zeros(len(bias)), np.zeros(raw.shape), np.zeros(len(bias))
        if omega == 0.0:
            for part, X in given.rows.chunks():
                more, by_odds = loss(given.y[part], X @ raw + bias, self._weight(part))
                value += more
                slope += X.T @ by_odds.astype(np.float32)
                total += by_odds.sum(axis=0)
            return value, slope, total
        # A span may lie across two chunks, so its maximum is looked for in all rows at once.
        odds = np.empty((given.rows.shape[0], len(bias)))
        for part, X in given.rows.chunks():
            odds[part] = X @ raw + bias
        value, by_odds = loss(given.y, odds, self._weight(slice(None)), given.runs, omega)
        for part, X in given.rows.chunks():
            slope += X.T @ by_odds[part].astype(np.float32)
        return value, slope, by_odds.sum(axis=0)

    def _weight(self, part: slice) -> Floats:
        return np.asarray(self.problems.weight[part, None] * self.problems.use[part])
