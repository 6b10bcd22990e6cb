"""Write verdicts as labels beside the entries of the judged answers, found by request id.

An entry gets a label only if it holds the judged text. So neither an aborted first try nor another
answer under the same id is labelled. The judged text may lack the reasoning that the entry holds,
because the server or Inspect took it out. Spans of the judged text, and the place of the answer
given, then move to its place in the response.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from activation_logging.benchmarks.entries import Found, Labels, moved, moved_details, reach
from activation_logging.benchmarks.journal import INSPECT, Journal, RunRecord
from activation_logging.errors import BenchmarkError
from activation_logging.progress import Progress, silent
from activation_logging.records import Evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from activation_logging.errors import ActivationLoggingError
    from activation_logging.judges.verdict import Answer, Verdict

WAIT_S = 10.0
_POLL_S = 0.25
_GROUP = 100
"""Labels written at a time."""
_NAMED = 3  # how many missing entries an error names


@dataclass(frozen=True)
class LabelReport:
    """How many labels went where.

    ``without_spans`` names the answers whose labels went without the verdict's spans, because the
    entry's response does not hold the judged text in one piece.
    """

    written: int
    where: str
    without_spans: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """A sentence about the labels without their spans; None if there are none."""
        if not self.without_spans:
            return None
        named = ", ".join(self.without_spans[:_NAMED])
        more = ", ..." if len(self.without_spans) > _NAMED else ""
        return (
            f"{len(self.without_spans)} labels have no spans, because the entry's response does "
            f"not hold the judged text in one piece: {named}{more}"
        )


def apply_labels(
    labels: Labels,
    journal: Journal,
    *,
    evaluator: str,
    run: Mapping[str, Any],
    wait_s: float = WAIT_S,
    progress: Progress = silent,
) -> LabelReport:
    """Write every verdict of a run beside its entry.

    Args:
        labels: where the entries are.
        journal: the run's answers and verdicts.
        evaluator: the labels' name.
        run: what the labels say about the run.
        wait_s: how long to wait, without any progress, for entries that are not there yet.
        progress: called now and then.

    Raises:
        BenchmarkError: some entries are not there, or hold another text. They are named, and all
            others have their labels.
    """
    pending = [
        (journal.answers[place], verdict)
        for place, verdict in journal.verdicts.items()
        if place in journal.answers and verdict.answer == journal.answers[place].digest
    ]
    without = [answer.id for answer, _ in pending if not answer.request_id]
    if pending and len(without) == len(pending):
        raise BenchmarkError(
            f"{journal.folder}: no answer has a request_id, so none has an entry in a store"
        )
    run = {**run, **_log_of(journal)}
    total, written = len(pending), 0
    deadline = time.monotonic() + wait_s
    missing: list[tuple[Answer, Verdict]] = []
    unplaced: list[str] = []
    while pending:
        missing = []
        for begin in range(0, len(pending), _GROUP):
            group: list[tuple[str, Evaluation]] = []
            for answer, verdict in pending[begin : begin + _GROUP]:
                entries = _entries(labels, answer)
                evaluation = _evaluation(evaluator, answer, verdict, run)
                for found in entries:
                    place = found.place_of(answer.generation)
                    spans = moved(verdict.spans, place)
                    details = moved_details(evaluation.details, place)
                    group.append((found.key, replace(evaluation, spans=spans, details=details)))
                    unplaced += [answer.id] if len(spans) < len(verdict.spans) else []
                written += bool(entries)
                if not entries:
                    missing.append((answer, verdict))
            labels.put(group)
            progress("labels", written, total)
        if len(missing) < len(pending):
            deadline = time.monotonic() + wait_s
        if not missing or time.monotonic() > deadline:
            break
        pending = missing
        time.sleep(_POLL_S)
    if missing:
        raise BenchmarkError(_complaint(labels, [answer for answer, _ in missing], written, total))
    progress("labels", written, total)
    return LabelReport(written, labels.where, tuple(unplaced))


def _log_of(journal: Journal) -> dict[str, str]:
    """The name of the run's latest log of Inspect; each start has written one of its own."""
    logs = sorted(path.name for path in (journal.folder / INSPECT).glob("*.eval"))
    return {"inspect_log": logs[-1]} if logs else {}


def _entries(labels: Labels, answer: Answer) -> list[Found]:
    """The entries that hold exactly this answer."""
    if not answer.request_id:
        return []
    return [found for found in labels.find(answer.request_id) if found.holds(answer)]


def _evaluation(
    evaluator: str, answer: Answer, verdict: Verdict, run: Mapping[str, Any]
) -> Evaluation:
    details = {
        "sample_id": answer.id,
        "epoch": answer.epoch,
        "name": answer.name,
        "type": answer.type,
        "kind": answer.kind,
        "words": verdict.words,
        **run,
        **(verdict.details or {}),
    }
    if answer.gold:
        details["gold"] = answer.gold[0]
    score = None if verdict.label == "invalid" else float(verdict.label == "hallucinated")
    return Evaluation(evaluator, verdict.label, score, verdict.judge, details)


def _complaint(labels: Labels, missing: Sequence[Answer], written: int, total: int) -> str:
    named = ", ".join(_describe(labels, answer) for answer in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return (
        f"{labels.where} has no entry to label for {named}{more}; "
        f"{written} of {total} labels were written"
    )


def _describe(labels: Labels, answer: Answer) -> str:
    if not answer.request_id:
        return f"{answer.id} (it has no request_id)"
    reasons = [
        "ended with " + str(found.finish_reason) if not found.whole else "holds another text"
        for found in labels.find(answer.request_id)
    ]
    return f"{answer.request_id}" + (f" (its entry {reasons[0]})" if reasons else "")


def label_run(
    run_dir: Path,
    *,
    store: Path | None = None,
    base_url: str | None = None,
    progress: Progress = silent,
) -> LabelReport:
    """Apply the labels of a finished run later: ``activation-logging label PATH RUN_DIR``.

    Raises:
        BenchmarkError: it is no run's folder, it has no verdicts, or entries are missing.
    """
    record = RunRecord.read(run_dir)
    if record is None:
        raise BenchmarkError(
            f"{run_dir} is not a run's folder: there is no run.json in it, as beside every "
            "generation.jsonl that was asked for here"
        )
    journal = Journal(run_dir, None)
    if not journal.verdicts:
        raise BenchmarkError(f"{run_dir} has no verdicts yet; run with --do_eval first")
    return apply_labels(
        reach(store, base_url),
        journal,
        evaluator=record.evaluator,
        run=record.for_labels(),
        progress=progress,
    )


def unlabelled_reason(error: ActivationLoggingError, run_dir: Path) -> str:
    """The sentence for a run that could not reach its entries."""
    return (
        f"labels were not written: {error}. "
        f"They can be applied later: activation-logging label PATH {run_dir}"
    )
