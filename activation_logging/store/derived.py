"""Arrays that were derived from an entry and stand beside it, such as a probe's scores.

A record is a JSON object on one line, with the array's type, shape and details, then a line feed,
then the array itself: C order, little endian.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DerivedError, StoreCorrupt
from activation_logging.printable import printable
from activation_logging.records import MAX_NAME_BYTES
from activation_logging.store import schema
from activation_logging.strict_json import NotJson, dumps, to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

SCORE = "score/"
"""What the names of a probe's scores begin with."""
REPLAY = "replay/"
"""What the names of arrays begin with that a second pass of the model has computed."""

MAX_BYTES = 1 << 30
"""No array is larger."""
MAX_HEADER_BYTES = 1 << 16
_NAME = re.compile("[a-z]+/.+")


@dataclass(frozen=True, eq=False)
class Derived:
    """An array beside an entry.

    Attributes:
        key: the entry's key.
        name: ``score/NAME`` or ``replay/KIND``; in general a word of lower-case letters, a slash,
            and any text, 128 bytes of UTF-8 at most.
        values: the array: of booleans, or of numbers of 8 to 64 bits (no bfloat16).
        details: what is to be known of it, for JSON: for scores the ``digest`` of the probe.
        created: when it was written, seconds since the epoch; None: when it is put.
    """

    key: str
    name: str
    values: npt.NDArray[Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float | None = None


class Header(NamedTuple):
    """What is known of an array without reading it."""

    dtype: str
    shape: tuple[int, ...]
    details: dict[str, Any]
    created: float

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def encode(item: Derived, now: float) -> bytes:
    """The record to store, written at ``now`` unless the item says otherwise.

    Raises:
        DerivedError: its name, array or details cannot be stored.
    """
    check_name(item.name)
    values = np.asarray(item.values)
    dtype = values.dtype.name
    if dtype not in schema.DERIVED_TYPES:
        raise DerivedError(
            f"{item.name} is an array of {dtype}; one of {', '.join(schema.DERIVED_TYPES)} can be "
            "kept beside an entry"
        )
    if values.nbytes > MAX_BYTES or values.ndim > schema.MAX_DERIVED_AXES:
        raise DerivedError(
            f"{item.name} has {values.nbytes} bytes and {values.ndim} axes; up to {MAX_BYTES} "
            f"bytes and {schema.MAX_DERIVED_AXES} axes can be kept beside an entry"
        )
    if item.name.startswith(SCORE) and (dtype != "float32" or values.ndim != 1):
        raise DerivedError(f"{item.name}: scores are float32 [rows], not {dtype} {values.shape}")
    try:
        details = to_plain(dict(item.details), "details")
    except NotJson as error:
        raise DerivedError(f"{item.name}: {error}") from None
    record = {
        "dtype": dtype,
        "shape": list(values.shape),
        "created": now if item.created is None else item.created,
        "details": details,
    }
    header = dumps(record).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise DerivedError(f"{item.name}: details are longer than {MAX_HEADER_BYTES} bytes of JSON")
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    raw = header + b"\n" + little.tobytes()  # in C order
    try:
        # One that nobody can read would hide the others beside its entry.
        read_header(raw, item.name)
    except StoreCorrupt as error:
        raise DerivedError(f"{error}, so it cannot be kept beside an entry") from None
    return raw


def read_header(raw: bytes | memoryview, what: str) -> Header:
    """The header of a record, checked against the record's length.

    Raises:
        StoreCorrupt: the record is invalid; ``what`` names it.
    """
    return _split(raw, what)[0]


def decode(key: str, name: str, raw: bytes | memoryview, what: str) -> Derived:
    """A record's array, a copy.

    Raises:
        StoreCorrupt: as for :func:`read_header`.
    """
    header, start = _split(raw, what)
    dtype = np.dtype(header.dtype).newbyteorder("<")
    flat = np.frombuffer(raw, dtype, offset=start, count=math.prod(header.shape))
    values = flat.astype(header.dtype).reshape(header.shape)
    return Derived(key, name, values, header.details, header.created)


def check_name(name: Any) -> None:
    """Raise a DerivedError unless an array may have this name."""
    if not (
        isinstance(name, str)
        and _NAME.fullmatch(name)
        and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
        and name.isprintable()
    ):
        raise DerivedError(
            f"{printable(repr(name)[:80])} is not the name of an array beside an entry: it is "
            f"score/NAME or replay/KIND, printable, and of {MAX_NAME_BYTES} bytes at most"
        )


def _split(raw: bytes | memoryview, what: str) -> tuple[Header, int]:
    """The header, and where the array begins."""
    front, line, _ = bytes(raw[: MAX_HEADER_BYTES + 1]).partition(b"\n")
    if not line:
        raise StoreCorrupt(f"{what} has no header")
    record = schema.derived(front, what)
    header = Header(
        record["dtype"], tuple(record["shape"]), record["details"], float(record["created"])
    )
    start = len(front) + 1
    # Python's own numbers do not overflow; numpy refuses large axes beside an empty one.
    if math.prod(max(size, 1) for size in header.shape) > MAX_BYTES:
        raise StoreCorrupt(f"{what} is too large to be right")
    expected = math.prod(header.shape) * np.dtype(header.dtype).itemsize
    if len(raw) - start != expected:
        raise StoreCorrupt(
            f"{what} has {len(raw) - start} bytes, but an array of {header.dtype} "
            f"{list(header.shape)} has {expected}"
        )
    return header, start


def name_of(raw: bytes) -> str:
    """The name in an array's key, after the entry's.

    Raises:
        StoreCorrupt: no array can have it.
    """
    name = raw.decode("utf-8", "backslashreplace")
    try:
        check_name(name)
    except DerivedError as error:
        raise StoreCorrupt(str(error)) from None
    return name
