"""Benchmarks as Inspect tasks; ``inspect eval activation_logging/short_facts`` finds them.

Each sample sends a ``request_id`` of its own, ``{run}-{sample}-{epoch}``, and the tags of its
question, so that the store's entry of every answer is known beforehand. A run also keeps answers
and verdicts in the files of :mod:`.journal` and does not ask again for what they hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ContentReasoning,
    GenerateConfig,
    ModelOutput,
    model_output_from_openai,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from activation_logging.benchmarks.journal import Journal, new_run_id
from activation_logging.benchmarks.judging import check_kinds, judge_named
from activation_logging.benchmarks.options import SIBLING, RunOptions
from activation_logging.benchmarks.questions import Question, balanced
from activation_logging.benchmarks.rates import Judged, counts
from activation_logging.benchmarks.registry import BENCHMARKS, Benchmark
from activation_logging.errors import BenchmarkError, PluginError
from activation_logging.judges.verdict import Answer, Verdict
from activation_logging.score_options import STOP

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.benchmarks.entries import Recovered
    from activation_logging.judges.registry import Judge

_LOG = logging.getLogger(__name__)
_BEFORE = "activation_stop"
"""The ``finish_reason`` that a run keeps of an answer that a probe ended before its first word."""


def inspect_task(benchmark: Benchmark) -> Callable[..., Task]:
    """The function that Inspect calls for ``inspect eval activation_logging/NAME -T n=10``.

    Its arguments are the experiment, the number of questions for each unit, their seed, their
    maximum in all, the judge, where a judging model is served, and for the benchmarks that have
    them the kind of controls and who invents the names (``MODEL@URL,MODEL@URL``).
    """

    @task(name=benchmark.name)
    def make(  # noqa: PLR0917 - Inspect passes them by name
        exp: str = benchmark.default_exp,
        n: int = benchmark.default_n,
        seed: int = 0,
        limit: int | None = None,
        judge: str = "rules",
        judge_base_url: str | None = None,
        controls: str = SIBLING,
        generator: str | None = None,
    ) -> Task:
        options = RunOptions(
            model="",
            do_inference=False,
            do_eval=False,
            controls=controls,
            generator=generator.split(",") if generator else None,
        )
        made = benchmark.make_questions(exp, n, seed, **options.settings(benchmark))
        questions = balanced(made, limit)
        chosen = judge_named(benchmark, judge, judge_base_url)
        check_kinds(chosen, questions)
        return build_task(benchmark, questions, judge=chosen)

    return make


def build_task(
    benchmark: Benchmark,
    questions: list[Question],
    *,
    judge: Judge | None,
    session: Session | None = None,
    epochs: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
) -> Task:
    """A task over these questions, named after its benchmark; without a judge nothing is scored."""
    return Task(
        name=benchmark.name,
        dataset=MemoryDataset([_sample(question) for question in questions], name=benchmark.name),
        solver=ask(benchmark.name, session),
        scorer=None if judge is None else judged_by(benchmark, judge, session),
        # Greedy by default, with the log-probabilities that detectors compare themselves with.
        config=GenerateConfig(
            temperature=temperature,
            top_p=1.0,
            max_tokens=max_tokens or benchmark.max_tokens,
            logprobs=True,
            top_logprobs=5,
        ),
        # Labels of several epochs are not averaged but counted.
        epochs=Epochs(epochs, "mode"),
    )


@dataclass(frozen=True)
class Session:
    """What the solver and the scorer of one run share beside the questions.

    Attributes:
        run_id: the first part of every request id.
        journal: where answers and verdicts are kept; those in it are not asked for again.
        is_vllm: whether the server takes the additional fields.
        stop: the ``activation_stop`` of every request; None for none.
        recover: finds what answered a request of a broken run in the store, if it is there whole.
        replay: never ask; an answer that is missing is an error.
        answered: called after every new answer.
    """

    run_id: str
    journal: Journal | None = None
    is_vllm: bool = True
    stop: str | None = None
    recover: Callable[[str], Recovered | None] | None = None
    replay: bool = False
    answered: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """What Inspect's log shows of the session, which JSON has no form for."""
        return self.run_id


# --- asking -------------------------------------------------------------------------


@solver
def ask(benchmark: str, session: Session | None = None) -> Solver:
    """Ask the question, under a request id and tags of its own."""
    session = session or Session(new_run_id())

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = question_of(state)
        known = await _known_answer(session, question, state.epoch)
        if known is not None:
            state.output = ModelOutput.from_content(str(state.model), known.generation)
            state.messages.append(state.output.message)
        elif session.replay:
            raise BenchmarkError(f"there is no answer to {question.id!r} to judge")
        else:
            tags = {**question.tags(benchmark), "run": session.run_id, "epoch": str(state.epoch)}
            options = {"activation_tags": json.dumps(tags)}
            if session.stop is not None:
                options[STOP] = session.stop
            body = {
                "request_id": _request_id(session, question, state.epoch),
                "vllm_xargs": options,
            }
            state = await generate(
                state,
                extra_body=body if session.is_vllm else {},
                seed=sampling_seed(question, state.epoch),
            )
            if state.output.error or not state.output.choices:
                raise BenchmarkError(f"no answer to {question.id!r}: {state.output.error}")
            known = _answer(
                question,
                state.epoch,
                state.output,
                request_id=state.output.response_id,
                finish_reason=_BEFORE if _ended_before(state.output) else state.output.stop_reason,
            )
            if session.journal is not None:
                session.journal.add_answer(known)
            session.answered()
        state.metadata["request_id"] = known.request_id
        state.metadata["finish_reason"] = known.finish_reason
        return state

    return solve


async def _known_answer(session: Session, question: Question, epoch: int) -> Answer | None:
    """The answer that an earlier start of this run got, from its files or from the store."""
    if session.journal is None:
        return None
    known = session.journal.answers.get((question.id, epoch))
    if known is None and session.recover is not None and not session.replay:
        # vLLM puts the name of the API before the id that a chat request brings.
        request_id = f"chatcmpl-{_request_id(session, question, epoch)}"
        found = session.recover(request_id)
        if found is not None:
            known = _answer(
                question,
                epoch,
                await _as_answered(found.content),
                request_id=request_id,
                finish_reason=_BEFORE if found.no_token else None,
            )
            session.journal.add_answer(known)
    return known


def _ended_before(output: ModelOutput) -> bool:
    """Whether the server ended the answer before its first token, as only a probe does."""
    return output.usage is not None and not output.completion and output.usage.output_tokens == 0


async def _as_answered(content: str) -> ModelOutput:
    """What Inspect makes of a message: the same as when it came from the server."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return await model_output_from_openai(
        {"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": [choice]}
    )


def _request_id(session: Session, question: Question, epoch: int) -> str:
    return f"{session.run_id}-{question.id}-{epoch}"


def sampling_seed(question: Question, epoch: int) -> int:
    """The seed that one answer is sampled with: each epoch has another, a resumed run the same."""
    text = f"{question.seed}/{question.id}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _answer(
    question: Question,
    epoch: int,
    output: ModelOutput,
    *,
    request_id: str | None,
    finish_reason: str | None = None,
) -> Answer:
    return Answer(
        id=question.id,
        prompt=question.prompt,
        name=question.name,
        type=question.type,
        generation=output.completion,
        request_id=request_id,
        kind=question.kind,
        epoch=epoch,
        gold=question.gold,
        stratum=question.stratum,
        finish_reason=finish_reason,
        reasoning=_reasoning(output),
    )


def _reasoning(output: ModelOutput) -> str | None:
    """What was taken out of an answer, in the model's own words."""
    content = output.message.content
    parts = [] if isinstance(content, str) else content
    texts = [part.reasoning for part in parts if isinstance(part, ContentReasoning)]
    return "".join(texts) or None


def question_of(state: TaskState) -> Question:
    """The question that a sample was made from."""
    return Question.of(state.metadata["question"])


def _sample(question: Question) -> Sample:
    return Sample(
        id=question.id,
        input=question.prompt,
        target=list(question.gold) or question.kind,
        metadata={"question": asdict(question)},
    )


# --- judging ------------------------------------------------------------------------


def judged_by(benchmark: Benchmark, judge: Judge, session: Session | None = None) -> Scorer:
    """A scorer that takes verdicts from the journal before it asks the judge."""
    journal = session.journal if session else None

    @metric(name=f"{benchmark.name}_rates")
    def rates() -> Metric:
        def compute(scores: list[SampleScore]) -> Value:
            return _rates_and_counts(benchmark, scores)

        return compute

    @scorer(metrics=[rates()], name=benchmark.evaluator)
    def verdicts() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001  gold is inside
            answer = _answer(
                question_of(state),
                state.epoch,
                state.output,
                request_id=state.metadata.get("request_id"),
                finish_reason=state.metadata.get("finish_reason"),
            )
            verdict = journal.verdict_on(answer, judge.identity) if journal else None
            if verdict is None:
                refused = answer.finish_reason == _BEFORE
                verdict = _refused(answer, judge) if refused else await judge(answer)
                if journal is not None:
                    journal.add_verdict(verdict)
            return Score(
                value=verdict.label,
                answer=answer.generation,
                explanation=verdict.words,
                metadata={"verdict": verdict.as_json()},
            )

        return score

    return verdicts()


def _refused(answer: Answer, judge: Judge) -> Verdict:
    """The verdict on an answer without a word, which needs no judge to read it."""
    words = "a probe ended the answer before its first word"
    return Verdict.on(answer, "refused", judge.identity, words)


def _rates_and_counts(benchmark: Benchmark, scores: list[SampleScore]) -> Value:
    """Rates by name, and the number of answers of each label that is not the name of a rate."""
    items = [
        Judged(
            Question.of((score.sample_metadata or {})["question"]),
            Verdict.of((score.score.metadata or {})["verdict"]),
        )
        for score in scores
    ]
    rates = {name: rate.value for name, rate in benchmark.rates(items).items()}
    return {**rates, **{name: n for name, n in counts(items).items() if name not in rates}}


def _task_of(name: str) -> Callable[..., Task] | None:
    try:
        return inspect_task(BENCHMARKS.get(name))
    except PluginError as error:  # another package's; Inspect should still find ours
        _LOG.warning("%s", error)
        return None


TASKS = {name: made for name in BENCHMARKS.names() if (made := _task_of(name))}
"""The task of every benchmark, by name."""
