"""The records that the parts of the package exchange."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from numbers import Integral, Number, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from activation_logging.errors import LabelError
from activation_logging.strict_json import NotJson, dumps, to_plain
from activation_logging.text import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from activation_logging.sites import RowShape

Label = Literal["hallucinated", "correct", "refused", "invalid"]
LABELS: tuple[Label, ...] = get_args(Label)
"""``invalid``: the judge gave no usable verdict. It is counted and reported, but never a class."""

SpanLabel = Literal["supported", "contradicted", "unverifiable"]
SPAN_LABELS: tuple[SpanLabel, ...] = get_args(SpanLabel)
"""What a claim in an answer is, beside what is known."""

Status = Literal["complete", "pending", "failed", "dropped", "unkept", "elsewhere"]
"""The state of a request's activations.

``pending``: the rows have not arrived (yet). ``unkept``: they were not wanted, or no longer.
``elsewhere``: they are in the store of another host.
"""
STATUSES: tuple[Status, ...] = get_args(Status)

ANSWERED = ("stop", "length", "repetition")
"""The finish reasons of answers that are complete."""

NEVER_RAN = "it ended before any of it was computed"
"""The reason for a request that rightly has no rows: its client left while it was queued."""


MAX_NAME_BYTES = 128
"""Limit for an evaluator's name in UTF-8, which is part of a key."""

MAX_SPANS, MAX_SPANS_BYTES = 10_000, 1 << 20
"""Limits for the spans of one label: their number, and all of them as JSON."""
MAX_LENGTH = (1 << 31) - 1
"""No text has a character beyond this one."""


@dataclass(frozen=True)
class Span:
    """A claim within an answer, and whether it is true.

    Characters are Unicode code points, as Python counts them.

    Attributes:
        start: its first character in the response, from 0.
        end: the character after its last.
        label: ``supported``, ``contradicted`` or ``unverifiable``.
        claim: what is claimed, such as ``birth year``.
        gold: what would be right.
        source: where that is known from.
    """

    start: int
    end: int
    label: SpanLabel
    claim: str | None = None
    gold: str | None = None
    source: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields that say something."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Evaluation:
    """One evaluator's verdict on one answer.

    ``spans`` are the claims in it that the evaluator judged one by one, in the order of the text.
    """

    name: str
    label: Label
    score: float | None = None
    judge: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float | None = None
    spans: tuple[Span, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but the name, which it is stored and listed under; spans if there are any."""
        found: dict[str, Any] = {
            "label": self.label,
            "score": self.score,
            "judge": self.judge,
            "details": dict(self.details),
            "created": self.created,
        }
        if self.spans:
            found["spans"] = [span.as_json() for span in self.spans]
        return found

    @classmethod
    def checked(  # noqa: PLR0917 - the fields, in their order
        cls,
        name: Any,
        label: Any,
        score: Any = None,
        judge: Any = None,
        details: Any = None,
        created: float | None = None,
        spans: Any = (),
    ) -> Evaluation:
        """Validate an evaluator's values, and convert them to Python's own types.

        Scalars and arrays of numpy, torch and similar libraries are accepted. A bool is not a
        score: ``True`` does not say which event it gives the probability of. For ``spans`` see
        :func:`checked_spans`.

        Raises:
            LabelError: a value has the wrong type, is not finite, or is too long.
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
            spans=checked_spans(spans),
        )

    def outside(self, response: str) -> str | None:
        """A sentence that names a span that ends after the response; None if there is none."""
        for span in self.spans:
            if span.end > len(response):
                return (
                    f"the span of {self.name} from {span.start} to {span.end} lies outside the "
                    f"response, which has {len(response)} characters"
                )
        return None


def checked_spans(spans: Any) -> tuple[Span, ...]:
    """Validate spans, and sort them by their place.

    Spans may overlap. One that is given twice, with equal fields, counts once.

    Args:
        spans: :class:`Span` objects, or mappings with their fields. None stands for no spans.

    Raises:
        LabelError: one is invalid, or there are too many; the text names the span, from 0, and the
            field.
    """
    if spans is None:
        return ()
    if isinstance(spans, (str, bytes, Mapping, Span)) or not isinstance(spans, Iterable):
        raise LabelError(f"spans is a list of spans, not a {type(spans).__name__}")
    given = list(islice(spans, MAX_SPANS + 1))
    if len(given) > MAX_SPANS:
        raise LabelError(f"spans: more than {MAX_SPANS} spans of one answer")
    found = dict.fromkeys(_span(span, f"spans[{number}]") for number, span in enumerate(given))
    if len(dumps([span.as_json() for span in found])) > MAX_SPANS_BYTES:
        raise LabelError(f"spans: longer than {MAX_SPANS_BYTES} bytes of JSON")
    return tuple(sorted(found, key=lambda span: (span.start, span.end)))


_SPAN_FIELDS = tuple(one.name for one in fields(Span))


def _span(value: Any, what: str) -> Span:
    if not isinstance(value, (Span, Mapping)):
        raise LabelError(f"{what} is a Span or a mapping, not a {type(value).__name__}")
    given = vars(value) if isinstance(value, Span) else value
    unknown = [name for name in given if name not in _SPAN_FIELDS]
    if unknown:
        names = ", ".join(_SPAN_FIELDS)
        raise LabelError(f"{what} has an unknown field {shown(unknown[0])}; a span has {names}")
    missing = [name for name in ("start", "end", "label") if name not in given]
    if missing:
        raise LabelError(f"{what} has no {missing[0]}")
    start, end = (_offset(given[name], f"{what}.{name}") for name in ("start", "end"))
    if start >= end:
        raise LabelError(f"{what} starts at {start} and ends at {end}: the end comes after")
    label = _text(given["label"], f"{what}.label")
    if label not in SPAN_LABELS:
        raise LabelError(f"{what}.label {label[:80]!r} is not one of {', '.join(SPAN_LABELS)}")
    claim, gold, source = (
        None if given.get(name) is None else _text(given[name], f"{what}.{name}")
        for name in ("claim", "gold", "source")
    )
    return Span(start, end, label, claim, gold, source)


def _offset(value: Any, what: str) -> int:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise LabelError(f"{what} is a whole number, not a {type(value).__name__}")
    place = int(value)
    if not 0 <= place <= MAX_LENGTH:
        raise LabelError(f"{what} is {shown(place)}: it is no place in a text")
    return place


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
        raise LabelError(f"score is {score}: only finite numbers are valid; leave it out instead")
    return score


def _details(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise LabelError(f"details is a mapping of names to values, not a {type(value).__name__}")
    try:
        return cast("dict[str, Any]", to_plain(value, "details"))
    except NotJson as error:
        raise LabelError(str(error)) from None


def _scalar(value: Any) -> Any:
    """The Python value of a scalar of numpy, torch or similar; any other value unchanged."""
    holds_one = getattr(value, "ndim", None) == 0
    return value.item() if holds_one and callable(getattr(value, "item", None)) else value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


class SegmentSlice(NamedTuple):
    """``rows`` consecutive rows of a segment, beginning at row ``start``."""

    segment: bytes
    start: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """Consecutive rows that one request computed, one block per site.

    ``rows[code]`` is a C-contiguous array ``[count, width]`` of the stored type; see
    :attr:`.Site.code`, which is a layer's number for the residual stream. bfloat16 is passed as its
    bits in ``uint16``, because numpy has no such type. Reading ``rows`` may wait for a copy from
    the accelerator; reading ``nbytes`` never waits.
    """

    id: bytes
    rows: Mapping[int, npt.NDArray[Any]]
    nbytes: int


class LiveScore(NamedTuple):
    """What a probe said of an answer while the model gave it.

    ``values``, float32 ``[n]``, are probabilities at the positions from ``first`` on; NaN where a
    state is not finite. Where ``running``, only that of the answer's last position counts: each is
    what the probe would say if the answer ended there. ``digest`` is that of the probe.
    """

    first: int
    values: npt.NDArray[np.float32]
    digest: str
    running: bool = False


@dataclass(frozen=True)
class Capture:
    """What the worker knows of one request: which rows, of which sites, and where they are stored.

    ``first`` is the position of the first row; the rows are consecutive. ``num_layers`` is the
    model's depth, which is also the number of the ``last`` layer. ``layers`` are those of the
    residual stream, whose rows have ``hidden_size`` elements of ``dtype``; ``sites`` has the codes
    of all other sites, with what their rows are. ``segments`` are the new rows to store; other
    slices refer to stored segments. ``dropped`` is the reason for missing rows. ``unkept`` is why
    there are none by intention. ``rows_in`` names the store of another host that has the rows,
    where this is the front end's note of them; ``entry_in`` that of the entry, where this is such
    rows. Both are ``HOST:PATH``. ``scores`` are by the names of probes; reading them may wait like
    reading rows. They are there without rows, too.
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
    unkept: str | None = None
    sites: Mapping[int, RowShape] = field(default_factory=dict)
    scores: Mapping[str, LiveScore] = field(default_factory=dict)
    rows_in: str | None = None
    entry_in: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the new rows of this capture, bytes."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def num_rows(self) -> int:
        """Number of its rows, including those shared with earlier captures."""
        return sum(part.rows for part in self.slices)
