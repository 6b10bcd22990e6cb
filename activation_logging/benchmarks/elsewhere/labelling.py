"""From marks to labels in a store: what each amounts to, where it goes, and what does not."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.benchmarks.elsewhere.joining import Joiner, NotJoinedError
from activation_logging.benchmarks.elsewhere.marks import Mark, Problem
from activation_logging.benchmarks.elsewhere.values import unknown
from activation_logging.benchmarks.entries import moved, moved_details
from activation_logging.errors import EntryNotFound, LabelError
from activation_logging.progress import Progress, silent
from activation_logging.records import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.benchmarks.elsewhere.values import Values
    from activation_logging.benchmarks.entries import Found, Labels

_GROUP = 100
"""Labels written at a time."""
_SHOWN = 80


@dataclass
class Outcome:
    """What became of marks.

    Attributes:
        where: the store's folder or the server's address.
        format: of the file that they are from, if they are from one.
        marks: how many there were.
        written: entries that were labelled or, in a dry run, would be.
        repeated: marks that said the same of an entry as an earlier one.
        labels: how many of each label, by the evaluator's name.
        problems: the marks that became no label, with reasons.
    """

    where: str
    format: str | None = None
    marks: int = 0
    written: int = 0
    repeated: int = 0
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "labels": {name: dict(counts) for name, counts in self.labels.items()},
            "problems": [problem._asdict() for problem in self.problems],
        }


class _Ready(NamedTuple):
    """A label for one entry, and the mark that it comes from."""

    key: str
    evaluation: Evaluation
    mark: Mark


class Labelling:
    """Labels entries by marks, many at a time; what came to be is in ``outcome``.

    Args:
        labels: where the entries are.
        values: what the marks' values stand for.
        scored: give each label the score of our benchmarks: 1 for ``hallucinated``, else 0.
        name: the evaluator's, whatever the marks say.
        dry_run: write nothing.
        tell: called with each problem, besides noting it.
        progress: told when all entries have to be read.
    """

    def __init__(
        self,
        labels: Labels,
        values: Values,
        *,
        scored: bool,
        name: str | None = None,
        dry_run: bool = False,
        tell: Callable[[Problem], None] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.outcome = Outcome(labels.where)
        self._labels = labels
        self._values = values
        self._scored = scored
        self._name = name
        self._dry_run = dry_run
        self._tell = tell
        self._joiner = Joiner(labels, progress)
        self._ready: list[_Ready] = []
        self._said: dict[tuple[str, str], tuple[str, str]] = {}

    def take(self, found: Mark | Problem) -> None:
        """Label what a mark is about, or note why not."""
        self.outcome.marks += 1
        if isinstance(found, Problem):
            self.note(found)
            return
        try:
            self.label(found)
        except NotJoinedError as error:
            self.note(_problem(found, str(error)))

    def note(self, problem: Problem) -> None:
        """Keep a problem."""
        self.outcome.problems.append(problem)
        if self._tell is not None:
            self._tell(problem)

    def label(self, mark: Mark) -> None:
        """Label the entries that a mark is about; a mark that is no label is noted.

        Raises:
            NotJoinedError: there is no such entry.
        """
        try:
            evaluation = self._evaluation(mark)
        except LabelError as error:
            self.note(_problem(mark, str(error)))
            return
        given = evaluation.details
        for entry in self._joiner.entries(mark):
            spans, details = mark.spans, given
            if mark.response is not None:  # which may lack what the model has thought
                place = entry.place_of(mark.response)
                spans, details = moved(spans, place), moved_details(details, place)
            evaluation = replace(evaluation, spans=spans, details=details)
            reason = self._objection(entry, evaluation)
            if reason is not None:
                self.note(_problem(mark, reason))
            elif (said := self._said.get((entry.key, evaluation.name))) is None:
                self._said[entry.key, evaluation.name] = evaluation.label, mark.place
                self._ready.append(_Ready(entry.key, evaluation, mark))
            elif said[0] == evaluation.label:
                self.outcome.repeated += 1
            else:
                self.note(
                    _problem(mark, f"it says {evaluation.label!r}, {said[1]} said {said[0]!r}")
                )
        if len(self._ready) >= _GROUP:
            self.write()

    def _evaluation(self, mark: Mark) -> Evaluation:
        label = self._values.label(mark.value)
        if label is None:
            raise LabelError(unknown(mark.value))
        details = dict(mark.details)
        if mark.value != label:
            details.setdefault("value", mark.value)
        score = mark.score
        if score is None and self._scored and label != "invalid":
            score = float(label == "hallucinated")
        return Evaluation.checked(self._name or mark.name, label, score, mark.judge, details)

    def _objection(self, entry: Found, evaluation: Evaluation) -> str | None:
        """Why a label must not be written: a span, or another evaluator of the same name."""
        name = evaluation.name
        if outside := evaluation.outside(entry.response):
            return outside
        if name not in entry.evaluators or (entry.key, name) in self._said:
            return None
        with suppress(EntryNotFound):
            theirs = self._labels.evaluation(entry.key, name)
            if theirs is not None and theirs.judge != evaluation.judge:
                return (
                    f"{theirs.judge or 'another evaluator'} has labelled it {theirs.label!r} as "
                    f"{name!r}; give another --name"
                )
        return None

    def write(self) -> None:
        """Write the labels that are ready."""
        ready, self._ready = self._ready, []
        if not self._dry_run and ready:
            try:
                self._put(ready)
            except (LabelError, EntryNotFound):
                # One of them cannot be written; the others can.
                ready = [one for one in ready if self._put_alone(one)]
        for one in ready:
            self.outcome.written += 1
            counts = self.outcome.labels.setdefault(one.evaluation.name, Counter())
            counts[one.evaluation.label] += 1

    def _put(self, ready: Sequence[_Ready]) -> None:
        self._labels.put([(one.key, one.evaluation) for one in ready])

    def _put_alone(self, one: _Ready) -> bool:
        try:
            self._put([one])
        except (LabelError, EntryNotFound) as error:
            self.note(_problem(one.mark, str(error)))
            return False
        return True


def _problem(mark: Mark, reason: str) -> Problem:
    about = mark.request_id or mark.key or mark.prompt
    return Problem(mark.place, reason, about and about[:_SHOWN])
