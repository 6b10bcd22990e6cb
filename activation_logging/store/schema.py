"""Whether a record that was read is what this package would have written.

A store may have been cut, flipped or forged. What passes here has fields of the right types
and numbers within bounds, so that the rest of the package meets no surprise but
:class:`~activation_logging.errors.StoreCorrupt`.
"""

from __future__ import annotations

from typing import Any

from activation_logging.errors import StoreCorrupt
from activation_logging.records import LABELS

MAX_ROWS = 1 << 26
"""No request has more rows; a larger number would only ask for memory."""

_NONE = type(None)
_NUMBER = (int, float)
_ENTRY: dict[str, tuple[type, ...]] = {
    "capture": (str,),
    "prompt": (str,),
    "response": (str,),
    "model": (str,),
    "request_id": (str,),
    "prompt_token_ids": (list,),
    "response_token_ids": (list,),
    "created": _NUMBER,
    "vllm_version": (str,),
    "key": (str,),
    "sequence": (int,),
}
_ENTRY_OPTIONS: dict[str, tuple[type, ...]] = {
    "choice": (int, _NONE),
    "content": (str, _NONE),
    "error": (str, _NONE),
    "finish_reason": (str, _NONE),
    "logprobs": (list, _NONE),
    "messages": (list, _NONE),
    "response_tokens": (list, _NONE),
    "rows": (int,),
    "sampling": (dict, _NONE),
    "tags": (dict, _NONE),
    "tokens": (str,),
    "top_logprobs": (list, _NONE),
    "writer": (str, _NONE),
}
_CAPTURE: dict[str, tuple[type, ...]] = {
    "layers": (list,),
    "num_layers": (int,),
    "hidden_size": (int,),
    "dtype": (str,),
    "first": (int,),
    "slices": (list,),
}
_CAPTURE_OPTIONS: dict[str, tuple[type, ...]] = {"dropped": (str, _NONE), "writer": (str, _NONE)}
_LABEL: dict[str, tuple[type, ...]] = {
    "label": (str,),
    "score": (*_NUMBER, _NONE),
    "judge": (str, _NONE),
    "details": (dict,),
    "created": (*_NUMBER, _NONE),
}
_WRITER: dict[str, tuple[type, ...]] = {
    "role": (str,),
    "pid": (int,),
    "host": (str,),
    "started": _NUMBER,
}
_WRITER_OPTIONS: dict[str, tuple[type, ...]] = {"born": (str, _NONE), "stopped": _NUMBER}

DTYPES = ("float32", "float16", "bfloat16")
_MAX_SEQUENCE = (1 << 64) - 1
_MAX_PID = 0x7FFF_FFFF
_MAX_TIME = 200e9
"""Seconds; what lies behind the year 8000 is no date that Python could print."""
_TIMES = frozenset({"created", "started", "stopped"})
_MAX_LAYER = 0xFFFF
"""Two bytes of a row's key hold its layer."""


def entry(record: dict[str, Any], what: str) -> dict[str, Any]:
    """An entry's record, checked but for the members of its lists.

    Raises:
        StoreCorrupt: a field is missing or of another type; ``what`` names the record.
    """
    _check(record, what, _ENTRY, _ENTRY_OPTIONS)
    if not (0 <= record["sequence"] <= _MAX_SEQUENCE and 0 <= record.get("rows", 0) <= MAX_ROWS):
        raise StoreCorrupt(f"{what} has numbers that cannot be")
    return record


def capture(record: dict[str, Any], what: str) -> dict[str, Any]:
    """A capture's record, checked.

    Raises:
        StoreCorrupt: as for :func:`entry`, or a number is out of bounds.
    """
    _check(record, what, _CAPTURE, _CAPTURE_OPTIONS)
    fits = (
        record["dtype"] in DTYPES
        and bool(record["slices"]) <= record["hidden_size"] <= MAX_ROWS
        and 0 <= record["first"] <= MAX_ROWS
        and 0 <= record["num_layers"] <= _MAX_LAYER
        and all(type(n) is int and 0 <= n <= _MAX_LAYER for n in record["layers"])
        and all(map(_is_slice, record["slices"]))
        and sum(part[2] for part in record["slices"]) <= MAX_ROWS
    )
    if not fits:
        raise StoreCorrupt(f"{what} describes rows that cannot be")
    return record


def label(record: dict[str, Any], what: str) -> dict[str, Any]:
    """A label's record, checked, without fields that are not ours.

    Raises:
        StoreCorrupt: as for :func:`entry`, or the label is none of :data:`LABELS`.
    """
    _check(record, what, _LABEL, {})
    if record["label"] not in LABELS:
        raise StoreCorrupt(f"{what} is none of {', '.join(LABELS)}")
    return {name: record[name] for name in _LABEL}


def writer(record: dict[str, Any], what: str) -> dict[str, Any]:
    """A writer's record, checked.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    _check(record, what, _WRITER, _WRITER_OPTIONS)
    if not 0 < record["pid"] <= _MAX_PID:
        raise StoreCorrupt(f"{what} has a pid that cannot be")
    return record


def number(raw: bytes | memoryview, what: str) -> int:
    """A count, written in decimal.

    Raises:
        StoreCorrupt: it is something else.
    """
    text = bytes(raw)
    if not (text.isdigit() and len(text) < 20):
        raise StoreCorrupt(f"{what} is not a number")
    return int(text)


def _is_slice(part: Any) -> bool:
    return (
        type(part) is list
        and len(part) == 3
        and type(part[0]) is str
        and all(type(n) is int and 0 <= n <= MAX_ROWS for n in part[1:])
    )


def _check(
    record: dict[str, Any],
    what: str,
    required: dict[str, tuple[type, ...]],
    optional: dict[str, tuple[type, ...]],
) -> None:
    for name, kinds in required.items():
        if name not in record:
            raise StoreCorrupt(f"{what} lacks its {name}")
        # Not isinstance: JSON's true is no number.
        if type(record[name]) not in kinds:
            raise StoreCorrupt(f"{what} has a {name} of the wrong type")
    for name, kinds in optional.items():
        if name in record and type(record[name]) not in kinds:
            raise StoreCorrupt(f"{what} has a {name} of the wrong type")
    for name in _TIMES & record.keys():
        if not 0 <= (record[name] or 0) <= _MAX_TIME:
            raise StoreCorrupt(f"{what} has a {name} that is no time")
