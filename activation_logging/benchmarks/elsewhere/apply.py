"""The labels of a file, put beside the entries that they are about."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, TextIO

from activation_logging.benchmarks.elsewhere.formats import open_source
from activation_logging.benchmarks.elsewhere.labelling import Labelling, Outcome
from activation_logging.benchmarks.elsewhere.values import Values
from activation_logging.errors import LabelsFileError
from activation_logging.progress import Progress, silent
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from activation_logging.benchmarks.elsewhere.marks import Problem
    from activation_logging.benchmarks.entries import Labels


def label_from(
    path: Path,
    labels: Labels,
    *,
    name: str | None = None,
    metric: str | None = None,
    given: Sequence[str] = (),
    encoding: str | None = None,
    dry_run: bool = False,
    problems: Path | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Write the labels of a file: ``activation-logging label PATH --from FILE``.

    Args:
        path: an Inspect log, samples of lm-evaluation-harness, JSON lines or CSV.
        labels: where the entries are.
        name: the evaluator's, whatever the file says.
        metric: which of several scores of a sample.
        given: ``VALUE=LABEL``, for values that are no labels; see :class:`.Values`.
        encoding: of a text that is not UTF-8 and does not say what it is.
        dry_run: find everything and write nothing.
        problems: a file for all problems, one JSON object a line, as they come.
        progress: told of the file's size, or of samples.

    Raises:
        LabelsFileError: the file cannot be read; labels that came before are written.
        SettingsError: one of ``given`` is invalid.
        StoreError, BenchmarkError: the entries cannot be reached.
    """
    Values(given, {})  # refuses an invalid one before the file is read
    source = open_source(path, metric=metric, encoding=encoding, progress=progress)
    labels.flush()
    with nullcontext() if problems is None else _opened(problems) as file:
        work = Labelling(
            labels,
            Values(given, source.usual),
            scored=source.scored,
            name=name,
            dry_run=dry_run,
            tell=None if file is None else _lines_into(file),
            progress=progress,
        )
        work.outcome.format = source.format
        try:
            for found in source.read:
                work.take(found)
        finally:
            work.write()
    return work.outcome


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be written to: {error.strerror}") from None


def _lines_into(file: TextIO) -> Callable[[Problem], None]:
    return lambda problem: print(dumps(problem._asdict()), file=file)
