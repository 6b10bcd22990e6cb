"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activation_logging.records import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from activation_logging.benchmarks.journal import Journal
    from activation_logging.benchmarks.labels import LabelReport
    from activation_logging.benchmarks.questions import Question


@dataclass(frozen=True)
class Example:
    """One answer with its label."""

    label: str
    question: str
    answer: str
    words: str
    request_id: str | None


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: the model's folder of the run.
        results: what ``eval_results.json`` holds; empty before anything is judged.
        labels: where the labels went, if they did.
        notes: sentences that a user should see.
    """

    folder: Path
    results: dict[str, Any]
    labels: LabelReport | None
    notes: tuple[str, ...]
    questions: Mapping[str, Question]
    journal: Journal

    def examples(self) -> dict[str, Example]:
        """The first answer of each label that occurs, in the order of the questions."""
        return examples(self)


def examples(result: RunResult) -> dict[str, Example]:
    """One answer for each label that a run gave, hallucinated first."""
    found: dict[str, Example] = {}
    for question in result.questions.values():
        verdict = result.journal.verdicts.get((question.id, 1))
        answer = result.journal.answers.get((question.id, 1))
        if verdict is not None and answer is not None and verdict.label not in found:
            found[verdict.label] = Example(
                verdict.label, question.prompt, answer.generation, verdict.words, answer.request_id
            )
    return {label: found[label] for label in LABELS if label in found}
