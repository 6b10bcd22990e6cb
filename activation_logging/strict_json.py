"""Strict JSON (RFC 8259) of any value, for output to terminals, clients and files.

Python's own :mod:`json` writes ``NaN``, which other parsers reject, and rejects numpy's numbers.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from activation_logging.printable import printable

MAX_DEPTH = 100
"""Deepest nesting of lists and objects. Other programs' parsers may not accept more."""

_TOO_DEEP = "(nested too deeply to be shown)"
_SURROGATE = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """A value has no JSON form. The text names the value and its path."""


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Any value as strict JSON. A number that is not finite becomes null.

    Arrays and tensors become lists of Python's numbers; paths and unknown objects become text. Lone
    surrogates are written as escapes, even with ``ascii_only=False``.
    """
    text = json.dumps(
        _plain(value, None, 0),
        indent=indent,
        ensure_ascii=ascii_only,
        allow_nan=False,
        separators=(",", ":") if indent is None else None,
    )
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_plain(value: Any, where: str) -> Any:
    """A value converted to JSON's types: ``dict``, ``list``, ``str``, numbers, ``bool``, None.

    Raises:
        NotJson: it holds a number that is not finite, or a value without a JSON form.
    """
    return _plain(value, where, 0)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more than ``levels`` levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _plain(value: Any, where: str | None, depth: int) -> Any:
    """Convert a value. ``where`` is its path in errors; with None nothing raises an error."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _finite(float(value), where)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if depth >= MAX_DEPTH:
        return _unfit(f"is nested deeper than {MAX_DEPTH} levels", where, _TOO_DEEP)
    if isinstance(value, Mapping):
        return {
            _name(key, where): _plain(part, where and f"{where}.{key}", depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [
            _plain(part, where and f"{where}[{index}]", depth + 1)
            for index, part in enumerate(value)
        ]
    # Arrays, tensors and scalars of numpy, torch and similar libraries.
    listed = getattr(value, "tolist", None)
    if callable(listed):
        return _plain(listed(), where, depth + 1)
    return _unfit(f"holds a {type(value).__name__}, which JSON has no form for", where, str(value))


def _name(key: Any, where: str | None) -> Any:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, Real):
        return json.dumps(_plain(key, where, 0))
    return _unfit(f"has a name of type {type(key).__name__}, not text", where, str(key))


def _finite(number: float, where: str | None) -> float | None:
    if math.isfinite(number):
        return number
    unfit: None = _unfit(f"is {number}: only finite numbers are valid", where, None)
    return unfit


def _unfit(problem: str, where: str | None, shown: Any) -> Any:
    if where is not None:
        raise NotJson(f"{printable(where)} {problem}")
    return shown
