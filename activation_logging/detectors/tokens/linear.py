"""Linear probes of tokens, as scikit-learn estimators.

All estimators here and in :mod:`.pooled` are fitted by ``fit(X, y, spans=None,
sample_weight=None)``. ``X`` is ``[n, width]``, one row per token; ``y`` is the class 0 or 1 of each
row; ``spans`` is a whole number per row, the span or the answer that it belongs to, whose rows
stand side by side (-1: to none). ``predict_proba(X)`` is of rows, ``span_odds(X, spans)`` of spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted

from activation_logging.detectors.forms import FORMS, Form
from activation_logging.detectors.tokens.fitting import Problems
from activation_logging.detectors.tokens.losses import Runs
from activation_logging.detectors.tokens.rows import InMemory
from activation_logging.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.arrays import Floats, Ints


TOKEN_C = 0.01
"""Inverse L2 penalty on standardised states, where each span weighs 1."""


class Probe(ClassifierMixin, BaseEstimator):
    """What the probes of tokens share: their log-odds are those of a :class:`.Form`."""

    form: str
    tensors_: Mapping[str, npt.NDArray[Any]]
    classes_: Ints
    n_features_in_: int

    def decision_function(self, X: npt.ArrayLike) -> Floats:
        """Log-odds of every row by itself, ``[n]``."""
        check_is_fitted(self)
        return self._form.tokens(self.tensors_, _states(X))

    def predict_proba(self, X: npt.ArrayLike) -> Floats:
        """Probabilities of both classes for every row by itself, ``[n, 2]``."""
        positive = np.exp(-np.logaddexp(0.0, -self.decision_function(X)))  # no overflow
        return np.stack([1 - positive, positive], axis=1)

    def predict(self, X: npt.ArrayLike) -> Ints:
        """The likelier class of every row by itself, ``[n]``."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def span_odds(self, X: npt.ArrayLike, spans: npt.ArrayLike) -> Floats:
        """Log-odds of every span, in the order of the rows, ``[spans]``."""
        check_is_fitted(self)
        states = _states(X)
        starts = Runs.of(spans).starts
        ends = np.append(starts[1:], len(states))
        return np.array(
            [
                self._form.answer(self.tensors_, states[start:end])
                for start, end in zip(starts, ends, strict=True)
            ]
        )

    @property
    def _form(self) -> Form:
        return FORMS[self.form]


class TokenProbe(Probe):
    """Logistic regression on the states of tokens (Obeso et al. 2025, arXiv:2509.03531).

    Args:
        C: inverse strength of the L2 penalty on standardised states.
        span_max: fit the highest token of each span at the end, instead of all of its tokens.

    After fitting, ``coef_`` ``[1, width]`` and ``intercept_`` ``[1]`` apply to raw states.
    """

    form = "linear"

    def __init__(self, C: float = TOKEN_C, span_max: bool = False) -> None:
        self.C = C
        self.span_max = span_max

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        spans: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> TokenProbe:
        """Fit on rows; without ``sample_weight`` each span counts once, or each row without spans.

        Raises:
            DatasetError: there are no two classes, or rows of a span are apart or of two classes.
        """
        states, classes, runs, weight = checked(X, y, spans, sample_weight)
        if self.span_max and spans is None:
            raise DatasetError("the maximum over spans needs to know them: fit(X, y, spans=...)")
        use = np.ones((len(classes), 1), bool)
        problems = Problems(InMemory(states), classes, weight, use, runs)
        (fitted,) = problems.fit([self.C], span_max=self.span_max)
        self.coef_, self.intercept_ = fitted.weight, fitted.bias
        self.tensors_ = {"weight": fitted.weight[0], "bias": fitted.bias}
        self.classes_, self.n_features_in_ = np.array([0, 1]), states.shape[1]
        return self


def checked(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    spans: npt.ArrayLike | None,
    sample_weight: npt.ArrayLike | None,
) -> tuple[npt.NDArray[np.float32], Ints, Runs, Floats]:
    """States, classes, runs and weights of what a probe is fitted on.

    Raises:
        DatasetError: they do not fit together; the text says how.
        ValueError: they are no finite numbers, or of different lengths.
    """
    states = _states(X)
    classes = np.asarray(y)
    check_consistent_length(states, classes)
    if not np.array_equal(np.unique(classes), [0, 1]):
        raise DatasetError(f"y has the classes {np.unique(classes)[:5]}; both 0 and 1 are needed")
    classes = classes.astype(np.int64)
    runs = Runs.of(np.full(len(classes), -1) if spans is None else spans)
    check_consistent_length(states, runs.rows)
    if (classes != classes[runs.starts][runs.rows]).any():
        raise DatasetError("the rows of a span have one class, that of the span")
    if sample_weight is None:
        weight = 1.0 / np.bincount(runs.rows)[runs.rows]
    else:
        weight = np.asarray(sample_weight, np.float64)
        check_consistent_length(states, weight)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise DatasetError("a sample's weight is a finite number of 0 or more")
        if not (weight[classes == 0].any() and weight[classes == 1].any()):
            raise DatasetError("all rows of a class have a weight of 0; both classes are needed")
    return states, classes, runs, weight


def _states(X: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(check_array(X, dtype=np.float32))
