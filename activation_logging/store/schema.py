"""Whether a record that was read is what this package would have written.

A store may have been truncated, damaged or forged. A record that passes here has fields of the
right types and numbers within bounds. Any other raises
:class:`~activation_logging.errors.StoreCorrupt`, the only error that the rest of the package meets.

The fields that an entry needs must be right. Its other fields may hold anything: some come from
the client, who may have sent something that merely looks like ours. The functions from
:func:`messages` on read them, and give None for a value of another type.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard, get_args

from msgspec import Meta, Struct, ValidationError, convert

from activation_logging.errors import StoreCorrupt
from activation_logging.printable import printable
from activation_logging.records import MAX_LENGTH, MAX_NAME_BYTES, Label, Span, SpanLabel
from activation_logging.sites import MAX_LAYER, RESID, Site
from activation_logging.store import layout
from activation_logging.strict_json import MAX_DEPTH, is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping

Dtype = Literal["float32", "float16", "bfloat16"]
MAX_ROWS = 1 << 26
"""No request has more rows; a larger number would only ask for memory."""
_MAX_DIGITS = 10
"""Of a token id in decimal."""

Rows = Annotated[int, Meta(ge=0, le=MAX_ROWS)]
Layer = Annotated[int, Meta(ge=0, le=0xFFFF)]
"""Two bytes of a row's key hold it."""
MAX_WIDTH = 1 << 24
"""No row has more elements."""
_CODE = re.compile("[1-9][0-9]{0,4}")
Size = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Time = Annotated[float, Meta(ge=0, le=200e9)]
"""Seconds since the epoch; Python cannot print dates much later than the year 8000."""
Offset = Annotated[int, Meta(ge=0, le=MAX_LENGTH)]

_Integers = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DerivedType = Literal["bool", _Integers, "float16", "float32", "float64"]
DERIVED_TYPES: tuple[str, ...] = get_args(DerivedType)
"""The types of arrays beside entries, as numpy names them."""
MAX_DERIVED_AXES = 8
_Axis = Annotated[int, Meta(ge=0, le=1 << 30)]


class _Document(Struct):
    """What the front end writes of an entry. Fields with a default may be missing."""

    capture: str
    prompt: str
    response: str
    model: str
    request_id: str
    prompt_token_ids: list[Token]
    response_token_ids: list[Token]
    created: Time
    vllm_version: str
    error: str | None = None
    rows: Rows = 0
    tokens: str = ""
    writer: str | None = None


class _Entry(_Document, kw_only=True):
    key: str
    sequence: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class _Shape(Struct):
    shape: Annotated[list[Size], Meta(min_length=1, max_length=3)]
    dtype: Dtype


class _Score(Struct):
    first: Rows
    running: bool
    digest: Annotated[str, Meta(max_length=100)]
    values: Annotated[str, Meta(max_length=8 * MAX_ROWS)]


class _Capture(Struct):
    layers: list[Layer]
    num_layers: Layer
    hidden_size: Rows
    dtype: Dtype
    first: Rows
    slices: list[tuple[str, Rows, Rows]]
    sites: dict[str, _Shape] = {}
    scores: dict[Annotated[str, Meta(max_length=MAX_NAME_BYTES)], _Score] = {}
    dropped: str | None = None
    unkept: str | None = None
    rows_in: str | None = None
    entry_in: str | None = None
    writer: str | None = None


class _Span(Struct):
    start: Offset
    end: Offset
    label: SpanLabel
    claim: str | None = None
    gold: str | None = None
    source: str | None = None


class _Label(Struct):
    label: Label
    score: int | float | None
    judge: str | None
    details: dict[str, Any]
    created: Time | None
    spans: list[_Span] = []


class _Derived(Struct):
    dtype: DerivedType
    shape: Annotated[list[_Axis], Meta(max_length=MAX_DERIVED_AXES)]
    created: Time
    details: dict[str, Any]


class _Writer(Struct):
    role: str
    pid: Annotated[int, Meta(gt=0, le=0x7FFF_FFFF)]
    host: str
    started: Time
    born: str | None = None
    stopped: Time = 0.0
    # What it has counted; earlier versions lack some.
    entries: int = 0
    captures: int = 0
    rows: int = 0
    bytes: int = 0
    dropped: int = 0
    unkept: int = 0
    pruned: int = 0
    deleted: int = 0
    lost: int = 0
    commits: int = 0
    errors: int = 0
    queue_bytes_max: int = 0


def document(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is about to become an entry, checked as :func:`entry` will check it.

    Messages that are nested more deeply than readers could follow are left out: no chat has such.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    what = "an entry that was to be written"
    _check(fields, what, _Document)
    if is_deeper(fields.get("messages"), MAX_DEPTH):
        return {name: value for name, value in fields.items() if name != "messages"}
    return fields


def entry(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """An entry's record, checked but for the fields that it may lack.

    Raises:
        StoreCorrupt: it is no JSON object, or a field is missing or of another type; ``what``
            names the record.
    """
    return _record(raw, what, _Entry)


def messages(value: Any) -> list[dict[str, Any]] | None:
    """The messages of a chat; None for anything but a list of objects."""
    return value if _is_list_of(value, dict) else None


def texts(value: Any) -> list[str] | None:
    """A list of texts; None for anything else."""
    return value if _is_list_of(value, str) else None


def text(value: Any) -> str | None:
    """A text; None for anything else."""
    return value if type(value) is str else None


def tags(value: Any) -> dict[str, str]:
    """Texts by name; what is no text is left out."""
    return {k: v for k, v in mapping(value).items() if type(v) is str}


def mapping(value: Any) -> dict[str, Any]:
    """An object's members; none for anything else."""
    return dict(value) if type(value) is dict else {}


def index(value: Any) -> int | None:
    """A small number from 0; None for anything else."""
    return value if type(value) is int and 0 <= value <= MAX_ROWS else None


def logprobs(value: Any) -> list[float | None] | None:
    """Log-probabilities, None where there is none; None for anything else."""
    if type(value) is not list or not all(map(_is_logprob, value)):
        return None
    return [float(part) if _is_known(part) else None for part in value]


def top_logprobs(value: Any) -> list[dict[int, float]] | None:
    """Log-probabilities by token id, a mapping per token; None for anything else."""
    if not (_is_list_of(value, dict) and all(map(_is_top, value))):
        return None
    return [{int(k): float(v) for k, v in top.items() if _is_known(v)} for top in value]


def _is_top(top: Mapping[str, Any]) -> bool:
    return all(
        token.isdecimal() and len(token) <= _MAX_DIGITS and _is_logprob(found)
        for token, found in top.items()
    )


def _is_logprob(value: Any) -> bool:
    return value is None or _is_float(value)


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and value < math.inf


def _is_float(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= MAX_ROWS)


def _is_list_of(value: Any, kind: type) -> bool:
    return type(value) is list and all(type(part) is kind for part in value)


def capture(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """A capture's record, checked.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    record = _record(raw, what, _Capture)
    slices = record["slices"]
    if (slices and not record["hidden_size"]) or sum(part[2] for part in slices) > MAX_ROWS:
        raise StoreCorrupt(f"{what} describes rows of an invalid size or number")
    for code, found in record.get("sites", {}).items():
        if math.prod(found["shape"]) > MAX_WIDTH:
            raise StoreCorrupt(f"{what}: a row of site {code} has more than {MAX_WIDTH} elements")
        if not _CODE.fullmatch(code) or site(int(code)).name == RESID:
            raise StoreCorrupt(f"{what} lists rows of {printable(code[:20])!r}, which is no site")
    return record


def site(code: int) -> Site:
    """The site of a code.

    Raises:
        StoreCorrupt: no kind has that code; a later version wrote it, or it is damaged.
    """
    try:
        found = Site.from_code(code)
    except IndexError:
        found = None
    if found is None or (found.name != RESID and not 0 < found.layer <= MAX_LAYER):
        raise StoreCorrupt(f"site {code} is unknown; a later version may know it")
    return found


def label(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """A label's record, checked, without fields that are not ours.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    record = _record(raw, what, _Label)
    score = record["score"]
    # Version 0.1 took what is not finite; such a score says nothing.
    if score is not None and not (_is_float(score) and math.isfinite(score)):
        score = None
    if any(span["start"] >= span["end"] for span in record.get("spans", ())):
        raise StoreCorrupt(f"{what} has a span that ends before it starts")
    kept = {name: record[name] for name in ("label", "judge", "details", "created")}
    return {**kept, "score": score, "spans": record.get("spans", [])}


def spans(record: Mapping[str, Any]) -> tuple[Span, ...]:
    """The spans of a checked label."""
    names = _Span.__struct_fields__
    return tuple(Span(**{name: one.get(name) for name in names}) for one in record["spans"])


def shared(value: Any, tokens: int, length: int) -> list[tuple[int, int, int]] | None:
    """What :func:`.offsets.token_offsets` takes: token, start and end; None for anything else.

    Args:
        value: the record's field.
        tokens: the number of the response's tokens.
        length: the number of its characters.
    """
    if type(value) is not list:
        return None
    found = [tuple(part) for part in value if _is_list_of(part, int) and len(part) == 3]
    valid = [part for part in found if 0 <= part[0] < tokens and 0 <= part[1] < part[2] <= length]
    return valid if len(valid) == len(value) else None


def derived(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """The header of an array beside an entry, checked.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    return _record(raw, what, _Derived)


def writer(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """A writer's record, checked.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    return _record(raw, what, _Writer)


def number(raw: bytes | memoryview, what: str) -> int:
    """A count, written in decimal.

    Raises:
        StoreCorrupt: it is something else.
    """
    text = bytes(raw)
    if not (text.isdigit() and len(text) < 20):
        raise StoreCorrupt(f"{what} is not a number")
    return int(text)


def _record(raw: bytes | memoryview, what: str, kind: type[Struct]) -> dict[str, Any]:
    record = layout.load(raw, what)
    _check(record, what, kind)
    return record


def _check(record: Mapping[str, Any], what: str, kind: type[Struct]) -> None:
    # Only checked: fields that are not ours stay. For msgspec too, true is not a number.
    try:
        convert(record, kind)
    except ValidationError as error:
        raise StoreCorrupt(f"{what} is invalid: {error}") from None
