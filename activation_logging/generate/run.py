"""A run: which lines have an answer already, and the answers to the others."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.generate.engine import Engine, checked_settings
from activation_logging.generate.prompts import LINE_TAG, RUN_TAG, read_prompts
from activation_logging.progress import Progress, silent
from activation_logging.records import ANSWERED
from activation_logging.store import Store, open_store
from activation_logging.store.query import select

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.generate.prompts import PromptLine
    from activation_logging.store import Entry

WHOLE = ("complete", "elsewhere", "unkept")
"""The statuses of answers that need not be asked for again."""


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


def run_name(path: Path, model: str, sampling: Mapping[str, Any]) -> str:
    """The name that a run has by itself: another model or sampling makes another run."""
    content = json.dumps([Path(model).name, dict(sampling)], sort_keys=True)
    return f"{path.stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def answered_lines(store: Store, run: str) -> set[str]:
    """Ids of the lines of a run whose answers the store holds whole, see :func:`is_whole`."""
    return {
        entry.tags[LINE_TAG]
        for status in WHOLE
        for entry in select(store, tags={RUN_TAG: run}, status=status)
        if is_whole(entry) and LINE_TAG in entry.tags
    }


def is_whole(entry: Entry) -> bool:
    """Whether an answer came to its end, with its rows unless they were not to be kept."""
    return entry.finish_reason in ANSWERED and entry.status in WHOLE


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
        path: the prompts, see :func:`.read_prompts`.
        model: what vLLM is to load.
        sampling: fields of vLLM's ``SamplingParams``, the same for every line. ``extra_args`` may
            hold ``activation_stop``.
        run: name of the run, under which it is resumed; see :func:`run_name`.
        vllm_args: flags as for ``vllm serve``, for the engine.
        progress: told when the engine starts, and how many prompts have an answer.

    Raises:
        PromptsError: the file has invalid lines; none was asked.
        SettingsError: logging is off, a flag or sampling parameter is invalid, or there is no such
            model.
    """
    settings = checked_settings(sampling)
    lines = read_prompts(path)
    outcome = Outcome(run or run_name(path, model, sampling))
    with open_store(settings.store_path(), writable=True) as store:
        done = answered_lines(store, outcome.run)
        todo = [line for line in lines if line.id not in done]
        outcome.asked, outcome.resumed = len(lines), len(lines) - len(todo)
        if todo:
            there = f"; {outcome.resumed} answers are already in the store"
            progress("starting the engine" + there * bool(outcome.resumed), 0, len(todo))
            engine = Engine(model, sampling, outcome.run, vllm_args)
            try:
                _answer(engine, todo, outcome, progress)
            finally:
                engine.close()
            done = answered_lines(store, outcome.run)
            outcome.missing = sum(
                line.id not in done and line.number not in outcome.refused for line in todo
            )
    return outcome


def _answer(
    engine: Engine, lines: Sequence[PromptLine], outcome: Outcome, progress: Progress
) -> None:
    """Answer all lines; those that the engine refuses are noted, and left out."""
    waiting = iter(lines)
    started = time.monotonic()
    while True:
        outcome.refused.update(engine.fill(waiting))
        if not engine.in_flight:
            return
        for answer in engine.step():
            outcome.answered += 1
            outcome.tokens += answer.tokens
            outcome.prompt_tokens += answer.prompt_tokens
            outcome.seconds = time.monotonic() - started
            rate = f"{outcome.tokens_per_s:.0f} tokens/s"
            progress(rate, outcome.answered, len(lines))
