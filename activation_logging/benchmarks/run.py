"""Running a benchmark, from questions to labelled entries. A killed run resumes where it was."""

from __future__ import annotations

import itertools
import platform
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from activation_logging.benchmarks.endpoint import check_endpoint, served_model
from activation_logging.benchmarks.entries import Labels, reach
from activation_logging.benchmarks.folder import (
    RunFolder,
    asked_for,
    load_folder,
    make_folder,
    nothing_to_judge,
)
from activation_logging.benchmarks.journal import INSPECT, RESULTS, write_json
from activation_logging.benchmarks.judging import check_kinds, judge_named
from activation_logging.benchmarks.labels import LabelReport, apply_labels, unlabelled_reason
from activation_logging.benchmarks.options import RunOptions
from activation_logging.benchmarks.rates import Judged, summary
from activation_logging.benchmarks.registry import BENCHMARKS, Benchmark
from activation_logging.benchmarks.result import RunResult
from activation_logging.errors import ActivationLoggingError, BenchmarkError, PluginError
from activation_logging.progress import Progress, silent
from activation_logging.text import brief

if TYPE_CHECKING:
    from activation_logging.benchmarks.questions import Question
    from activation_logging.judges.registry import Judge

_MAX_FAILED = 5
"""Inspect stops after so many failed questions: the server has most likely gone away."""


def run_benchmark(
    benchmark: str,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    **fields: Any,
) -> RunResult:
    """Ask, judge and label; what an earlier start of the same run has done is not done again.

    Args:
        benchmark: a name in :data:`.BENCHMARKS`.
        options: what to ask, whom, and how.
        progress: told of answers and labels as they come.
        fields: the fields of :class:`.RunOptions`, where no ``options`` are given.

    Raises:
        UnknownName: there is no such benchmark.
        PluginError: another package offers the benchmark or the judge, and it is unusable.
        BenchmarkError, StoreError: something is wrong; everything that was done is kept.
    """
    about = BENCHMARKS.get(benchmark)
    if about.name != benchmark:  # the files of a run and its labels know the benchmark by its name
        raise PluginError(
            f"the benchmark {benchmark!r} is offered under a name that is not its own"
        )
    options = options or RunOptions(**fields)
    asked = asked_for(about, options)
    path = make_folder(asked, options)
    is_vllm, judge = True, None
    if options.do_inference:
        is_vllm = check_endpoint(options.base_url, options.model).is_vllm
        if options.activation_stop and not is_vllm:
            raise BenchmarkError(
                f"{options.base_url} is not a vLLM server, so no probe can end its answers; "
                "leave --activation-stop out"
            )
    if options.do_eval:
        judge = judge_named(about, options.judge, options.judge_base_url)
    folder = load_folder(path, about, asked, options)
    run = _Run(about, options, folder, judge, is_vllm, progress or silent)
    return run.go() if options.do_inference or options.do_eval else run.result()


@dataclass(frozen=True)
class _Run:
    """One start of a run.

    Attributes:
        judge: None where nothing is to be judged.
        is_vllm: whether the server takes request ids and tags.
        notes: sentences that a user should see.
    """

    benchmark: Benchmark
    options: RunOptions
    folder: RunFolder
    judge: Judge | None
    is_vllm: bool
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def go(self) -> RunResult:
        """Ask, judge and label what is missing."""
        if self.folder.record is None:
            self.notes.append(
                "the answers were brought by hand: they have no entries in a store to label"
            )
        if self.judge is not None:
            self.folder.check_judge(self.judge)
            check_kinds(self.judge, self.folder.questions.values())
        labels = self.reach() if self.folder.record else None
        self.evaluate(labels)
        if self.judge is None:
            return self.result()
        results = self.write_results(self.judge)
        return self.result(results, self.label(labels))

    def reach(self) -> Labels | None:
        """The way to the entries, or None with a note that says why there is none."""
        if self.options.store is not None:
            return reach(self.options.store, None)
        try:
            return reach(None, self.options.base_url)
        except ActivationLoggingError as error:
            self.notes.append(unlabelled_reason(error, self.folder.path))
            return None

    def evaluate(self, labels: Labels | None) -> None:
        """Let Inspect ask and judge whatever is missing.

        Raises:
            BenchmarkError: an answer or a verdict is still missing; all others are in the journal.
        """
        asking, folder = self.options.do_inference, self.folder
        questions = list(folder.questions.values()) if asking else self._answered_questions()
        wanted, done = len(folder.places()), len(folder.answered())
        if not (asking and done < wanted) and not folder.unjudged(self.judge):
            return
        count = itertools.count(done + 1)
        log = self._inspect(
            questions,
            recover=labels.answer_to if labels and folder.resumed else None,
            answered=lambda: self.progress("answers", next(count), wanted),
        )
        self._complain(log)

    def _answered_questions(self) -> list[Question]:
        answered = {name for name, _ in self.folder.answered()}
        questions = self.folder.questions
        chosen = [question for name, question in questions.items() if name in answered]
        if not chosen:
            raise nothing_to_judge(self.folder.path)
        missing = len(questions) - len(chosen)
        if missing:
            self.notes.append(
                f"{missing} of {len(questions)} questions have no answer yet and count nowhere"
            )
        return chosen

    def _inspect(self, questions: list[Question], **session: Any) -> Any:
        """Inspect's log of an evaluation of these questions."""
        options, folder = self.options, self.folder
        # The model first: it is the one to say that Inspect is not installed.
        model = served_model(
            options.model, options.base_url, max_connections=options.max_connections
        )
        from inspect_ai import eval as inspect_eval

        from activation_logging.benchmarks.elsewhere.hook import labelled_otherwise
        from activation_logging.benchmarks.task import Session, build_task

        task = build_task(
            self.benchmark,
            questions,
            judge=self.judge,
            session=Session(
                folder.run_id,
                folder.journal,
                is_vllm=self.is_vllm,
                stop=options.activation_stop,
                replay=not options.do_inference,
                **session,
            ),
            epochs=options.epochs,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
        )
        with labelled_otherwise():  # by this run, from its journal
            return inspect_eval(
                task,
                model=model,
                log_dir=str(folder.path / INSPECT),
                display=options.display,
                log_level="error",
                log_realtime=False,
                score=self.judge is not None,
                score_display=False,
                max_samples=options.max_connections,
                fail_on_error=_MAX_FAILED,
                metadata={"run_id": folder.run_id, "seed": options.seed},
            )[0]

    def _complain(self, log: Any) -> None:
        """Raise the sentence for what is still missing, if anything is."""
        wanted, done = len(self.folder.places()), len(self.folder.answered())
        unjudged = len(self.folder.unjudged(self.judge))
        if self.options.do_inference and done < wanted:
            what = f"{done} of {wanted} answers are there"
        elif unjudged:
            what = f"{unjudged} of {done} answers have no verdict"
        else:
            return
        first = next((s.error.message for s in log.samples or () if s.error), None)
        first = first or (log.error.message if log.error else f"the run was {log.status}")
        raise BenchmarkError(
            f"{what} ({brief(first, 300)}); all so far is kept in {self.folder.path}, "
            "and the same command goes on from there"
        )

    def write_results(self, judge: Judge) -> dict[str, Any]:
        """Rates, counts and provenance, written to ``eval_results.json``."""
        folder, options = self.folder, self.options
        verdicts, answered = folder.journal.verdicts, folder.answered()
        items = [Judged(folder.questions[p[0]], verdicts[p]) for p in answered if p in verdicts]
        results = {
            "benchmark": self.benchmark.name,
            "judge": judge.identity,
            **summary(items, self.benchmark.rates, self.benchmark.group_of),
            "unanswered": len(folder.places()) - len(answered),
            "provenance": {
                **(asdict(folder.record) if folder.record else {"model": options.model}),
                "base_url": options.base_url,
                "limit": options.limit,
                "max_tokens": options.max_tokens or self.benchmark.max_tokens,
                "epochs": options.epochs,
                "temperature": options.temperature,
                "judged": time.time(),
                "python": platform.python_version(),
            },
        }
        write_json(folder.path / RESULTS, results)
        return results

    def label(self, labels: Labels | None) -> LabelReport | None:
        """Write the labels where the entries are, if they can be reached."""
        record = self.folder.record
        if labels is None or record is None:
            return None
        try:
            labels.flush()
        except (ActivationLoggingError, OSError) as error:
            self.notes.append(f"the server did not confirm that all is stored: {error}")
        report = apply_labels(
            labels,
            self.folder.journal,
            evaluator=record.evaluator,
            run=record.for_labels(),
            progress=self.progress,
        )
        if report.note:
            self.notes.append(report.note)
        return report

    def result(
        self, results: dict[str, Any] | None = None, labels: LabelReport | None = None
    ) -> RunResult:
        folder, notes = self.folder, tuple(self.notes)
        return RunResult(
            folder.path, results or {}, labels, notes, folder.questions, folder.journal
        )
