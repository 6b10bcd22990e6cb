"""The records that the parts of the package hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

Label = Literal["hallucinated", "correct", "refused", "invalid"]
LABELS: tuple[Label, ...] = get_args(Label)
"""``invalid`` is a judge without a usable verdict: counted and reported, never a class."""

Status = Literal["complete", "pending", "failed", "dropped"]
"""How a request ended, as far as its activations go. ``pending``: one half is not there (yet)."""
STATUSES: tuple[Status, ...] = get_args(Status)

NEVER_RAN = "it ended before any of it was computed"
"""Why a request has no rows of which none are missing: its client left while it was queued."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluator's verdict on one answer."""

    name: str
    label: Label
    score: float | None = None
    judge: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float | None = None


class SegmentSlice(NamedTuple):
    """``rows`` rows of a segment, from row ``start`` on."""

    segment: bytes
    start: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """Consecutive rows that one request computed, one block per layer.

    ``rows[layer]`` is a C-contiguous array ``[count, hidden]`` whose element type is the
    stored one; bfloat16 travels as ``uint16``, since numpy has no such type. Reading ``rows``
    may wait for a copy from the accelerator, ``nbytes`` never does.
    """

    id: bytes
    rows: Mapping[int, npt.NDArray[Any]]
    nbytes: int


@dataclass(frozen=True)
class Capture:
    """What the worker knows of one request: which rows, of which layers, and where they lie.

    ``first`` is the position of the first row; rows are consecutive from there.
    ``num_layers`` is the model's depth, which is also the number of the ``last`` layer.
    """

    id: str
    layers: Sequence[int]
    num_layers: int
    hidden_size: int
    dtype: str
    first: int
    slices: Sequence[SegmentSlice]
    segments: Sequence[Segment] = ()
    dropped: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the rows that this capture brings along, bytes."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def num_rows(self) -> int:
        """Number of its rows, those included that it shares with earlier captures."""
        return sum(part.rows for part in self.slices)
