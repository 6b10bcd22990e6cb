"""The benchmarks as Inspect tasks; ``inspect eval activation_logging/short_facts`` finds them.

Each sample sends a ``request_id`` of its own, ``{run}-{sample}-{epoch}``, and the tags of its
question, so that the store's entry of every answer is known beforehand. With ``run_dir`` answers
and verdicts are also kept in the files of :mod:`.journal`, and what is there is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ContentReasoning,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
    model_output_from_openai,
)
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    Value,
    metric,
    scorer,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver

from activation_logging.benchmarks import facts, metrics, nonsense
from activation_logging.benchmarks.endpoint import Role, api_key, check_endpoint
from activation_logging.benchmarks.journal import Answer, Journal, Verdict
from activation_logging.benchmarks.questions import Question, balanced
from activation_logging.errors import BenchmarkError
from activation_logging.judges.gold import VERSION as GOLD
from activation_logging.judges.gold import judge_short_answer
from activation_logging.judges.model import PROMPT_VERSION, ModelJudge
from activation_logging.judges.rules import VERSION as RULES
from activation_logging.judges.rules import judge_belief
from activation_logging.judges.verdict import Belief, Judgement, label_of_belief

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

EVALUATORS = {nonsense.NAME: "refusal", facts.NAME: "short_facts"}
"""Under which name each benchmark's labels are kept beside an entry."""

JUDGE_RETRIES: dict[str, Any] = {"max_retries": 4, "attempt_timeout": 120, "timeout": 300}
MAX_TOKENS = {nonsense.NAME: 256, facts.NAME: 48}
SERVICE = "served"
"""Inspect's name for the endpoint: models are ``openai-api/served/<model>``."""


@task
def nonsense_mixed_entities(  # noqa: PLR0917 - Inspect passes them by name
    exp: str = "nonsense_all",
    n: int = nonsense.DEFAULT_N,
    seed: int = 0,
    limit: int | None = None,
    judge: str = "rules",
    judge_base_url: str | None = None,
) -> Task:
    """Describe things that do not exist, and real ones of the same sort.

    Args:
        exp: ``nonsense_all``, or ``nonsense_`` and one domain.
        n: made-up names, and as many real ones, for each domain.
        seed: of the names.
        limit: ask only so many questions, balanced over domains and kinds.
        judge: ``rules`` or a model.
        judge_base_url: where that model is served.
    """
    questions = nonsense.nonsense_questions(domains=domains_of(exp), n=n, seed=seed)
    return build_task(
        nonsense.NAME,
        balanced(questions, limit),
        scorer=refusal(judge=judge, judge_base_url=judge_base_url),
    )


@task
def short_facts(
    exp: str = "short_facts_all", n: int = facts.DEFAULT_N, seed: int = 0, limit: int | None = None
) -> Task:
    """Short questions with one right answer.

    Args:
        exp: ``short_facts_all``, or ``short_facts_`` and ``capital``, ``city`` or ``element``.
        n: at most so many questions for each stratum.
        seed: which ones.
        limit: ask only so many questions, balanced over strata.
    """
    questions = facts.short_facts_questions(sorts=domains_of(exp), n=n, seed=seed)
    return build_task(facts.NAME, balanced(questions, limit), scorer=gold_answer())


def domains_of(exp: str) -> tuple[str, ...]:
    """The domains or sorts of question that an experiment's name stands for.

    Raises:
        BenchmarkError: there is no such experiment.
    """
    known: dict[str, tuple[str, ...]] = {**nonsense.EXPERIMENTS, **facts.EXPERIMENTS}
    if exp not in known:
        raise BenchmarkError(f"no experiment is called {exp!r}; known are {', '.join(known)}")
    return known[exp]


def build_task(
    benchmark: str,
    questions: list[Question],
    *,
    scorer: Scorer | None,
    solver: Solver | None = None,
    epochs: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
) -> Task:
    """A task over these questions, named after its benchmark."""
    return Task(
        name=benchmark,
        dataset=MemoryDataset([_sample(question) for question in questions], name=benchmark),
        solver=solver or ask(benchmark),
        scorer=scorer,
        config=generation(max_tokens or MAX_TOKENS[benchmark], temperature),
        # Labels of several epochs are not averaged but counted.
        epochs=Epochs(epochs, "mode"),
    )


def generation(max_tokens: int, temperature: float) -> GenerateConfig:
    """Greedy by default, with the log-probabilities that detectors compare themselves with."""
    return GenerateConfig(
        temperature=temperature,
        top_p=1.0,
        max_tokens=max_tokens,
        logprobs=True,
        top_logprobs=5,
    )


def served_model(model: str, base_url: str, *, role: Role = "server", **config: Any) -> Model:
    """Inspect's handle of a model on an OpenAI-compatible server."""
    return get_model(
        f"openai-api/{SERVICE}/{model}",
        base_url=base_url,
        api_key=api_key(role),
        config=GenerateConfig(**config),
        memoize=False,
        max_retries=0,  # of OpenAI's client: retrying is Inspect's
    )


@dataclass(frozen=True)
class Session:
    """What the solver and the scorer of one run share beside the questions.

    Attributes:
        run_id: the first part of every request id.
        journal: where answers and verdicts are kept; those in it are not asked for again.
        is_vllm: whether the server takes the additional fields.
        recover: finds the content that answered a request of a broken run in the store, if it is
            there whole.
        replay: never ask; an answer that is missing is an error.
        answered: called after every new answer.
    """

    run_id: str
    journal: Journal | None = None
    is_vllm: bool = True
    recover: Callable[[str], str | None] | None = None
    replay: bool = False
    answered: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """What Inspect's log shows of it, since it cannot be written as JSON."""
        return self.run_id


def new_run_id() -> str:
    """The first part of a run's request ids: unlike that of any other run in the same store."""
    return f"eval-{secrets.token_hex(5)}"


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
            body = {
                "request_id": _request_id(session, question, state.epoch),
                "vllm_xargs": {"activation_tags": json.dumps(tags)},
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
                state.output.completion,
                request_id=state.output.response_id,
                finish_reason=state.output.stop_reason,
                reasoning=_reasoning(state.output),
            )
            if session.journal is not None:
                session.journal.add_answer(known)
            session.answered()
        state.metadata["request_id"] = known.request_id
        return state

    return solve


async def _known_answer(session: Session, question: Question, epoch: int) -> Answer | None:
    """The answer that an earlier start of this run got, from its files or from the store."""
    if session.journal is None:
        return None
    known = session.journal.answers.get((question.id, epoch))
    if known is None and session.recover is not None and not session.replay:
        request_id = f"chatcmpl-{_request_id(session, question, epoch)}"
        content = session.recover(request_id)
        if content is not None:
            output = await _as_answered(content)
            known = _answer(
                question,
                epoch,
                output.completion,
                request_id=request_id,
                finish_reason=None,
                reasoning=_reasoning(output),
            )
            session.journal.add_answer(known)
    return known


async def _as_answered(content: str) -> ModelOutput:
    """What Inspect makes of a message: the same as when it came from the server."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return await model_output_from_openai(
        {"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": [choice]}
    )


def _reasoning(output: ModelOutput) -> str | None:
    """What was taken out of an answer, in the model's own words."""
    content = output.message.content
    parts = [] if isinstance(content, str) else content
    texts = [part.reasoning for part in parts if isinstance(part, ContentReasoning)]
    return "".join(texts) or None


def _request_id(session: Session, question: Question, epoch: int) -> str:
    return f"{session.run_id}-{question.id}-{epoch}"


def sampling_seed(question: Question, epoch: int) -> int:
    """Of the draws of one answer: another for each epoch, the same when a run is resumed."""
    text = f"{question.seed}/{question.id}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _answer(
    question: Question,
    epoch: int,
    text: str,
    *,
    request_id: str | None,
    finish_reason: str | None,
    reasoning: str | None = None,
) -> Answer:
    return Answer(
        id=question.id,
        prompt=question.prompt,
        name=question.name,
        type=question.type,
        generation=text,
        request_id=request_id,
        kind=question.kind,
        epoch=epoch,
        gold=question.gold,
        stratum=question.stratum,
        finish_reason=finish_reason,
        reasoning=reasoning,
    )


def question_of(state: TaskState) -> Question:
    """The question that a sample was made from."""
    fields = dict(state.metadata["question"])
    return Question(**{**fields, "gold": tuple(fields["gold"])})


def _sample(question: Question) -> Sample:
    return Sample(
        id=question.id,
        input=question.prompt,
        target=list(question.gold) or question.kind,
        metadata={"question": asdict(question)},
    )


# --- labels -------------------------------------------------------------------------


def _items(scores: list[SampleScore]) -> list[metrics.Labelled]:
    return [labelled(score.score) for score in scores]


def labelled(score: Score) -> metrics.Labelled:
    """A score as the metrics need it."""
    return metrics.Labelled(*(score.metadata or {})["labelled"])


@metric
def nonsense_rates() -> Metric:
    """Refusal, false acceptance and false refusal, and the counts of labels."""

    def compute(scores: list[SampleScore]) -> Value:
        items = _items(scores)
        rates = metrics.nonsense_rates(items)
        return {**{name: rate.value for name, rate in rates.items()}, **metrics.counts(items)}

    return compute


@metric
def short_facts_rates() -> Metric:
    """Correct, hallucinated and refused, the majority baseline, and the number of invalid ones."""

    def compute(scores: list[SampleScore]) -> Value:
        items = _items(scores)
        rates = metrics.short_facts_rates(items)
        counts = metrics.counts(items)
        return {**{name: rate.value for name, rate in rates.items()}, "invalid": counts["invalid"]}

    return compute


@scorer(metrics=[nonsense_rates()])
def refusal(
    judge: str = "rules", judge_base_url: str | None = None, session: Session | None = None
) -> Scorer:
    """Whether the answer took the name for real, by ``rules`` or by a model."""
    if judge == "rules":

        async def by_rules(answer: Answer) -> Judgement:
            belief, words = judge_belief(answer.generation, answer.name)
            return _belief_judgement(answer, belief, RULES, words)

        return _scoring(session, RULES, by_rules)

    identity = judge_identity(judge)
    if judge_base_url is None:
        ask_judge = ModelJudge(get_model(judge))
    else:
        endpoint = check_endpoint(judge_base_url, judge, role="judge")
        model = served_model(judge, judge_base_url, role="judge", **JUDGE_RETRIES)
        ask_judge = ModelJudge(model, is_vllm=endpoint.is_vllm)

    async def by_model(answer: Answer) -> Judgement:
        belief, words = await ask_judge(answer.generation, name=answer.name, type=answer.type)
        return _belief_judgement(answer, belief, identity, words)

    return _scoring(session, identity, by_model)


@scorer(metrics=[short_facts_rates()])
def gold_answer(session: Session | None = None) -> Scorer:
    """Whether a short answer is the right one."""

    async def by_gold(answer: Answer) -> Judgement:
        table = facts.candidates(answer.type)
        return judge_short_answer(answer.generation, answer.gold, answer.type, table)

    return _scoring(session, GOLD, by_gold)


def judge_identity(judge: str) -> str:
    """How verdicts name their judge: with the version of its rules or of its prompt."""
    return RULES if judge == "rules" else f"{judge} (prompt {PROMPT_VERSION})"


def _scoring(
    session: Session | None, identity: str, judge: Callable[[Answer], Awaitable[Judgement]]
) -> Scorer:
    """A scorer that takes verdicts from the journal before it asks the judge."""
    journal = session.journal if session else None

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001  gold is inside
        question = question_of(state)
        answer = _answer(
            question,
            state.epoch,
            state.output.completion,
            request_id=state.metadata.get("request_id"),
            finish_reason=None,
        )
        verdict = journal.verdict_on(answer, identity) if journal else None
        if verdict is None:
            verdict = Verdict.of(answer, await judge(answer))
            if journal is not None:
                journal.add_verdict(verdict)
        item = label_item(question, verdict)
        return Score(
            value=verdict.label,
            answer=answer.generation,
            explanation=verdict.words,
            metadata={"labelled": list(item), "judge": verdict.judge},
        )

    return score


def label_item(question: Question, verdict: Verdict) -> metrics.Labelled:
    """A verdict as the metrics need it."""
    gold = question.gold[0] if question.gold else ""
    return metrics.Labelled(
        verdict.label, question.kind, question.type, question.stratum, question.id, gold
    )


def _belief_judgement(answer: Answer, belief: Belief, judge: str, words: str) -> Judgement:
    return Judgement(label_of_belief(belief, answer.kind), judge, words, {"belief": belief})
