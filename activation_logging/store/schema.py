"""Whether a record that was read is what this package would have written.

A store may have been cut, flipped or forged. What passes here has fields of the right types
and numbers within bounds, so that the rest of the package meets no surprise but
:class:`~activation_logging.errors.StoreCorrupt`.

What an entry needs must be right. Its other fields may hold anything, since some come from the
client, who may have sent something that merely looks like ours: the functions
from :func:`messages` on read them, and what is not what its name says reads as None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

from activation_logging.errors import StoreCorrupt
from activation_logging.records import LABELS
from activation_logging.strict_json import MAX_DEPTH, is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ROWS = 1 << 26
"""No request has more rows; a larger number would only ask for memory."""

_NONE = type(None)
_NUMBER = (int, float)
_DOCUMENT: dict[str, tuple[type, ...]] = {
    "capture": (str,),
    "prompt": (str,),
    "response": (str,),
    "model": (str,),
    "request_id": (str,),
    "prompt_token_ids": (list,),
    "response_token_ids": (list,),
    "created": _NUMBER,
    "vllm_version": (str,),
}
_ENTRY = {**_DOCUMENT, "key": (str,), "sequence": (int,)}
_ENTRY_OPTIONS: dict[str, tuple[type, ...]] = {
    "error": (str, _NONE),
    "rows": (int,),
    "tokens": (str,),
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
_MAX_TOKEN = (1 << 31) - 1
_MAX_DIGITS = 10
"""Of a token id in decimal."""


def document(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is about to become an entry, checked as :func:`entry` will check it.

    Messages that are nested more deeply than readers could follow are left out: no chat has such.

    Raises:
        StoreCorrupt: as for :func:`entry`.
    """
    what = "an entry that was to be written"
    _check(fields, what, _DOCUMENT, _ENTRY_OPTIONS)
    _check_tokens(fields, what)
    if is_deeper(fields.get("messages"), MAX_DEPTH):
        return {name: value for name, value in fields.items() if name != "messages"}
    return fields


def entry(record: dict[str, Any], what: str) -> dict[str, Any]:
    """An entry's record, checked but for the fields that it may lack.

    Raises:
        StoreCorrupt: a field is missing or of another type; ``what`` names the record.
    """
    _check(record, what, _ENTRY, _ENTRY_OPTIONS)
    if not (0 <= record["sequence"] <= _MAX_SEQUENCE and 0 <= record.get("rows", 0) <= MAX_ROWS):
        raise StoreCorrupt(f"{what} has numbers that cannot be")
    _check_tokens(record, what)
    return record


def _check_tokens(record: Mapping[str, Any], what: str) -> None:
    for name in ("prompt_token_ids", "response_token_ids"):
        if not _are_tokens(record[name]):
            raise StoreCorrupt(f"{what} has {name} that are no token ids")


def _are_tokens(ids: list[Any]) -> bool:
    # By way of sets: a long prompt has a hundred thousand.
    return not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= _MAX_TOKEN)


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
    score = record["score"]
    # Version 0.1 took what is not finite; such a score says nothing.
    if score is not None and not (_is_float(score) and math.isfinite(score)):
        score = None
    return {**{name: record[name] for name in _LABEL}, "score": score}


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
    record: Mapping[str, Any],
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
