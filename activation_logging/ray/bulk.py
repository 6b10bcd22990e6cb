"""Answer a file of prompts on a Ray cluster: engines on its nodes, each with its own store."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.errors import SettingsError
from activation_logging.generate.engine import checked_settings
from activation_logging.generate.prompts import read_prompts
from activation_logging.generate.run import Outcome, run_name
from activation_logging.locations import expanded
from activation_logging.progress import Progress, silent
from activation_logging.ray.cluster import connected, living
from activation_logging.ray.crew import Crew
from activation_logging.ray.needs import need_of, room_for
from activation_logging.ray.process import Job
from activation_logging.ray.stores import answered, checked_folder
from activation_logging.ray.variables import Variables
from activation_logging.settings import DEFAULT_LMDB_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.generate.prompts import PromptLine
    from activation_logging.ray.process import Turn

DEFAULT_FOLDER = str(Path(DEFAULT_LMDB_PATH).parent)


@dataclass
class BulkOutcome(Outcome):
    """How a run on a cluster went.

    ``stores`` are ``HOST:PATH``; ``failures`` say which engines died, and which stores and nodes
    could not be read.
    """

    engines: int = 0
    stores: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def answer_file(
    path: Path,
    *,
    model: str,
    sampling: Mapping[str, Any],
    folder: str | Path = DEFAULT_FOLDER,
    run: str | None = None,
    engines: int | None = None,
    address: str | None = None,
    vllm_args: Sequence[str] = (),
    progress: Progress = silent,
) -> BulkOutcome:
    """Answer every line that has no answer yet in any store of any node.

    Args:
        path: the prompts, see :func:`.read_prompts`.
        model: what vLLM is to load; a folder must be there on every node.
        sampling: as for :func:`activation_logging.generate.generate`.
        folder: of the stores, on every node. A node makes a store in it for each of its engines.
        run: name of the run, under which it is resumed; see :func:`.run_name`.
        engines: how many; as many as there are GPUs for, or one on each node, if left out.
        address: of the cluster, see :func:`.connected`.
        vllm_args: flags as for ``vllm serve``, for the engines.
        progress: told how many engines there are, and how many prompts have an answer.

    Raises:
        PromptsError: the file has invalid lines; none was asked.
        SettingsError: logging is off, or an option is invalid.
        ClusterError: there is no cluster, or no engine works on it; the text says why.
    """
    job = make_job(
        model=model,
        sampling=sampling,
        run=run or run_name(path, model, sampling),
        folder=folder,
        engines=engines,
        vllm_args=vllm_args,
    )
    lines = read_prompts(path)
    outcome = BulkOutcome(job.run, asked=len(lines))
    progress("connecting to Ray", 0, len(lines))
    with connected(address):
        nodes = living()
        need = need_of(vllm_args, nodes)
        outcome.engines = engines or room_for(need, nodes)
        room_for(need, nodes)
        found = answered(Path(job.folder), job.run)
        todo = [line for line in lines if line.id not in found.lines]
        outcome.resumed = len(lines) - len(todo)
        if todo:
            _answer(job, need, todo, outcome, progress)
            found = answered(Path(job.folder), job.run)
        outcome.stores = found.stores
        outcome.failures += found.problems
        outcome.answered = sum(line.id in found.lines for line in todo)
        outcome.missing = len(todo) - outcome.answered - len(outcome.refused)
    return outcome


def make_job(
    *,
    model: str,
    sampling: Mapping[str, Any],
    run: str,
    folder: str | Path,
    engines: int | None,
    vllm_args: Sequence[str],
) -> Job:
    """What the engines of a run are started with, checked as far as that is possible here.

    Raises:
        SettingsError: logging is off, or an option is invalid.
    """
    if engines is not None and engines < 1:
        raise SettingsError(f"engines: {engines} answer nothing; give 1 or more")
    checked_settings(sampling)
    if expanded(model).is_dir():
        model = str(expanded(model).absolute())
    return Job(
        model=model,
        sampling=sampling,
        run=run,
        folder=str(checked_folder(folder)),
        vllm_args=tuple(vllm_args),
        variables=Variables.of(os.environ),
    )


def _answer(
    job: Job,
    need: Mapping[str, float],
    todo: Sequence[PromptLine],
    outcome: BulkOutcome,
    progress: Progress,
) -> None:
    crew = Crew(job, outcome.engines, need, lambda: answered(Path(job.folder), job.run).lines)
    done: set[str] = set()

    def on_turn(turn: Turn) -> None:
        done.update(turn.answered)
        outcome.refused.update(turn.refused)
        outcome.tokens += turn.tokens
        outcome.prompt_tokens += turn.prompt_tokens
        outcome.seconds = time.monotonic() - crew.started
        engines = f"{crew.ready()} of {outcome.engines} engines"
        died = f", {len(crew.failures)} failures" if crew.failures else ""
        rate = f"{outcome.tokens_per_s:.0f} tokens/s, {engines}{died}"
        progress(rate, len(done) + len(outcome.refused), len(todo))

    there = f"; {outcome.resumed} answers are already there" if outcome.resumed else ""
    progress(f"starting {outcome.engines} engines{there}", 0, len(todo))
    try:
        crew.answer(todo, on_turn)
    finally:
        crew.close()
        outcome.failures = crew.failures
