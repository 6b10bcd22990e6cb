"""Probes of whole answers that look for the tokens that tell, as scikit-learn estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from activation_logging.detectors.tokens.linear import Probe, checked
from activation_logging.detectors.tokens.losses import loss
from activation_logging.detectors.tokens.rows import InMemory, Rows, moments

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.detectors.tokens.losses import Runs

    _Back = Callable[["Floats"], "Floats"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

POOLED_C = 0.01


class _Pooled(Probe):
    """Fitted by L-BFGS on the cross-entropy of the answers, with an L2 penalty on all weights."""

    heads: int
    C: float
    max_iter: int
    random_state: int
    parts: int
    """How many vectors a head has: its values, and perhaps its query."""

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        spans: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> _Pooled:
        """Fit on the rows of whole answers, which ``spans`` numbers; see :mod:`.linear`.

        ``sample_weight`` is of rows; an answer weighs what its rows weigh together, without it 1.

        Raises:
            DatasetError: there are no two classes, or rows of an answer are apart or of two
                classes.
        """
        states, classes, runs, weight = checked(X, y, spans, sample_weight)
        self.fit_rows(InMemory(states), classes, weight, runs)
        return self

    def fit_rows(self, rows: Rows, y: Ints, weight: Floats, runs: Runs) -> None:
        """Fit on rows that may be larger than memory; beside them ``[n, 2 * heads]`` is held."""
        width = rows.shape[1]
        everything = np.ones((rows.shape[0], 1), bool)
        mean, scale = (each[:, 0] for each in moments(rows, weight, everything))
        of_runs = np.add.reduceat(weight, runs.starts)[:, None]
        labels = y[runs.starts]
        rng = np.random.default_rng(self.random_state)
        share = np.clip(of_runs[:, 0] @ labels / of_runs.sum(), 1e-6, 1 - 1e-6)
        # Small, and different in each head, which would otherwise stay alike for ever.
        start = rng.normal(scale=0.1 / np.sqrt(width), size=self.parts * self.heads * width)
        found = minimize(
            lambda flat: self._evaluate(flat, rows, (mean, scale), runs, (labels, of_runs)),
            np.append(start, np.log(share / (1 - share))),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_iter},
        ).x
        vectors = found[:-1].reshape(self.parts, self.heads, width) / scale
        # What standardising takes away from the values is a constant of the sum over heads.
        bias = found[-1] - float((vectors[-1] @ mean).sum())
        names = ("query", "weight")[-self.parts :]
        self.tensors_ = {**dict(zip(names, vectors, strict=True)), "bias": np.array([bias])}
        self.classes_, self.n_features_in_ = np.array([0, 1]), width

    def _evaluate(
        self,
        flat: Floats,
        rows: Rows,
        standard: tuple[Floats, Floats],
        runs: Runs,
        target: tuple[Ints, Floats],
    ) -> tuple[float, Floats]:
        """The loss of standardised weights, and its gradient.

        ``standard`` is mean and deviation of the states, ``target`` class and weight of the
        answers.
        """
        mean, scale = standard
        vectors = flat[:-1].reshape(self.parts * self.heads, -1)
        raw = (vectors / scale).T
        products = np.empty((rows.shape[0], raw.shape[1]))
        for part, X in rows.chunks():
            products[part] = X @ raw.astype(np.float32)
        products -= mean @ raw
        odds, back = self._pool(products, runs)
        value, by_odds = loss(target[0], odds[:, None] + flat[-1], target[1])
        by_products = back(by_odds[:, 0])
        slope = np.zeros(raw.shape)
        for part, X in rows.chunks():
            slope += X.T @ by_products[part].astype(np.float32)
        slope = ((slope - np.outer(mean, by_products.sum(axis=0))) / scale[:, None]).T
        gradient = slope.ravel() + flat[:-1] / self.C
        penalty = float(flat[:-1] @ flat[:-1]) / (2 * self.C)
        return float(value[0]) + penalty, np.append(gradient, by_odds.sum())

    def _pool(self, products: Floats, runs: Runs) -> tuple[Floats, _Back]:
        """Log-odds of the answers less the bias, and what carries slopes back to the products."""
        raise NotImplementedError


class AttentionProbe(_Pooled):
    """Each head pools the values of an answer's tokens by a softmax of its query.

    McKenzie et al. 2025 (arXiv:2506.10805); with several heads, Shabalin and Belrose 2025
    (blog.eleuther.ai/attention-probes), of whose probe this has no weights of positions.
    """

    form = "attention"
    parts = 2

    def __init__(
        self, heads: int = 2, C: float = POOLED_C, max_iter: int = 100, random_state: int = 0
    ) -> None:
        self.heads = heads
        self.C = C
        self.max_iter = max_iter
        self.random_state = random_state

    def _pool(self, products: Floats, runs: Runs) -> tuple[Floats, _Back]:
        looks, values = products[:, : self.heads], products[:, self.heads :]
        shares = np.exp(looks - runs.highest(looks)[runs.rows])
        shares /= np.add.reduceat(shares, runs.starts, axis=0)[runs.rows]
        pooled = np.add.reduceat(shares * values, runs.starts, axis=0)

        def back(by_odds: Floats) -> Floats:
            slope = by_odds[runs.rows, None] * shares
            return np.hstack([slope * (values - pooled[runs.rows]), slope])

        return pooled.sum(axis=1), back


class MultimaxProbe(_Pooled):
    """Each head takes the maximum of its values over an answer's tokens.

    Kramár et al. 2026 (arXiv:2601.11516), on the states themselves.
    """

    form = "multimax"
    parts = 1

    def __init__(
        self, heads: int = 2, C: float = POOLED_C, max_iter: int = 100, random_state: int = 0
    ) -> None:
        self.heads = heads
        self.C = C
        self.max_iter = max_iter
        self.random_state = random_state

    def _pool(self, products: Floats, runs: Runs) -> tuple[Floats, _Back]:
        highest = runs.highest(products)
        first = runs.first_highest(products, highest)

        def back(by_odds: Floats) -> Floats:
            slope = np.zeros_like(products)
            slope[first, np.arange(self.heads)] = by_odds[:, None]
            return slope

        return highest.sum(axis=1), back
