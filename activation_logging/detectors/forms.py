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


class Run(ABC):
    """The rows of one answer so far. What it keeps of them does not grow."""

    @abstractmethod
    def more(self, columns: Floats) -> Floats:
        """Log-odds of all rows so far, at each of the rows that come now, float64 ``[n]``.

        They are the same, to the last bit, in whatever pieces the rows come. From a row that is
        not finite on they are NaN.

        Args:
            columns: of the new rows, ``[n, C]``.
        """


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
    def begin(self, bias: float) -> Run:
        """A run that has no rows yet."""

    def running_of(self, columns: Floats, bias: float) -> Floats:
        """Log-odds of the first row, of the first two together, and so on; see :meth:`Run.more`."""
        return self.begin(bias).more(columns)

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

    def begin(self, bias: float) -> Run:
        return _HighestRun(bias)


class _Attention(Form):
    dims = MappingProxyType({"query": 2, "weight": 2, "bias": 1})

    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        return np.concatenate([tensors["query"], tensors["weight"]], dtype=np.float64).T

    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        return np.asarray(columns[:, columns.shape[1] // 2 :].sum(axis=1) + bias)

    def begin(self, bias: float) -> Run:
        return _AttentionRun(bias)


class _Multimax(Form):
    dims = MappingProxyType({"weight": 2, "bias": 1})

    def columns(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Floats:
        return np.asarray(tensors["weight"], np.float64).T

    def tokens_of(self, columns: Floats, bias: float) -> Floats:
        return np.asarray(columns.sum(axis=1) + bias)

    def begin(self, bias: float) -> Run:
        return _HighestRun(bias)


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


class _HighestRun(Run):
    """The sum of the maximum of each column."""

    def __init__(self, bias: float) -> None:
        self._bias = bias
        self._highest = Accumulated(np.maximum)

    def more(self, columns: Floats) -> Floats:
        return np.asarray(self._highest.more(columns).sum(axis=1) + self._bias)


class _AttentionRun(Run):
    """The means of the values, weighted with the exponentials of the looks, of each head."""

    def __init__(self, bias: float) -> None:
        self._bias = bias
        self._base: Floats | None = None
        self._highest = Accumulated(np.maximum)
        self._total, self._weighted = Accumulated(np.add), Accumulated(np.add)

    def more(self, columns: Floats) -> Floats:
        looks, values = np.split(columns, 2, axis=1)
        found = np.empty(len(columns))
        highest = self._highest.more(looks)
        start = 0
        while start < len(columns):
            # The exponentials of a stretch have one scale; what overflows it begins another.
            if self._base is None:
                self._base = highest[:1]
            beyond = np.flatnonzero((highest[start:] - self._base > _STRETCH).any(axis=1))
            stop = start + int(beyond[0]) if len(beyond) else len(columns)
            shares = np.exp(looks[start:stop] - self._base)
            totals = self._total.more(shares)
            sums = self._weighted.more(shares * values[start:stop])
            found[start:stop] = (sums / totals).sum(axis=1)
            if stop < len(columns):
                scale = np.exp(self._base - highest[stop : stop + 1])
                self._total.scale(scale)
                self._weighted.scale(scale)
                self._base = highest[stop : stop + 1]
            start = stop
        return found + self._bias


class Accumulated:
    """The sums, or maxima, of columns so far: in order, so that pieces of rows change no bit."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function
        self._last: Floats | None = None

    def more(self, columns: Floats) -> Floats:
        """Those at each of the rows that come now, ``[n, C]``."""
        if self._last is None:
            found = self._function.accumulate(columns, axis=0)
        else:
            found = self._function.accumulate(np.concatenate([self._last, columns]), axis=0)[1:]
        if len(found):
            self._last = found[-1:].copy()
        return np.asarray(found)

    def scale(self, factor: Floats) -> None:
        """Multiply what there is so far."""
        if self._last is not None:
            self._last = self._last * factor
