"""What a token probe is fitted to: cross-entropy of tokens, and of the maximum over each span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DatasetError

if TYPE_CHECKING:
    from activation_logging.arrays import Floats, Ints


class Runs(NamedTuple):
    """Runs of rows that belong together, such as the tokens of a span.

    ``starts`` are the first rows, ``[runs]``; ``rows`` is the run of each row, ``[n]``.
    """

    starts: Ints
    rows: Ints

    @classmethod
    def of(cls, spans: npt.ArrayLike) -> Runs:
        """The runs that numbers of spans tell, ``[n]``; each row of -1 is a run of its own.

        Raises:
            DatasetError: rows of one span do not stand side by side.
        """
        given = np.asarray(spans)
        if given.ndim != 1 or not len(given) or given.dtype.kind not in "iu":
            raise DatasetError("spans is one whole number per row: the span that it belongs to")
        new = np.r_[True, (given[1:] != given[:-1]) | (given[1:] < 0)]
        starts = np.flatnonzero(new)
        named = given[starts][given[starts] >= 0]
        if len(np.unique(named)) < len(named):
            raise DatasetError("the rows of each span stand side by side: sort the rows by span")
        return cls(starts, np.cumsum(new) - 1)

    def highest(self, score: Floats) -> Floats:
        """The maximum over each run, ``[runs, ...]``."""
        return np.asarray(np.maximum.reduceat(score, self.starts, axis=0))

    def first_highest(self, score: Floats, highest: Floats) -> Ints:
        """The first row of each run that has its maximum, ``[runs, ...]``, of :meth:`highest`."""
        number = np.arange(len(score)).reshape(-1, *[1] * (score.ndim - 1))
        place = np.where(score == highest[self.rows], number, len(score))
        return np.asarray(np.minimum.reduceat(place, self.starts, axis=0))


def loss(
    y: npt.NDArray[np.integer[Any]],
    odds: Floats,
    weight: Floats,
    runs: Runs | None = None,
    omega: float = 0.0,
) -> tuple[Floats, Floats]:
    """The loss of ``k`` probes, ``[k]``, and its derivative by their log-odds, ``[n, k]``.

    ``(1 - omega) * sum_i w_i BCE(y_i, p_i) + omega * sum_s w_s BCE(y_s, max_{i in s} p_i)``
    (Obeso et al. 2025, arXiv:2509.03531, section 3), where the weight of a span is that of its
    tokens together. The maximum has the derivative of the first of its highest tokens.

    Args:
        y: classes, ``[n]`` or ``[n, k]``, the same within a run.
        odds: log-odds, ``[n, k]``.
        weight: weights, ``[n, k]``.
        runs: the spans, needed with ``omega``.
        omega: share of the maximum over spans, 0 to 1.
    """
    value, slope = _cross_entropy(y, odds, weight)
    if omega == 0.0 or runs is None:
        return value, slope
    highest = runs.highest(odds)
    of_runs = np.add.reduceat(weight, runs.starts, axis=0)
    value_of_runs, slope_of_runs = _cross_entropy(y[runs.starts], highest, of_runs)
    slope *= 1 - omega
    slope[runs.first_highest(odds, highest), np.arange(odds.shape[1])] += omega * slope_of_runs
    return (1 - omega) * value + omega * value_of_runs, slope


def _cross_entropy(
    y: npt.NDArray[np.integer[Any]], odds: Floats, weight: Floats
) -> tuple[Floats, Floats]:
    y = y.reshape(len(y), -1)
    sign = np.where(y, -1.0, 1.0)
    # log(1 + exp(-|z|)) loses no digits, and one exponential serves both.
    small = np.exp(-np.abs(odds))
    value = np.einsum("ij,ij->j", weight, np.maximum(sign * odds, 0.0) + np.log1p(small))
    probability = np.where(odds >= 0, 1.0, small) / (1.0 + small)
    return value, weight * (probability - y)
