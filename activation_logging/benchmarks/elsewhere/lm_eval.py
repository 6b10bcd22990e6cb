"""lm-evaluation-harness: the samples that ``--log_samples`` writes, one a line.

A line has the SHA-256 of the prompt (``prompt_hash``), which for a completion is the key of the
store, and the answer (``resps``). For a chat the prompt is the messages as JSON, so the question in
it is looked for. A task with several filters writes each sample once for each. They are evaluators
of their own: ``task/filter``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from activation_logging.benchmarks.elsewhere.marks import Mark, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NAMED = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[-:.\d]+")
"""The name of a file: ``samples_gsm8k_2026-05-31T18-00-00.123456.jsonl``."""
_ONE_FILTER = "none"
_FIELDS = {"doc_id", "arguments", "resps", "filtered_resps"}


def is_sample(fields: Mapping[str, Any]) -> bool:
    """Whether a line is a sample of lm-evaluation-harness."""
    return fields.keys() >= _FIELDS


def task_of(path: Path) -> str:
    """The task's name, which only the file's name tells."""
    found = _NAMED.fullmatch(path.stem)
    return found["task"] if found else path.stem


def mark_of(fields: Mapping[str, Any], place: str, task: str, metric: str | None) -> Mark | Problem:
    """The mark of one sample."""
    place = f"{place} (doc {fields.get('doc_id')})"
    response, problem = _answer(fields)
    if problem:
        return Problem(place, problem)
    measured = [name for name in _texts(fields.get("metrics")) if name in fields]
    chosen = metric or next(iter(measured), None)
    if chosen is None or chosen not in measured:
        has = f"only {', '.join(measured)}" if measured else "nor any other"
        return Problem(place, f"the sample has no metric {chosen or ''!r}, {has}")
    used = str(fields.get("filter", _ONE_FILTER))
    prompt = _first_argument(fields, "arg_0")
    if isinstance(prompt, list) and len(prompt) == 1:  # of a chat: its messages, as JSON
        prompt = prompt[0]
    digest = fields.get("prompt_hash")
    return Mark(
        place=place,
        value=fields[chosen],
        name=task if used == _ONE_FILTER else f"{task}/{used}",
        key=digest if isinstance(digest, str) else None,
        prompt=_question(prompt) if isinstance(prompt, str) else None,
        response=response,
        judge=f"lm-eval/{task}/{chosen}",
        details={
            "task": task,
            "sample_id": str(fields.get("doc_id")),
            "metric": chosen,
            "value": fields[chosen],
            "filter": used,
            "gold": fields.get("target"),
        },
    )


def _answer(fields: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The text that was generated, or why there is none."""
    responses = fields.get("resps")
    first = responses[0] if isinstance(responses, list) and responses else None
    if _first_argument(fields, "arg_1") is not None and not isinstance(
        _first_argument(fields, "arg_1"), Mapping
    ):
        return None, "nothing was generated: the task compares the probabilities of given texts"
    if not (isinstance(first, list) and first and all(isinstance(one, str) for one in first)):
        return None, "it has no generated text in `resps`"
    if len(set(first)) > 1:
        return None, f"{len(first)} answers have one score between them"
    return first[0], None


def _first_argument(fields: Mapping[str, Any], name: str) -> Any:
    arguments = fields.get("arguments")
    first = arguments.get("gen_args_0") if isinstance(arguments, Mapping) else None
    return first.get(name) if isinstance(first, Mapping) else None


def _question(prompt: str) -> str:
    """The prompt itself or, where it is a chat as JSON, its last message."""
    try:
        messages = json.loads(prompt) if prompt.startswith("[{") else None
    except ValueError:
        return prompt
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    return content if isinstance(content, str) else prompt


def _texts(value: Any) -> Iterable[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
