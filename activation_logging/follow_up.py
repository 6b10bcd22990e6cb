"""Asking a served model about answers in a store: is this one right, do these two say the same?

The server logs each question with its reply, under tags that say what it is about, so there are no
other files: what the store has is not asked again. :mod:`.detectors.follow_ups` reads it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.benchmarks.endpoint import api_key, check_endpoint, client, openai_package
from activation_logging.detectors.follow_ups import (
    CHAT_END,
    COMPLETION_END,
    FALSE_FORMS,
    TRUE_FORMS,
    Asks,
    FollowUps,
    Subject,
    grouping,
    is_follow_up,
    is_true,
    question_about,
    share_of_true,
    tags_of,
)
from activation_logging.detectors.samples import same_texts, samples_to
from activation_logging.errors import BenchmarkError
from activation_logging.progress import Progress, silent
from activation_logging.records import ANSWERED
from activation_logging.store import open_store
from activation_logging.store.query import readable, select
from activation_logging.text import brief

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from openai import AsyncOpenAI

    from activation_logging.benchmarks.endpoint import Endpoint
    from activation_logging.store import Entry, Store
    from activation_logging.store.places import Where

TOP = 20
"""Alternatives to the first token that are asked for: the most that vLLM gives by default."""

_PATIENCE = 8  # failures without a success between them
_TIMEOUT_S = 600.0
_RETRIES = 2
_WAIT_S = 10.0
_POLL_S = 0.25


class Failure(NamedTuple):
    """A question that got no reply: the key of the answer that it is about, and why."""

    key: str
    reason: str


@dataclass
class FollowUpReport:
    """What was asked.

    ``subjects`` counts answers, or for ``entails`` prompts with different answers; ``known`` those
    that nothing had to be asked about; ``asked`` the replies; ``undecided`` those of the replies in
    which neither word was likely; ``unlogged`` the replies that are not in the store.
    """

    subjects: int = 0
    known: int = 0
    done: int = 0
    asked: int = 0
    undecided: int = 0
    unlogged: int = 0
    failures: list[Failure] = field(default_factory=list)


def ask_follow_ups(
    store_path: Where,
    kind: Asks,
    *,
    base_url: str,
    model: str | None = None,
    by: str | None = None,
    label: str | None = None,
    tags: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_connections: int = 32,
    progress: Progress = silent,
) -> FollowUpReport:
    """Ask a served model about the answers of a store; what the store has is not asked again.

    Args:
        store_path: the store's folder, or several, see :func:`.open_store`. The server should
            log to it, or to one of them.
        kind: ``p_true`` asks whether an answer is right, ``entails`` which of several answers to
            one prompt mean the same.
        base_url: the server, ending in ``/v1``.
        model: only about this model's answers; needed where the store has several models'.
        by: whom to ask, the model that answered unless given. ``p_true`` is what a model says of
            its own answers.
        label: only about answers that this evaluator has judged.
        tags: only about answers with all of these tags.
        limit: about no more answers, or prompts, than this.
        max_connections: questions open at once.
        progress: told how many subjects are done.

    Raises:
        BenchmarkError: there is nothing to ask about, the server cannot be asked, or it logs
            elsewhere; says what to do.
    """
    if kind == "p_true" and by is not None:
        raise BenchmarkError("P(True) is what a model says of its own answers: leave --by out")
    with open_store(store_path) as store:
        answers = list(_answers(store, model=model, evaluator=label, tags=tags))
        if not answers:
            raise BenchmarkError(
                f"{store.path} has no complete answer to ask about that meets these conditions"
            )
        endpoint = check_endpoint(base_url, by or _answerer(answers))
        if not endpoint.is_vllm:
            raise BenchmarkError(f"the server at {base_url} is not vLLM, so it logs no question")
        subjects = _SUBJECTS[kind](store, answers)[:limit]
        follow_ups = FollowUps(store)
        # Whoever is named is asked, whatever others have said.
        whose = endpoint.model if by or kind == "p_true" else None
        asker = _Asker(store, follow_ups, endpoint, kind, _word_ids(endpoint), whose=whose)
        jobs = [subject for subject in subjects if not asker.knows(subject)]
        report = asker.report
        report.subjects, report.known = len(subjects), len(subjects) - len(jobs)
        if jobs:
            asyncio.run(_run(asker, jobs, max_connections, progress))
        if asker.replied:
            _flush(endpoint, quietly=bool(report.failures))
            report.unlogged = _unlogged(store, kind, asker.replied)
    # Where the server has failed, that is what to say.
    if report.unlogged and not report.failures:
        raise BenchmarkError(
            f"{report.unlogged} of {report.asked} replies are not in {store.path}: the server at "
            f"{base_url} logs to another store; bring both together (activation-logging merge)"
        )
    return report


# --- what to ask about ----------------------------------------------------------------


class _Answer(NamedTuple):
    """What is kept in memory of an answer; ``chat`` says that it answers messages."""

    key: str
    model: str
    subject: Subject
    chat: bool


def _answers(store: Store, **conditions: Any) -> Iterator[_Answer]:
    for entry in readable(select(store, newest_first=False, **conditions)):
        if entry.finish_reason in ANSWERED and not is_follow_up(entry.tags):
            yield _Answer(entry.key, entry.model, Subject.of(entry), entry.messages is not None)


def _answerer(answers: Sequence[_Answer]) -> str:
    """The model that has answered.

    Raises:
        BenchmarkError: there is more than one.
    """
    first, *others = sorted({answer.model for answer in answers})
    if others:
        models = (first, *others)
        raise BenchmarkError(
            f"the answers are by {len(models)} models ({', '.join(models)}); choose one (--model)"
        )
    return first


def _texts(_store: Store, answers: Iterable[_Answer]) -> list[list[str]]:
    """Answers with different texts or prompts, each by the key of the first."""
    found: dict[Subject, list[str]] = {}
    for answer in answers:
        found.setdefault(answer.subject, [answer.key])
    return list(found.values())


def _prompts(store: Store, answers: Iterable[_Answer]) -> list[list[str]]:
    """Prompts with different answers, each by the keys of the first answer with each text."""
    found: list[list[str]] = []
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        if (answer.subject.prompt, answer.model) in seen:
            continue
        seen.add((answer.subject.prompt, answer.model))
        entry = store.get(answer.key)
        samples = [] if entry is None else samples_to(store, entry.prompt, answer.model)
        keys = [samples[places[0]].key for places in same_texts(samples)]
        if len(keys) > 1:
            found.append(keys)
    return found


_SUBJECTS: dict[Asks, Callable[[Store, Iterable[_Answer]], list[list[str]]]] = {
    "p_true": _texts,
    "entails": _prompts,
}


# --- asking ---------------------------------------------------------------------------


class _Asker:
    """Asks one kind of question, and notes what came of it.

    What ``whose`` has said before counts, of None what anybody has.

    Attributes:
        report: what was asked so far.
        replied: what the replies are about.
        gave_up: set after :data:`_PATIENCE` failures in a row.
    """

    def __init__(
        self,
        store: Store,
        follow_ups: FollowUps,
        endpoint: Endpoint,
        kind: Asks,
        words: tuple[frozenset[int], frozenset[int]],
        *,
        whose: str | None,
    ) -> None:
        self._store, self._follow_ups = store, follow_ups
        self._endpoint, self._kind, self._words, self._whose = endpoint, kind, words, whose
        self._openai = openai_package()
        self._client: AsyncOpenAI | None = None
        self._failed_in_a_row = 0
        self.report = FollowUpReport()
        self.replied: list[Subject] = []

    @property
    def gave_up(self) -> bool:
        return self._failed_in_a_row >= _PATIENCE

    async def open(self) -> None:
        """Make the client, whose connections belong to the running event loop."""
        self._client = self._openai.AsyncOpenAI(
            base_url=self._endpoint.base_url,
            api_key=api_key(),
            timeout=_TIMEOUT_S,
            max_retries=_RETRIES,
        )

    async def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            await self._client.close()

    def knows(self, keys: Sequence[str]) -> bool:
        """Whether nothing has to be asked about these answers."""
        steps = self._steps(keys)
        try:
            one = next(steps)
            while True:
                known = self._known(one)
                if known is None:
                    return False
                one = steps.send(known)
        except StopIteration:
            return True

    async def about(self, keys: Sequence[str]) -> None:
        """Ask whatever is not known about these answers; a failure goes into the report."""
        steps = self._steps(keys)
        try:
            one = next(steps)
            while True:
                known = self._known(one)
                one = steps.send(await self._ask(one) if known is None else known)
        except StopIteration:
            self._failed_in_a_row = 0
            self.report.done += 1
        except self._openai.APIError as error:
            self._failed_in_a_row += 1
            self.report.failures.append(Failure(keys[0], brief(error)))

    def _steps(self, keys: Sequence[str]) -> Generator[tuple[Entry, ...], bool, None]:
        """The questions to ask, each as entries that are still there; is sent the replies."""
        entries = [entry for key in keys if (entry := self._store.get(key)) is not None]
        if self._kind == "p_true":
            if entries:
                yield (entries[0],)
            return
        pairs = grouping(len(entries))
        try:
            one, other = next(pairs)
            while True:
                same = (yield entries[one], entries[other]) and (yield entries[other], entries[one])
                one, other = pairs.send(same)
        except StopIteration:
            return

    def _known(self, entries: tuple[Entry, ...]) -> bool | None:
        """Whether the store's reply is True; None if it has none."""
        subject = Subject.of(*entries)
        if not self._follow_ups.asked(self._kind, subject, self._whose):
            return None
        return is_true(self._follow_ups.probability(self._kind, subject, self._whose))

    async def _ask(self, entries: tuple[Entry, ...]) -> bool:
        """Whether the reply is True.

        Raises:
            openai.APIError: there is none.
        """
        assert self._client is not None
        true, false = self._words
        tags = tags_of(self._kind, entries, sorted(true), sorted(false))
        extra: dict[str, Any] = {
            "return_tokens_as_token_ids": True,
            # One row each: the state from which the word comes.
            "vllm_xargs": {"activation_tags": json.dumps(tags), "activation_tokens": "response"},
        }
        given: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": 1,
            "temperature": 0.0,
            "extra_body": extra,
        }
        text = question_about(self._kind, entries)
        said: Any
        if entries[0].messages is None:
            given |= {"prompt": f"{text}{COMPLETION_END}", "logprobs": TOP}
            said = await self._client.completions.create(**given)
        else:
            # A model that thinks would begin with something else than the word.
            extra["chat_template_kwargs"] = {"enable_thinking": False}
            given["messages"] = [{"role": "user", "content": f"{text}{CHAT_END}"}]
            given |= {"logprobs": True, "top_logprobs": TOP}
            said = await self._client.chat.completions.create(**given)
        share = share_of_true(_first_token(said), true, false)
        self.report.asked += 1
        self.report.undecided += share is None
        self.replied.append(Subject.of(*entries))
        return is_true(share)


def _first_token(said: Any) -> dict[int, float]:
    """The log-probabilities of the alternatives to a reply's first token, by token id."""
    found = said.choices[0].logprobs if said.choices else None
    if found is None:
        return {}
    if hasattr(found, "content"):  # a chat's
        tops = {top.token: top.logprob for one in found.content[:1] for top in one.top_logprobs}
    else:
        tops = {**(found.top_logprobs or [{}])[0]}
    return {int(token.rpartition(":")[2]): value for token, value in tops.items()}


async def _run(
    asker: _Asker, jobs: Sequence[Sequence[str]], connections: int, progress: Progress
) -> None:
    """Go through the jobs, so many at a time, in order."""
    waiting, done = iter(jobs), 0

    async def one_after_the_other() -> None:
        nonlocal done
        for keys in waiting:
            if asker.gave_up:
                return
            await asker.about(keys)
            done += 1
            progress("asking", done, len(jobs))

    progress("asking", 0, len(jobs))
    await asker.open()
    try:
        await asyncio.gather(*(one_after_the_other() for _ in range(connections)))
    finally:
        await asker.close()


# --- the server -----------------------------------------------------------------------


def _word_ids(endpoint: Endpoint) -> tuple[frozenset[int], frozenset[int]]:
    """The ids of the tokens that stand for True and for False.

    Raises:
        BenchmarkError: the server does not tokenize, or its tokenizer has neither word as one
            token.
    """
    with client(endpoint.base_url.rstrip("/").removesuffix("/v1")) as asking:
        try:
            true, false = (
                frozenset(
                    ids[0]
                    for form in forms
                    if len(ids := _tokenized(asking, endpoint.model, form)) == 1
                )
                for forms in (TRUE_FORMS, FALSE_FORMS)
            )
        except openai_package().APIError as error:
            raise BenchmarkError(
                f"the server at {endpoint.base_url} does not tokenize: {brief(error)}"
            ) from None
    if not (true and false):
        raise BenchmarkError(f"{endpoint.model} has no tokens for the words True and False")
    return true, false


def _tokenized(asking: Any, model: str, text: str) -> list[int]:
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    found = asking.post("/tokenize", cast_to=object, body=body)
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return tokens if isinstance(tokens, list) else []


def _flush(endpoint: Endpoint, *, quietly: bool) -> None:
    """Wait until all replies are stored.

    Raises:
        BenchmarkError: the server does not log. Not if ``quietly``: it may be there no more.
    """
    try:
        client(endpoint.base_url).post("/activations/flush", cast_to=object, body={})
    except openai_package().APIError as error:
        if quietly:
            return
        raise BenchmarkError(
            f"the server at {endpoint.base_url} did not confirm that the replies are stored: "
            f"{brief(error)}"
        ) from None


def _unlogged(store: Store, kind: Asks, subjects: Sequence[Subject]) -> int:
    """How many of the replies are not in the store, after some patience."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        follow_ups = FollowUps(store)
        missing = sum(not follow_ups.asked(kind, subject) for subject in subjects)
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_POLL_S)
