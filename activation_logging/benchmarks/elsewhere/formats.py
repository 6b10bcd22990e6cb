"""Which format a file has: by what is in it, not by its name."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from activation_logging.benchmarks.elsewhere import inspect_log, lm_eval, plain
from activation_logging.benchmarks.elsewhere.marks import Mark, Problem, Reading, Source
from activation_logging.benchmarks.elsewhere.text_file import TextFile
from activation_logging.benchmarks.elsewhere.values import RIGHT_OR_WRONG
from activation_logging.errors import LabelsFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from activation_logging.progress import Progress

_ZIP = b"PK\x03\x04"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"PAR1": "Parquet"}


def open_source(
    path: Path, *, metric: str | None, encoding: str | None, progress: Progress
) -> Source:
    """The file's format and its marks, which are read as they are asked for.

    Raises:
        LabelsFileError: it is of no format that is known here; the text says what it looks like.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be read: {error.strerror}") from None
    if magic == _ZIP:
        return _inspect(path, "eval", metric, progress)
    for begin, name in _COMPRESSED.items():
        if magic.startswith(begin):
            raise LabelsFileError(f"{path} is {name}, which is not read here; unpack it first")
    file = TextFile.open(path, encoding)
    first = file.head.lstrip("\ufeff \t\r\n").partition("\n")[0].rstrip()
    if first.startswith("["):
        raise LabelsFileError(f"{path} is one JSON array; write one object a line instead")
    if first == "{":
        return _inspect(path, "json", metric, progress)
    if first.startswith("{"):
        return _json_lines(file, metric, progress)
    delimiter = plain.delimiter_of(first)
    if delimiter is None:
        raise LabelsFileError(
            f"{path} is no Inspect log, its lines are not JSON, and the first names none of the "
            f"columns {', '.join(plain.COLUMNS)}"
        )
    return Source("CSV", {}, False, _csv(file, delimiter, progress))


def _inspect(path: Path, kind: inspect_log.Kind, metric: str | None, progress: Progress) -> Source:
    usual = {**RIGHT_OR_WRONG, **inspect_log.GRADES}
    return Source("Inspect log", usual, True, inspect_log.read(path, kind, metric, progress))


def _json_lines(file: TextFile, metric: str | None, progress: Progress) -> Source:
    lines = plain.json_lines(file.lines(progress))
    first = next(lines)
    fields = first[1] or {}
    lines = chain([first], lines)
    if fields.keys() >= {"eval", "plan", "status"}:
        return _inspect(file.path, "json", metric, progress)
    if lm_eval.is_sample(fields):
        task = lm_eval.task_of(file.path)
        read = partial(lm_eval.mark_of, task=task, metric=metric)
        return Source("lm-evaluation-harness", RIGHT_OR_WRONG, True, _marks(lines, read))
    read = partial(plain.mark_of, name=file.path.stem)
    return Source("JSON lines", {}, False, _marks(lines, read))


def _csv(file: TextFile, delimiter: str, progress: Progress) -> Reading:
    rows = plain.csv_rows(file.lines(progress), delimiter, file.path)
    return _marks(rows, partial(plain.mark_of, name=file.path.stem))


def _marks(
    rows: Iterable[plain.Row], read: Callable[[Mapping[str, Any], str], Mark | Problem]
) -> Reading:
    for place, fields, wrong in rows:
        yield Problem(place, wrong) if wrong else read(fields, place)
