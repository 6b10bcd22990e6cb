"""The records that the parts of the package hand to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Number, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from activation_logging.errors import LabelError
from activation_logging.strict_json import NotJson, to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

Label = Literal["hallucinated", "correct", "refused", "invalid"]
LABELS: tuple[Label, ...] = get_args(Label)
"""``invalid`` is a judge without a usable verdict: counted and reported, never a class."""

Status = Literal["complete", "pending", "failed", "dropped"]
"""How a request ended, as far as its activations go. ``pending``: one half is not there (yet)."""
STATUSES: tuple[Status, ...] = get_args(Status)

NEVER_RAN = "it ended before any of it was computed"
"""Why a request has no rows of which none are missing: its client left while it was queued."""


MAX_NAME_BYTES = 128
"""Of an evaluator's name in UTF-8: it is part of a key."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluator's verdict on one answer."""

    name: str
    label: Label
    score: float | None = None
    judge: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything but the name, which it is stored and listed under."""
        return {
            "label": self.label,
            "score": self.score,
            "judge": self.judge,
            "details": dict(self.details),
            "created": self.created,
        }

    @classmethod
    def checked(  # noqa: PLR0917 - the fields, in their order
        cls,
        name: Any,
        label: Any,
        score: Any = None,
        judge: Any = None,
        details: Any = None,
        created: float | None = None,
    ) -> Evaluation:
        """An evaluation of whatever an evaluator has computed, in Python's own types.

        Texts, numbers and arrays of numpy, torch and their like are taken for what they hold. A
        truth value is no score: ``True`` does not say of what it is the probability.

        Raises:
            LabelError: a part is of another type, not finite, or too long.
        """
        text = _text(name, "name")
        if not 0 < len(text.encode("utf-8", "replace")) <= MAX_NAME_BYTES or "\0" in text:
            raise LabelError(f"an evaluator's name has 1 to {MAX_NAME_BYTES} bytes and no NUL")
        if not _is_unicode(text):
            raise LabelError(f"an evaluator's name is text that UTF-8 can hold, not {text!r}")
        given = _text(label, "label")
        if given not in LABELS:
            raise LabelError(f"label {given[:80]!r} is not one of {', '.join(LABELS)}")
        return cls(
            name=text,
            label=given,
            score=None if score is None else _score(score),
            judge=None if judge is None else _text(judge, "judge"),
            details={} if details is None else _details(details),
            created=created,
        )


def _text(value: Any, what: str) -> str:
    value = _scalar(value)
    if not isinstance(value, str):
        raise LabelError(f"{what} is text, not a {type(value).__name__}")
    return str.__str__(value)


def _score(value: Any) -> float:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Number) or isinstance(value, complex):
        raise LabelError(f"score is a number, not a {type(value).__name__}")
    try:
        score = float(cast("Real", value))
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise LabelError(f"score is {score}: only finite numbers are taken; leave it out instead")
    return score


def _details(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise LabelError(f"details is a mapping of names to values, not a {type(value).__name__}")
    try:
        return cast("dict[str, Any]", to_plain(value, "details"))
    except NotJson as error:
        raise LabelError(str(error)) from None


def _scalar(value: Any) -> Any:
    """What a scalar of numpy, torch and their like holds; anything else as it is."""
    holds_one = getattr(value, "ndim", None) == 0
    return value.item() if holds_one and callable(getattr(value, "item", None)) else value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


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
    """What the worker knows of one request: which rows, of which layers, and where they are stored.

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
