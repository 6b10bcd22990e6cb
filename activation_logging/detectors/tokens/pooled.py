"""Probes of whole answers that look for the tokens that tell, as scikit-learn estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from activation_logging.detectors.tokens.descent import minimise
from activation_logging.detectors.tokens.linear import Probe, checked
from activation_logging.detectors.tokens.losses import loss
from activation_logging.detectors.tokens.rows import InMemory, Rows, moments

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from activation_logging.arrays import Floats, Ints
    from activation_logging.detectors.tokens.losses import Runs

    _Back = Callable[["Floats"], "Floats"]


POOLED_C = 0.01


class _Pooled(Probe):
    """Fitted by L-BFGS on the cross-entropy of the answers, with an L2 penalty on all weights."""

    parts: int
    """How many vectors a head has: its values, and perhaps its query."""

    def __init__(
        self, heads: int = 2, C: float = POOLED_C, max_iter: int = 50, random_state: int = 0
    ) -> None:
        self.heads = heads
        self.C = C
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        spans: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Fit on the rows of whole answers, which ``spans`` numbers; see :mod:`.linear`.

        ``sample_weight`` is of rows; an answer weighs what its rows weigh together, without it 1.

        Raises:
            DatasetError: there are no two classes, or rows of an answer are apart or of two
                classes.
        """
        states, classes, runs, weight = checked(X, y, spans, sample_weight)
        of_runs = np.add.reduceat(weight, runs.starts)[:, None]
        (fitted,) = self.fit_many(InMemory(states), classes[runs.starts], of_runs, runs)
        self.tensors_ = fitted.tensors_
        self.classes_, self.n_features_in_ = fitted.classes_, fitted.n_features_in_
        return self

    def fit_many(self, rows: Rows, labels: Ints, weight: Floats, runs: Runs) -> list[Self]:
        """Probes of ``k`` choices of the answers, over the same rows at once.

        Args:
            rows: the tokens of all answers, which may be larger than memory; beside them ``[n,
                2 * heads * k]`` is held.
            labels: class of each answer, ``[answers]``.
            weight: what each answer counts for in each choice, ``[answers, k]``.
            runs: which rows each answer has.
        """
        count, width = weight.shape[1], rows.shape[1]
        of_rows = (weight / np.bincount(runs.rows)[:, None])[runs.rows]
        standard = moments(rows, of_rows.mean(axis=1), of_rows > 0)
        rng = np.random.default_rng(self.random_state)
        # Small, and different in each head, which would otherwise stay alike for ever.
        start = rng.normal(scale=0.1 / np.sqrt(width), size=self.parts * self.heads * width)
        share = np.clip(labels @ weight / weight.sum(axis=0), 1e-6, 1 - 1e-6)
        found = minimise(
            lambda point: self._evaluate(point, rows, standard, runs, (labels, weight)),
            np.vstack([np.repeat(start[:, None], count, axis=1), np.log(share / (1 - share))]),
            tolerance=1e-5,
            max_iter=self.max_iter,
        )
        probes = []
        for point, mean, scale in zip(found.T, *(each.T for each in standard), strict=True):
            vectors = point[:-1].reshape(self.parts, self.heads, width) / scale
            # What standardising takes away from the values is a constant of the sum over heads.
            bias = point[-1] - float((vectors[-1] @ mean).sum())
            names = ("query", "weight")[-self.parts :]
            probe = clone(self)
            probe.tensors_ = {**dict(zip(names, vectors, strict=True)), "bias": np.array([bias])}
            probe.classes_, probe.n_features_in_ = np.array([0, 1]), width
            probes.append(probe)
        return probes

    def _evaluate(
        self,
        point: Floats,
        rows: Rows,
        standard: tuple[Floats, Floats],
        runs: Runs,
        target: tuple[Ints, Floats],
    ) -> tuple[Floats, Floats]:
        """The losses of standardised weights, ``[k]``, and their gradients.

        ``standard`` is mean and deviation of the states, ``target`` class and weight of the
        answers.
        """
        mean, scale = standard
        width, count = mean.shape
        # [vectors, width, k], and the vectors of one column side by side.
        raw = point[:-1].reshape(-1, width, count) / scale
        flat = raw.transpose(1, 2, 0).reshape(width, -1)
        products = np.empty((rows.shape[0], flat.shape[1]))
        for part, X in rows.chunks():
            products[part] = X @ flat.astype(np.float32)
        products -= np.einsum("vwk,wk->kv", raw, mean).ravel()
        pooled = [self._pool(own, runs) for own in np.split(products, count, axis=1)]
        odds = np.stack([each for each, _ in pooled], axis=1) + point[-1]
        value, by_odds = loss(target[0], odds, target[1])
        by_products = np.hstack([back(by_odds[:, n]) for n, (_, back) in enumerate(pooled)])
        slope = np.zeros(flat.shape)
        for part, X in rows.chunks():
            slope += X.T @ by_products[part].astype(np.float32)
        shaped = slope.reshape(width, count, -1).transpose(2, 0, 1)
        totals = by_products.sum(axis=0).reshape(count, -1).T[:, None, :]
        gradient = ((shaped - mean * totals) / scale).reshape(-1, count) + point[:-1] / self.C
        penalty = (point[:-1] ** 2).sum(axis=0) / (2 * self.C)
        return value + penalty, np.vstack([gradient, by_odds.sum(axis=0)])

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

    def _pool(self, products: Floats, runs: Runs) -> tuple[Floats, _Back]:
        highest = runs.highest(products)
        first = runs.first_highest(products, highest)

        def back(by_odds: Floats) -> Floats:
            slope = np.zeros_like(products)
            slope[first, np.arange(self.heads)] = by_odds[:, None]
            return slope

        return highest.sum(axis=1), back
