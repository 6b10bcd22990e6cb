"""Inspect's logs: every score of every sample, for the answer that was scored.

A sample may make many calls. Its scores are about its output, so they label the one call that gave
this output: the last, in nearly every task. The log holds the id of that call's answer.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from activation_logging.benchmarks.elsewhere.marks import Mark, Problem, Reading
from activation_logging.errors import LabelsFileError
from activation_logging.extras import require
from activation_logging.records import checked_spans
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inspect_ai.log import EvalLog, EvalSample, EvalSpec
    from inspect_ai.scorer import Score

    from activation_logging.progress import Progress
    from activation_logging.records import Label

GRADES: dict[str, Label] = {
    "c": "correct",
    "i": "hallucinated",
    "n": "refused",
    "nan": "invalid",
}
"""Inspect's letters: correct, incorrect, no answer; and what a scorer writes that gave up.

``P``, partly correct, stands for no label of ours.
"""
_AT_A_TIME = 32
"""Samples read together."""
_LEFT_OUT = {"store", "events", "events_data", "messages", "timelines", "attachments"}
"""Fields that are long, and are read only for logs without ids."""
_MAX_TEXT = 4000
"""Characters of an explanation that are kept."""
_UNREADABLE = (
    *(OSError, ValueError, LookupError, RuntimeError, EOFError, TypeError),
    *(zipfile.BadZipFile, zlib.error),
)

Kind = Literal["eval", "json"]


def read(path: Path, kind: Kind, metric: str | None, progress: Progress) -> Reading:
    """The marks of a log.

    Args:
        path: a file that Inspect has written.
        kind: in which of its formats.
        metric: of several scores, the one to take; see :func:`marks_of`.
        progress: told of samples.

    Raises:
        LabelsFileError: Inspect cannot read it.
        ExtraMissing: Inspect is not installed.
    """
    require("eval", "inspect_ai")
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(path, header_only=kind == "eval", format=kind)
        samples = _samples(path) if kind == "eval" else iter(log.samples or ())
        total, done = _expected(log), 0
        for sample in samples:
            yield from marks_of(sample, log.eval, metric, log=path.name)
            done += 1
            progress(f"samples of {path.name}", done, max(total, done))
    except _UNREADABLE as error:
        raise LabelsFileError(f"Inspect cannot read {path}: {brief(error)}") from None
    if log.status != "success":
        yield Problem("the log", f"its run ended with {log.status!r}; {done} samples are in it")


def _expected(log: EvalLog) -> int:
    results = log.results
    return results.total_samples if results is not None else 0


def _samples(path: Path) -> Iterator[EvalSample]:
    from inspect_ai.log import read_eval_log_sample_summaries, read_eval_log_samples_by_id

    summaries = read_eval_log_sample_summaries(path, format="eval")
    places = ((summary.id, summary.epoch) for summary in summaries)
    while some := list(islice(places, _AT_A_TIME)):
        for sample in read_eval_log_samples_by_id(
            path, some, format="eval", exclude_fields=_LEFT_OUT
        ):
            yield sample if sample.output.response_id else _with_events(path, sample)


def _with_events(path: Path, sample: EvalSample) -> EvalSample:
    from inspect_ai.log import read_eval_log_sample

    return read_eval_log_sample(path, sample.id, sample.epoch, format="eval")


def marks_of(
    sample: EvalSample, task: EvalSpec, metric: str | None = None, *, log: str | None = None
) -> Reading:
    """The marks of one sample, one for each of its scorers.

    Args:
        sample: with its scores.
        task: what the log says of the task.
        metric: ``SCORER``, ``SCORER.PART`` of a score with several values, or ``PART``.
        log: the name of the log's file.
    """
    place = _place(sample)
    if not sample.scores:
        failed = f": it failed with {brief(sample.error.message, 80)}" if sample.error else ""
        yield Problem(place, f"it has no score{failed}")
        return
    if sample.invalidation is not None:
        yield Problem(place, "it was invalidated in the log")
        return
    request_id = answer_id(sample)
    taken = 0
    for scorer, score in sample.scores.items():
        for part, value in _values(scorer, score, metric):
            taken += 1
            if isinstance(value, (Mapping, list)):
                parts = f" ({', '.join(value)})" if isinstance(value, Mapping) else ""
                problem = f"the score {scorer!r} has several values{parts}; choose with --metric"
                yield Problem(place, problem, request_id)
            elif request_id is None:
                yield Problem(place, "the log has no id of the answer", None)
            else:
                scored = _Scored(f"{scorer}{part}", score, value)
                yield _mark(sample, task, request_id, scored, log)
    if not taken:
        yield Problem(place, f"it has no score {metric!r}, only {', '.join(sample.scores)}")


class _Scored(NamedTuple):
    """A score's name, the score, and the value of it that counts."""

    scorer: str
    score: Score
    value: Any


def _place(sample: EvalSample) -> str:
    return f"sample {sample.id}" + (f", epoch {sample.epoch}" if sample.epoch > 1 else "")


def _values(scorer: str, score: Score, metric: str | None) -> Iterator[tuple[str, Any]]:
    """What a user wants of a score: the rest of its name, and the value."""
    value = score.value
    if metric is None or metric == scorer:
        yield "", value
    elif isinstance(value, Mapping):
        part = metric.removeprefix(f"{scorer}.")
        if part in value:
            yield f".{part}", value[part]


def _mark(
    sample: EvalSample, task: EvalSpec, request_id: str, scored: _Scored, log: str | None
) -> Mark | Problem:
    place, (scorer, score, value) = _place(sample), scored
    said = score.metadata or {}
    # What our own benchmarks' scorers say of a score.
    verdict = said["verdict"] if isinstance(said.get("verdict"), Mapping) else {}
    try:
        spans = checked_spans(verdict.get("spans") or said.get("spans"))
    except ValueError as error:
        return Problem(place, str(error), request_id)
    target = sample.target if isinstance(sample.target, str) else next(iter(sample.target), None)
    details = {
        "task": task.task,
        "sample_id": str(sample.id),
        "epoch": sample.epoch,
        "value": str(value) if isinstance(value, float) and math.isnan(value) else value,
        "gold": target and target[:_MAX_TEXT],
        "words": score.explanation and score.explanation[:_MAX_TEXT],
        "inspect_eval": task.eval_id,
        "inspect_log": log,
    }
    return Mark(
        place=place,
        value=value,
        name=scorer,
        request_id=request_id,
        response=sample.output.completion if spans else None,
        choice=0,
        judge=str(verdict.get("judge") or f"inspect/{scorer}"),
        details={name: value for name, value in details.items() if value is not None},
        spans=spans,
    )


def answer_id(sample: EvalSample) -> str | None:
    """The id of the answer that is the sample's output; older logs have it in their events."""
    if sample.output.response_id:
        return str(sample.output.response_id)
    for event in reversed(sample.events):
        if event.event == "model" and event.output.completion == sample.output.completion:
            raw = event.call.response if event.call else None
            found = event.output.response_id or (raw or {}).get("id")
            if isinstance(found, str):
                return found
    return None
