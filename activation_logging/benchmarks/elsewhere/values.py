"""Which label a tool's value stands for."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import SettingsError
from activation_logging.records import LABELS, Label
from activation_logging.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RIGHT_OR_WRONG: dict[str, Label] = {
    "1": "correct",
    "0": "hallucinated",
    "true": "correct",
    "false": "hallucinated",
}
"""Grades of tools that say whether an answer is right."""

_COMPARED = re.compile(r"(>=|<=|>|<)(.+)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class _Bound(NamedTuple):
    compare: Callable[[float, float], bool]
    limit: float
    label: Label


class Values:
    """Values and bounds that stand for labels. A label's own name always stands for itself.

    Args:
        given: the user's, as ``VALUE=LABEL`` or ``>=NUMBER=LABEL``; the first that fits counts.
        usual: the tool's, for values that ``given`` says nothing of.

    Raises:
        SettingsError: one of ``given`` is none of these.
    """

    def __init__(self, given: Sequence[str], usual: Mapping[str, Label]) -> None:
        self._usual: dict[str, Label] = {**{name: name for name in LABELS}, **usual}
        self._given: dict[str, Label] = {}
        self._bounds: list[_Bound] = []
        for text in given:
            value, equals, name = (part.strip() for part in text.rpartition("="))
            if not (equals and value) or name not in LABELS:
                raise SettingsError(
                    f"map: {text[:80]!r} is not VALUE=LABEL with a label of {', '.join(LABELS)}"
                )
            if bound := _COMPARED.fullmatch(value):
                self._bounds.append(_Bound(_COMPARISONS[bound[1]], _number(bound[2], text), name))
            else:
                self._given.setdefault(_as_text(value), name)

    def label(self, value: Any) -> Label | None:
        """The label of a value; None where nobody has said what it stands for."""
        text = _as_text(value)
        if text in self._given:
            return self._given[text]
        number = _as_number(value)
        for bound in self._bounds:
            if number is not None and bound.compare(number, bound.limit):
                return bound.label
        return self._usual.get(text)


def unknown(value: Any) -> str:
    """The sentence for a value that stands for no label."""
    return f"{shown(value)} stands for no label; say which with --map VALUE=LABEL"


def _as_text(value: Any) -> str:
    """How values are compared: without case, and a whole number without its fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().casefold()
    number = _as_number(text) if "." in text else None
    return str(int(number)) if number is not None and number.is_integer() else text


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number(text: str, whole: str) -> float:
    number = _as_number(text)
    if number is None:
        raise SettingsError(f"map: {whole[:80]!r} compares with {text!r}, which is no number")
    return number
