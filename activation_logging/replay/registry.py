"""What a quantity is, and all of them by name.

A new one is a single :class:`Quantity`: a function of one layer. Another package offers its own by
an entry point::

    [project.entry-points."activation_logging.quantities"]
    my_quantity = "my_package.replay:MY_QUANTITY"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Reads = Literal["attention", "states", "head"]
"""``states`` is the residual stream, ``head`` also the model's final norm and output head."""


@dataclass(frozen=True)
class Answer:
    """One answer of ``P`` prompt and ``R`` response tokens.

    The model reads all but the last token: ``n = P + R - 1`` positions. Position ``P - 1 + i`` is
    where response token ``i`` was predicted, and is row ``i`` of what is kept per token.

    Attributes:
        num_prompt: ``P``, at least 1.
        num_response: ``R``, at least 1.
        chosen: the response's token ids, a tensor ``[R]``.
    """

    num_prompt: int
    num_response: int
    chosen: Any

    @property
    def rows(self) -> slice:
        """The positions that predicted the response's tokens."""
        return slice(self.num_prompt - 1, self.num_prompt - 1 + self.num_response)


@dataclass(frozen=True)
class LayerPass:
    """What one decoder layer did to one answer, as tensors of torch on the model's device.

    Attributes:
        number: 1 to the model's depth.
        before: the residual stream that it read, ``[n, hidden]``.
        after: the residual stream that it left, ``[n, hidden]``; of the last layer, before the
            final norm.
        attention: the weights of each head, ``[heads, n, n]``: how much position ``u`` reads of
            position ``i`` is at ``[:, u, i]``. None unless a quantity of this pass reads it.
        log_probs: of states ``[rows, hidden]`` the log-probabilities ``[rows, vocabulary]``,
            float32, that the final norm and the output head make of them.
    """

    number: int
    before: Any
    after: Any
    attention: Any
    log_probs: Callable[[Any], Any]


@dataclass(frozen=True)
class Quantity:
    """Something that one pass over an answer gives, and how it is kept.

    Attributes:
        name: as in the registry, and after ``replay/`` in a store.
        title: what it is, for tables.
        source: the paper that it comes from.
        reads: what it needs of a layer; attention takes the most memory.
        of_layer: from one layer, the tensor that is kept of it. Nothing larger stays in memory.
        axis: where the layers go when those tensors are stacked.
        shape: of what is kept, with ``L`` layers, ``H`` heads and ``R`` response tokens.
        dtype: of what is kept, ``float16`` or ``float32``.
        settings: what else the numbers depend on; part of the digest.
    """

    name: str
    title: str
    source: str
    reads: Reads
    of_layer: Callable[[LayerPass, Answer], Any]
    axis: int
    shape: str
    dtype: str = "float32"
    settings: Mapping[str, Any] = field(default_factory=dict)


_OURS = ("attention:LOOKBACK", "attention:LAPEIGVALS", "stream:ICR", "stream:LOGIT_LENS")

QUANTITIES: Registry[Quantity] = Registry(
    "quantity of a replay",
    Quantity,
    "activation_logging.quantities",
    {where.partition(":")[2].lower(): f"activation_logging.replay.{where}" for where in _OURS},
)
