"""How the numbers of a fitted probe become log-odds: numpy alone, so that a server can apply one.

A probe reads rows, the states of tokens, ``[n, width]``. Each form answers two questions: what
does every row say by itself, and what do the rows of one answer, or of one span, say together.
A run of a single row says what that row says, in every form. The pool of a named position, such as
``response_mean``, is such a run.

=========== ======================= ===============================================================
form        tensors                 log-odds of a run of rows
=========== ======================= ===============================================================
linear      weight ``[width]``,     the maximum over its rows of ``weight @ x + bias``
            bias ``[1]``
attention   query, weight           ``sum_h sum_t softmax_t(query_h @ x_t) * (weight_h @ x_t)
            ``[heads, width]``,     + bias``: each head looks where its query points (McKenzie et
            bias ``[1]``            al. 2025, arXiv:2506.10805; Shabalin and Belrose 2025,
                                    blog.eleuther.ai/attention-probes)
multimax    weight                  ``sum_h max_t(weight_h @ x_t) + bias`` (Kramár et al. 2026,
            ``[heads, width]``,     arXiv:2601.11516)
            bias ``[1]``
=========== ======================= ===============================================================

Where a probe reads several layers or sites, a row is their states, concatenated in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from activation_logging.errors import InputMissing, ProbeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.arrays import Floats


class Form(ABC):
    """One way in which a probe's tensors make log-odds of rows.

    All that it needs of a row are a few numbers, its *columns*: the row times :meth:`columns`. A
    server keeps these of every token instead of the row (:mod:`.served_probes`), so what is said
    while a model answers and what is said of the stored rows is one arithmetic.
    """

    dims: ClassVar[Mapping[str, int]]
    """The names of the tensors, and how many dimensions each has."""

    @abstractmethod
    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """What rows are multiplied by, float64 ``[width, columns]``."""

    @abstractmethod
    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        """Log-odds of every row by itself, float64 ``[n]``, of their ``columns``, ``[n, C]``."""

    @abstractmethod
    def running_of(self, columns: Floats, bias: float) -> Floats:
        """Log-odds of the first row, of the first two together, and so on, float64 ``[n]``.

        From a row that is not finite on they are NaN.
        """

    def answer_of(self, columns: Floats, bias: float) -> float:
        """Log-odds of a run of rows together, of their ``columns``, ``[n, C]``.

        Raises:
            InputMissing: there is no row.
        """
        if not len(columns):
            raise InputMissing("no state: none of its tokens was read by the model")
        return float(self.running_of(columns, bias)[-1])

    def project(
        self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]
    ) -> tuple[Floats, float]:
        """The columns of rows, float64 ``[n, C]``, and the bias."""
        return np.asarray(rows, np.float64) @ self.columns(tensors), float(tensors["bias"][0])

    def tokens(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> Floats:
        """Log-odds of every row by itself, float64 ``[n]``; NaN where a row is not finite."""
        return self.tokens_of(*self.project(tensors, rows))

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float:
        """Log-odds of a run of rows together.

        Raises:
            InputMissing: there is no row.
        """
        return self.answer_of(*self.project(tensors, rows))

    def width(self, tensors: Mapping[str, npt.NDArray[Any]]) -> int:
        """Number of elements of a row that these tensors apply to.

        Raises:
            ProbeError: a tensor is missing, has another shape than the form's, or is not finite.
        """
        if unknown := sorted(set(tensors) ^ set(self.dims)):
            raise ProbeError(
                f"the weights of the probe are {', '.join(sorted(tensors)) or 'none'}; its form "
                f"has {', '.join(self.dims)} ({', '.join(unknown)} is missing or too much)"
            )
        for name, dims in self.dims.items():
            tensor = tensors[name]
            if tensor.ndim != dims or not tensor.size or tensor.dtype.kind != "f":
                raise ProbeError(
                    f"the tensor {name} of the probe has the shape {list(tensor.shape)} of "
                    f"{tensor.dtype}; floats of {dims} dimensions are needed"
                )
            if not np.isfinite(tensor).all():
                raise ProbeError(f"the tensor {name} of the probe holds values that are not finite")
        shapes = {tensors[name].shape for name in self.dims if name != "bias"}
        if len(shapes) > 1 or tensors["bias"].shape != (1,):
            raise ProbeError("the tensors of the probe have different shapes")
        return int(tensors["weight"].shape[-1])


class _Linear(Form):
    dims = MappingProxyType({"weight": 1, "bias": 1})

    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        return np.asarray(tensors["weight"], np.float64)[:, None]

    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        return columns[:, 0] + bias

    def running_of(self, columns: Floats, bias: float) -> Floats:
        return _highest(columns)[:, 0] + bias


class _Attention(Form):
    dims = MappingProxyType({"query": 2, "weight": 2, "bias": 1})

    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        return np.concatenate([tensors["query"], tensors["weight"]], dtype=np.float64).T

    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        return np.asarray(columns[:, columns.shape[1] // 2 :].sum(axis=1) + bias)

    def running_of(self, columns: Floats, bias: float) -> Floats:
        looks, values = np.split(columns, 2, axis=1)
        found = np.empty(len(columns))
        highest = _highest(looks)
        total = weighted = np.zeros(looks.shape[1])
        start, base = 0, highest[:1]
        while start < len(columns):
            # The exponentials of a stretch have one scale; what overflows it begins another.
            new = highest[start : start + 1]
            total, weighted = (np.exp(base - new) * sums for sums in (total, weighted))
            base = new
            beyond = np.flatnonzero((highest[start:] - base > _STRETCH).any(axis=1))
            stop = start + int(beyond[0]) if len(beyond) else len(columns)
            shares = np.exp(looks[start:stop] - base)
            totals = total + shares.cumsum(axis=0)
            sums = weighted + (shares * values[start:stop]).cumsum(axis=0)
            found[start:stop] = (sums / totals).sum(axis=1)
            total, weighted, start = totals[-1:], sums[-1:], stop
        return found + bias


class _Multimax(Form):
    dims = MappingProxyType({"weight": 2, "bias": 1})

    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        return np.asarray(tensors["weight"], np.float64).T

    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        return np.asarray(columns.sum(axis=1) + bias)

    def running_of(self, columns: Floats, bias: float) -> Floats:
        return np.asarray(_highest(columns).sum(axis=1) + bias)


FORMS: Mapping[str, Form] = MappingProxyType(
    {"linear": _Linear(), "attention": _Attention(), "multimax": _Multimax()}
)
"""By the name that a saved probe has for its form."""


def form_of(name: str) -> Form:
    """The form of that name.

    Raises:
        ProbeError: there is none.
    """
    if name not in FORMS:
        raise ProbeError(f"the form {name!r} of a probe is not one of {', '.join(FORMS)}")
    return FORMS[name]


_STRETCH = 500.0
"""How much larger than the first a logarithm may become: exp of 709 overflows float64."""


def _highest(columns: Floats) -> Floats:
    """The maximum of each column so far, ``[n, C]``."""
    return np.asarray(np.maximum.accumulate(columns, axis=0))
