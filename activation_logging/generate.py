"""Answer a file of prompts with vLLM's offline engine, every answer logged; no server needed.

A run can be interrupted and started again. Each line of the file has an id made of its content,
and the request carries it as a tag. A line whose answer is already in the store is not asked again.
Lines may be added, removed or moved between two starts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.errors import (
    PromptsError,
    RequestOptionError,
    SettingsError,
)
from activation_logging.probe_list import parse_probes
from activation_logging.progress import Progress, silent
from activation_logging.records import ANSWERED
from activation_logging.settings import RequestOptions, Settings
from activation_logging.store import Store, open_store
from activation_logging.store.query import select
from activation_logging.vllm_plugin.gate import check_plugin_is_loaded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm import LLM, SamplingParams

RUN_TAG = "generate_run"
LINE_TAG = "generate_line"

_FIELDS = {"prompt", "messages", "tags"}
_SHOWN_ERRORS = 10
_WRITE_S = 30.0
"""What vLLM's processes may take to write and to end."""


@dataclass(frozen=True)
class PromptLine:
    """One line of the file: a text, or the messages of a chat.

    ``id`` depends on the line's content alone; the n-th of several equal lines gets ``#n``.
    """

    number: int
    id: str
    tags: Mapping[str, str]
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


@dataclass
class Outcome:
    """How a run went. ``refused`` are lines that the engine would not take, with the reason."""

    run: str
    asked: int = 0
    answered: int = 0
    resumed: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    refused: dict[int, str] = field(default_factory=dict)
    missing: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens per second, without the time that the engine took to start."""
        return self.tokens / self.seconds if self.seconds else 0.0


def read_prompts(path: Path) -> list[PromptLine]:
    """Read JSON lines, each an object with ``prompt`` or ``messages``, and perhaps ``tags``.

    Raises:
        PromptsError: invalid lines, named by number; or there is no such file.
    """
    lines: list[PromptLine] = []
    problems: list[str] = []
    seen: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    lines.append(_parse(number, text, seen))
                except PromptsError as error:
                    problems.append(f"line {number}: {error}")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise PromptsError(f"{path} cannot be read: {error.strerror}") from None
    if problems:
        more = len(problems) - _SHOWN_ERRORS
        shown = problems[:_SHOWN_ERRORS] + ([f"and {more} more"] if more > 0 else [])
        raise PromptsError(f"{path} has invalid lines:\n  " + "\n  ".join(shown))
    if not lines:
        raise PromptsError(f"{path} holds no prompts")
    return lines


def _parse(number: int, text: str, seen: Counter[str]) -> PromptLine:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise PromptsError("not a JSON object")
    if unknown := value.keys() - _FIELDS:
        raise PromptsError(f"unknown field {min(unknown)!r}; known are messages, prompt, tags")
    prompt, messages = value.get("prompt"), value.get("messages")
    if (prompt is None) == (messages is None):
        raise PromptsError("needs either 'prompt' or 'messages'")
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise PromptsError("'prompt' is not a text")
    if messages is not None:
        _check_messages(messages)
    tags = value.get("tags") or {}
    if isinstance(tags, dict) and (taken := tags.keys() & {RUN_TAG, LINE_TAG}):
        raise PromptsError(f"the tag {min(taken)!r} is set by this command")
    try:
        RequestOptions.parse({"activation_tags": tags}, settings=Settings())
    except RequestOptionError as error:
        raise PromptsError(str(error).replace("activation_tags", "'tags'")) from None
    content = json.dumps([prompt, messages, tags], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:20]
    seen[digest] += 1
    line_id = digest if seen[digest] == 1 else f"{digest}#{seen[digest]}"
    return PromptLine(number, line_id, tags, prompt, messages)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise PromptsError("'messages' is not a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PromptsError("a message is not an object with a 'role'")
        # vLLM's chat takes a turn without one: an assistant's that only called tools.
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise PromptsError("the 'content' of a message is neither a text nor a list of parts")


def run_name(path: Path, model: str, sampling: Mapping[str, Any]) -> str:
    """The name that a run has by itself: another model or sampling makes another run."""
    content = json.dumps([Path(model).name, dict(sampling)], sort_keys=True)
    return f"{path.stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def answered_lines(store: Store, run: str) -> set[str]:
    """Ids of the lines of a run whose answers the store holds whole, activations included."""
    return {
        entry.tags[LINE_TAG]
        for status in ("complete", "elsewhere")
        for entry in select(store, tags={RUN_TAG: run}, status=status)
        if entry.finish_reason in ANSWERED
    }


def generate(
    path: Path,
    *,
    model: str,
    sampling: Mapping[str, Any],
    run: str | None = None,
    vllm_args: Sequence[str] = (),
    progress: Progress = silent,
) -> Outcome:
    """Answer every line that has no answer yet; the plugin's settings come from the environment.

    Args:
        path: the prompts, see :func:`read_prompts`.
        model: what vLLM is to load.
        sampling: fields of vLLM's ``SamplingParams``, the same for every line. ``extra_args`` may
            hold ``activation_stop``.
        run: name of the run, under which it is resumed; see :func:`run_name`.
        vllm_args: flags as for ``vllm serve``, for the engine.
        progress: told when the engine starts, and how many prompts have an answer.

    Raises:
        PromptsError: the file has invalid lines; none was asked.
        SettingsError: logging is off, or a flag or sampling parameter is invalid.
    """
    settings = Settings.from_env()
    if not settings.enabled:
        raise SettingsError("ACTIVATION_LOGGING=0 is set: nothing would be logged; unset it")
    check_plugin_is_loaded()
    _check_scores(sampling, settings)
    lines = read_prompts(path)
    outcome = Outcome(run or run_name(path, model, sampling))
    with open_store(settings.store_path(), writable=True) as store:
        done = answered_lines(store, outcome.run)
        todo = [line for line in lines if line.id not in done]
        outcome.asked, outcome.resumed = len(lines), len(lines) - len(todo)
        if todo:
            there = f"; {outcome.resumed} answers are already in the store"
            progress("starting the engine" + there * bool(outcome.resumed), 0, len(todo))
            engine = _Engine(model, sampling, vllm_args, outcome)
            try:
                engine.answer(todo, progress)
            finally:
                engine.close()
            done = answered_lines(store, outcome.run)
            outcome.missing = sum(
                line.id not in done and line.number not in outcome.refused for line in todo
            )
    return outcome


class _Engine:
    """vLLM's offline engine, kept busy: there are always more requests in it than it can run."""

    def __init__(
        self, model: str, sampling: Mapping[str, Any], vllm_args: Sequence[str], outcome: Outcome
    ) -> None:
        self._outcome = outcome
        self._sampling = sampling
        _check_sampling(sampling)
        self._llm = _load(model, vllm_args)
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        self._in_flight = 2 * int(scheduler.max_num_seqs)

    def answer(self, lines: Sequence[PromptLine], progress: Progress) -> None:
        """Answer all lines; those that the engine refuses are noted, and left out."""
        engine, outcome = self._llm.llm_engine, self._outcome
        waiting = iter(lines)
        started = time.monotonic()
        while self._fill(waiting):
            for output in engine.step():
                if not output.finished:
                    continue
                outcome.answered += 1
                outcome.tokens += sum(len(answer.token_ids) for answer in output.outputs)
                outcome.prompt_tokens += len(output.prompt_token_ids or ())
                outcome.seconds = time.monotonic() - started
                rate = f"{outcome.tokens_per_s:.0f} tokens/s"
                progress(rate, outcome.answered, len(lines))

    def close(self) -> None:
        """End vLLM's processes now; a program's exit may wait for them forever."""
        self._llm.llm_engine.engine_core.shutdown(timeout=_WRITE_S)

    def _fill(self, waiting: Iterator[PromptLine]) -> bool:
        """Bring the engine up to its number of requests; False when there is nothing left."""
        from vllm.exceptions import VLLMClientError

        engine = self._llm.llm_engine
        while engine.get_num_unfinished_requests() < self._in_flight:
            line = next(waiting, None)
            if line is None:
                break
            try:
                self._ask(line)
            except (VLLMClientError, ValueError) as error:
                # A prompt that is longer than the model's context, or a broken chat.
                self._outcome.refused[line.number] = " ".join(str(error).split())
        return bool(engine.has_unfinished_requests())

    def _ask(self, line: PromptLine) -> None:
        tags = {**line.tags, RUN_TAG: self._outcome.run, LINE_TAG: line.id}
        extra = {**(self._sampling.get("extra_args") or {}), "activation_tags": tags}
        params = _sampling_params({**self._sampling, "extra_args": extra})
        if line.messages is None:
            self._llm.enqueue(line.prompt, params, use_tqdm=False)
        else:
            self._llm.enqueue_chat(list(line.messages), params, use_tqdm=False)


def _sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(**values)


def _check_scores(sampling: Mapping[str, Any], settings: Settings) -> None:
    """Refuse a stop on a probe that is not served, before the engine starts."""
    options = RequestOptions.parse(sampling.get("extra_args"), settings=settings)
    shown = [probe.name for probe in parse_probes(settings.probes) if not probe.shadow]
    options.scores.check(shown)


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    try:
        _sampling_params(sampling)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"sampling: {error}") from None


def _load(model: str, vllm_args: Sequence[str]) -> LLM:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="activation-logging generate"))
    args = parser.parse_args(["--model", model, *vllm_args])
    return LLM.from_engine_args(EngineArgs.from_cli_args(args))
