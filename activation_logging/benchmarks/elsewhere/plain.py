"""JSON lines and CSV: one verdict a line or row, of anybody's making.

Fields that say which answer it is: ``request_id`` (and ``choice``), ``key``, or ``prompt`` and
``response``. Fields of the label: ``label``, and ``score``, ``name``, ``judge``, ``details`` and
``spans``. All others are left alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.benchmarks.elsewhere.marks import Mark, Problem
from activation_logging.errors import LabelsFileError
from activation_logging.records import checked_spans
from activation_logging.text import brief, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PLACES = ("request_id", "key", "prompt")
"""Fields of which a row needs one."""
COLUMNS = (*PLACES, "response", "choice", "label", "score", "name", "judge", "details", "spans")
JUDGE = "file"

_DELIMITERS = ",;\t"
_MAX_CELL = 1 << 24
"""Characters of a cell; a quote that is never closed ends here, not at the end of the file."""
_NUMBERS = (int, float)


class _BadRowError(ValueError):
    """A field of a row is invalid; the text says which and why."""


class Row(NamedTuple):
    """A line or a row: its place, its fields, and what is wrong with it, if anything is."""

    place: str
    fields: Mapping[str, Any]
    wrong: str | None = None


def json_lines(lines: Iterable[str]) -> Iterator[Row]:
    """Every line that is not blank."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            cut = "" if line.endswith("\n") else " and ends in the middle"
            yield Row(place, {}, f"it is not JSON{cut}")
            continue
        if isinstance(found, dict):
            yield Row(place, found)
        else:
            yield Row(place, {}, "it is no JSON object")


def delimiter_of(header: str) -> str | None:
    """What separates the names in the first line of a CSV; None where it has none that we know."""
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        if set(map(_name, names)) & {"label", *PLACES}:
            return delimiter
    return None


def csv_rows(lines: Iterable[str], delimiter: str, path: Path) -> Iterator[Row]:
    """Every row that is not blank, with its cells by name, without the empty ones.

    Raises:
        LabelsFileError: a column is missing.
    """
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = [_name(name) for name in next(reader)]
    check_columns(names, path)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(f"line {begin}", {}, f"it is not CSV: {error}")
            continue
        if not any(cells):
            continue
        wrong = None
        if len(cells) != len(names):
            wrong = f"it has {len(cells)} cells where the first line has {len(names)}"
        fields = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
        yield Row(f"line {begin}", fields, wrong)


def _name(column: str) -> str:
    return column.strip().strip("\ufeff").casefold()


def check_columns(names: Iterable[str], path: Path) -> None:
    """Make sure that a CSV says what its rows are about.

    Raises:
        LabelsFileError: a column is missing, or is there twice.
    """
    known = [name for name in names if name in COLUMNS]
    has = ", ".join(shown(name) for name in names)
    if "label" not in known:
        raise LabelsFileError(f"{path} has no column 'label', only {has}")
    if not set(PLACES) & set(known):
        raise LabelsFileError(
            f"{path} has none of the columns {', '.join(PLACES)} to find answers by, only {has}"
        )
    if twice := [name for name in known if known.count(name) > 1]:
        raise LabelsFileError(f"{path} has the column {twice[0]!r} twice")


def mark_of(row: Mapping[str, Any], place: str, name: str) -> Mark | Problem:
    """The mark of one line or row; ``name`` is the evaluator's where it names none."""
    try:
        if row.get("label") is None:
            raise _BadRowError("it has no label")
        if not any(row.get(one) is not None for one in PLACES):
            raise _BadRowError(f"it has none of {', '.join(PLACES)} to find the answer by")
        return Mark(
            place=place,
            value=row["label"],
            name=_text(row, "name") or name,
            request_id=_text(row, "request_id"),
            key=_text(row, "key"),
            prompt=_text(row, "prompt"),
            response=_text(row, "response"),
            choice=_whole(row, "choice"),
            score=_number(row, "score"),
            judge=_text(row, "judge") or JUDGE,
            details=_details(row),
            spans=checked_spans(_parsed(row, "spans")),
        )
    except ValueError as error:
        return Problem(place, str(error), _about(row))


def _about(row: Mapping[str, Any]) -> str | None:
    found = next((row[one] for one in PLACES if row.get(one) is not None), None)
    return None if found is None else brief(found, 80)


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise _BadRowError(f"{name} is {shown(value)}, not text")
    return value


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, (str, *_NUMBERS)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise _BadRowError(f"{name} is {shown(value)}, not a number")


def _whole(row: Mapping[str, Any], name: str) -> int | None:
    number = _number(row, name)
    if number is not None and not number.is_integer():
        raise _BadRowError(f"{name} is {shown(row[name])}, not a whole number")
    return None if number is None else int(number)


def _details(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = _parsed(row, "details")
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise _BadRowError(f"details is {shown(found)}, not an object of names and values")
    return found


def _parsed(row: Mapping[str, Any], name: str) -> Any:
    """A field that is JSON within a cell, or a value already."""
    value = row.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise _BadRowError(f"{name} is {shown(value)}, which is not JSON") from None
