"""The files of a run: answers and verdicts, appended line by line as they come.

::

    {output_base_dir}/{exp}_{seed}_{N}/
        prompts.jsonl            the questions
        {model}/
            run.json             what was asked of whom, and the run's id
            generation.jsonl     one answer a line
            raw_eval_res.jsonl   one verdict a line
            eval_results.json    rates, counts, provenance
            inspect/             Inspect's own logs

A line is written with one ``write`` and flushed. A killed process therefore leaves whole lines and
at most one that is cut off at the end. Questions that the files answer are not asked again.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from activation_logging.benchmarks.options import default_setting
from activation_logging.benchmarks.questions import Question, replace_text
from activation_logging.benchmarks.registry import BENCHMARKS
from activation_logging.errors import BenchmarkError, LabelError, UnknownName
from activation_logging.judges.verdict import Answer, Kind, Place, Verdict
from activation_logging.records import LABELS
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

GENERATION, VERDICTS, RESULTS, RUN = (
    "generation.jsonl",
    "raw_eval_res.jsonl",
    "eval_results.json",
    "run.json",
)
INSPECT = "inspect"


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
    activation_stop: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder of all runs that ask the same questions."""
        return f"{self.exp}_{self.seed}_{self.n}"

    @property
    def evaluator(self) -> str:
        """Under which name the labels are kept."""
        return BENCHMARKS.get(self.benchmark).evaluator

    def for_labels(self) -> dict[str, Any]:
        """What every label says about its run."""
        return {"benchmark": self.benchmark, "run": self.run_id, "seed": self.seed}

    def check_same(self, asked: RunRecord, folder: Path) -> None:
        """Make sure that a run with the settings of ``asked`` may go on in this run's folder.

        Raises:
            BenchmarkError: they differ; the text names the setting.
        """
        names = (
            *("benchmark", "exp", "n", "seed", "model"),
            *("temperature", "max_tokens", "activation_stop"),
        )
        pairs = [(name, getattr(self, name), getattr(asked, name)) for name in names]
        pairs += [
            (name, *(run.settings.get(name, default_setting(name)) for run in (self, asked)))
            for name in sorted(self.settings.keys() | asked.settings.keys())
        ]
        for name, theirs, ours in pairs:
            if theirs != ours:
                raise BenchmarkError(
                    f"{folder} belongs to a run with {name} {theirs!r}, not {ours!r}; "
                    "--infer_overwrite starts anew"
                )

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record of a run's folder, or None where there is none.

        Raises:
            BenchmarkError: it is broken, or of a benchmark that is not installed.
        """
        fields = read_json(folder / RUN)
        if fields is None:
            return None
        try:
            record = cls(**fields)
            BENCHMARKS.get(record.benchmark)
        except TypeError as error:
            raise BenchmarkError(f"{folder / RUN} is not a run's record: {error}") from None
        except UnknownName as error:
            raise BenchmarkError(f"{folder / RUN}: {error}") from None
        return record


def new_run_id() -> str:
    """The first part of a run's request ids: unlike that of any other run in the same store."""
    return f"eval-{secrets.token_hex(5)}"


class Journal:
    """``generation.jsonl`` and ``raw_eval_res.jsonl`` of one folder.

    Args:
        folder: the model's folder of the run.
        questions: what belongs to this run, by id; answers to anything else are refused.
            None where the answers were written by hand and bring their own questions.
        mend: drop a last line that is cut off; its question is asked again.

    Raises:
        BenchmarkError: a broken line, a duplicate id, or an answer of another run, each named
            with its line; or a folder that cannot be written to.
    """

    def __init__(
        self, folder: Path, questions: Mapping[str, Question] | None, *, mend: bool = False
    ) -> None:
        self.folder = folder
        self._questions = questions
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchmarkError(f"{folder} cannot be made: {error.strerror}") from None
        self.answers: dict[Place, Answer] = {}
        self.verdicts: dict[Place, Verdict] = {}
        for where, fields in _lines(folder / GENERATION, mend=mend):
            answer = _answer(fields, where, number=int(where.rsplit(" ", 1)[1]))
            self._check(answer, where)
            if answer.place in self.answers:
                raise BenchmarkError(f"{where}: the id {answer.id!r} was there before")
            self.answers[answer.place] = answer
        for where, fields in _lines(folder / VERDICTS, mend=True):
            verdict = _verdict(fields, where)
            judged = self.answers.get(verdict.place)
            if judged is not None and judged.digest == verdict.answer:
                verdict = _within(verdict, judged, where)
            self.verdicts[verdict.place] = verdict

    def add_answer(self, answer: Answer) -> None:
        """Append an answer; it counts from here on."""
        self.answers[answer.place] = answer
        fields = {key: value for key, value in asdict(answer).items() if value not in (None, ())}
        _append(self.folder / GENERATION, fields)

    def add_verdict(self, verdict: Verdict) -> None:
        """Append a verdict; a later one on the same answer replaces it."""
        self.verdicts[verdict.place] = verdict
        _append(self.folder / VERDICTS, verdict.as_json())

    def verdict_on(self, answer: Answer, judge: str) -> Verdict | None:
        """The verdict of this judge on exactly this text, if there is one."""
        verdict = self.verdicts.get(answer.place)
        if verdict is None or verdict.judge != judge or verdict.answer != answer.digest:
            return None
        return verdict

    def _check(self, answer: Answer, where: str) -> None:
        if self._questions is None:
            return
        question = self._questions.get(answer.id)
        if question is None:
            raise BenchmarkError(
                f"{where} is of another run: no question here has the id {answer.id!r}"
            )
        if question.prompt != answer.prompt:
            raise BenchmarkError(
                f"{where} is of another run: the question {answer.id!r} reads "
                f"{question.prompt!r} here"
            )


def questions_of(answers: Sequence[Answer]) -> list[Question]:
    """The questions that hand-written answers reply to."""
    return [
        Question(
            id=answer.id,
            prompt=answer.prompt,
            name=answer.name,
            type=answer.type,
            kind=answer.kind,
            stratum=answer.stratum or f"{answer.type}/{answer.kind}",
            group=answer.name,
            seed=0,
            gold=answer.gold,
        )
        for answer in answers
    ]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file for people too, replaced as a whole."""
    replace_text(path, dumps(value, indent=2, ascii_only=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of :func:`write_json`, or None where there is no such file.

    Raises:
        BenchmarkError: there is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BenchmarkError(f"{path} does not hold a JSON object")
    return value


def _append(path: Path, fields: Mapping[str, Any]) -> None:
    line = dumps(fields) + "\n"
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(line)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written: {error.strerror or error}") from None


def _lines(path: Path, *, mend: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place in words, and its object. ``mend`` cuts off half a last line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror or error}") from None
    whole, _, rest = raw.rpartition(b"\n")
    if rest.strip() and mend and not _is_object(rest):
        raw = whole + b"\n" if whole else b""
        path.write_bytes(raw)
    elif rest.strip() and mend:
        # Complete but for its end: what is appended next must not join it.
        path.write_bytes(raw + b"\n")
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BenchmarkError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(fields, dict):
            raise BenchmarkError(f"{where} is not a JSON object")
        yield where, fields


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _answer(fields: Mapping[str, Any], where: str, number: int) -> Answer:
    for name in ("prompt", "name", "type", "generation"):
        if not isinstance(fields.get(name), str):
            raise BenchmarkError(f"{where} has no text {name!r}")
    kind = fields.get("kind", "made_up")
    if kind not in get_args(Kind):
        raise BenchmarkError(f"{where}: kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    epoch, gold = fields.get("epoch", 1), fields.get("gold", ())
    if type(epoch) is not int or not isinstance(gold, (list, tuple)):
        raise BenchmarkError(f"{where}: epoch is a number and gold a list of texts")
    names = ("request_id", "stratum", "finish_reason", "reasoning")
    texts = {name: fields.get(name) for name in names}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise BenchmarkError(f"{where}: {name} is a text, not {value!r}")
    return Answer(
        id=str(fields.get("id", f"line-{number}")),
        prompt=fields["prompt"],
        name=fields["name"],
        type=fields["type"],
        generation=fields["generation"],
        request_id=texts["request_id"],
        kind=kind,
        epoch=epoch,
        gold=tuple(map(str, gold)),
        stratum=texts["stratum"] or "",
        finish_reason=texts["finish_reason"],
        reasoning=texts["reasoning"],
    )


def _verdict(fields: Mapping[str, Any], where: str) -> Verdict:
    try:
        verdict = Verdict.of(fields)
    except TypeError as error:
        raise BenchmarkError(f"{where} is not a verdict: {error}") from None
    except LabelError as error:
        raise BenchmarkError(f"{where}: {error}") from None
    for name in ("id", "label", "judge", "words", "answer"):
        if not isinstance(getattr(verdict, name), str):
            raise BenchmarkError(f"{where}: {name} is a text, not {getattr(verdict, name)!r}")
    if type(verdict.epoch) is not int or not isinstance(verdict.details, (dict, type(None))):
        raise BenchmarkError(f"{where}: epoch is a number and details an object")
    if verdict.label not in LABELS:
        raise BenchmarkError(f"{where}: {verdict.label!r} is not one of {', '.join(LABELS)}")
    return verdict


def _within(verdict: Verdict, answer: Answer, where: str) -> Verdict:
    try:
        return verdict.checked_on(answer)
    except LabelError as error:
        raise BenchmarkError(f"{where}: {error}") from None
