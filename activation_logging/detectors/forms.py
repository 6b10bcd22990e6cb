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

Floats = npt.NDArray[np.float64]


class Form(ABC):
    """One way in which a probe's tensors make log-odds of rows."""

    dims: ClassVar[Mapping[str, int]]
    """The names of the tensors, and how many dimensions each has."""

    def tokens(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> Floats:
        """Log-odds of every row by itself, float64 ``[n]``; NaN where a row is not finite."""
        weight = np.atleast_2d(tensors["weight"]).sum(axis=0, dtype=np.float64)
        return np.asarray(_wide(rows) @ weight + float(tensors["bias"][0]))

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float:
        """Log-odds of a run of rows together.

        Raises:
            InputMissing: there is no row.
        """
        if not len(rows):
            raise InputMissing("no state: none of its tokens was read by the model")
        return self._answer(tensors, rows)

    @abstractmethod
    def _answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float: ...

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

    def _answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float:
        return float(self.tokens(tensors, rows).max())


class _Attention(Form):
    dims = MappingProxyType({"query": 2, "weight": 2, "bias": 1})

    def _answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float:
        wide = _wide(rows)
        looks = wide @ tensors["query"].T.astype(np.float64)
        shares = np.exp(looks - looks.max(axis=0))
        shares /= shares.sum(axis=0)
        values = wide @ tensors["weight"].T.astype(np.float64)
        return float((shares * values).sum() + float(tensors["bias"][0]))


class _Multimax(Form):
    dims = MappingProxyType({"weight": 2, "bias": 1})

    def _answer(self, tensors: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[Any]) -> float:
        values = _wide(rows) @ tensors["weight"].T.astype(np.float64)
        return float(values.max(axis=0).sum() + float(tensors["bias"][0]))


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


def _wide(rows: npt.NDArray[Any]) -> Floats:
    return np.asarray(rows, np.float64)
