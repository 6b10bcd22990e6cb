"""Labels from Inspect while it runs: those of any task that asks a server that logs.

Inspect loads this module by the entry point ``inspect_ai``. Each sample that has been scored labels
the entry of its answer, by the answer's id. What is not in the store yet is tried again with the
samples that follow, and at the end of the task. Entries are reached through the store at
``ACTIVATION_LMDB_PATH`` if it is on this machine, otherwise through the server that the model is
asked at. Where there is neither, nothing happens. ``ACTIVATION_LOGGING=0`` turns it off.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import anyio.to_thread
from inspect_ai.hooks import Hooks, RunEnd, SampleEnd, TaskEnd, TaskStart, hooks
from inspect_ai.log._samples import sample_active
from inspect_ai.model import get_model

from activation_logging.benchmarks.elsewhere.inspect_log import GRADES, marks_of
from activation_logging.benchmarks.elsewhere.joining import NotJoinedError
from activation_logging.benchmarks.elsewhere.labelling import Labelling, Outcome
from activation_logging.benchmarks.elsewhere.marks import Mark, Problem
from activation_logging.benchmarks.elsewhere.values import RIGHT_OR_WRONG, Values
from activation_logging.benchmarks.entries import Labels, ServerLabels, StoreLabels
from activation_logging.errors import ActivationLoggingError, BenchmarkError, SettingsError
from activation_logging.settings import Settings, given_lmdb_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inspect_ai.log import EvalSample, EvalSpec
    from inspect_ai.model import Model

WAIT_S = 10.0
"""How long the end of a task waits for entries that are not stored yet."""
_POLL_S = 0.25
_LOG = logging.getLogger(__name__)
_labelled_otherwise: ContextVar[bool] = ContextVar("labelled_otherwise", default=False)


@contextmanager
def labelled_otherwise() -> Iterator[None]:
    """Within this block who runs a task labels its answers: the hook does not."""
    token = _labelled_otherwise.set(True)
    try:
        yield
    finally:
        _labelled_otherwise.reset(token)


class _Task:
    """The labels of one task."""

    def __init__(self, spec: EvalSpec, labels: Labels) -> None:
        self._spec = spec
        self._labels = labels
        values = Values((), {**RIGHT_OR_WRONG, **GRADES})
        self._work = Labelling(labels, values, scored=True)
        self._waiting: list[Mark] = []
        self._lock = threading.Lock()

    def add(self, sample: EvalSample, log: str | None) -> None:
        """Label the answer of a sample, and those of earlier ones that were not stored yet."""
        with self._lock:
            for found in marks_of(sample, self._spec, log=log):
                self._work.outcome.marks += 1
                if isinstance(found, Problem):
                    self._work.note(found)
                else:
                    self._waiting.append(found)
            self._try()

    def _try(self) -> list[Problem]:
        """Label what can be labelled; the reasons for what is left."""
        tried = [(mark, self._problem(mark)) for mark in self._waiting]
        self._waiting = [mark for mark, problem in tried if problem is not None]
        self._work.write()
        return [problem for _, problem in tried if problem is not None]

    def _problem(self, mark: Mark) -> Problem | None:
        try:
            self._work.label(mark)
        except NotJoinedError as error:
            return Problem(mark.place, str(error), mark.request_id)
        return None

    def end(self) -> Outcome:
        """Wait for what is left, and note what never came."""
        with self._lock:
            self._labels.flush()
            deadline = time.monotonic() + WAIT_S
            while (left := self._try()) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            for problem in left:
                self._work.note(problem)
            return self._work.outcome


@hooks("labels", "Labels the answers that activation-logging has logged.")
class LabelHook(Hooks):
    """Labels the entries of every sample's answer."""

    def __init__(self) -> None:
        self._specs: dict[str, EvalSpec] = {}
        self._tasks: dict[str, _Task | None] = {}
        self._lock = threading.Lock()
        self._enabled: bool | None = None

    def enabled(self) -> bool:
        if self._enabled is None:
            try:
                self._enabled = Settings.from_env().enabled
            except SettingsError as error:
                _LOG.warning("answers are not labelled: %s", error)
                self._enabled = False
        return self._enabled and not _labelled_otherwise.get()

    async def on_task_start(self, data: TaskStart) -> None:
        self._specs[data.eval_id] = data.spec

    async def on_sample_end(self, data: SampleEnd) -> None:
        if data.sample.scores:
            model = get_model()  # the one that the task asks
            # Nothing that Inspect hands to a hook says which file it writes to.
            active = sample_active()
            log = None if active is None else PurePath(active.log_location).name
            await anyio.to_thread.run_sync(self._add, data.eval_id, data.sample, model, log)

    async def on_task_end(self, data: TaskEnd) -> None:
        await anyio.to_thread.run_sync(self._end, data.eval_id)

    async def on_run_end(self, data: RunEnd) -> None:  # noqa: ARG002 - Inspect's signature
        for eval_id in list(self._specs):  # of tasks that were cancelled
            await anyio.to_thread.run_sync(self._end, eval_id)

    def _add(self, eval_id: str, sample: EvalSample, model: Model, log: str | None) -> None:
        with self._lock:
            if eval_id not in self._tasks:
                self._tasks[eval_id] = _begin(self._specs[eval_id], model)
            task = self._tasks[eval_id]
        if task is None:
            return
        try:
            task.add(sample, log)
        except ActivationLoggingError as error:
            _LOG.warning("no more answers of this task are labelled: %s", error)
            self._tasks[eval_id] = None

    def _end(self, eval_id: str) -> None:
        self._specs.pop(eval_id, None)
        task = self._tasks.pop(eval_id, None)
        if task is None:
            return
        try:
            outcome = task.end()
        except ActivationLoggingError as error:
            _LOG.warning("not every answer was labelled: %s", error)
            return
        _LOG.info("%d answers labelled in %s", outcome.written, outcome.where)
        if problems := outcome.problems:
            place, reason, _ = problems[0]
            _LOG.warning(
                "%d of %d scores labelled no answer in %s, the first of %s: %s",
                *(len(problems), outcome.marks, outcome.where, place, reason),
            )


def _begin(spec: EvalSpec, model: Model) -> _Task | None:
    """The labels of a task, if there is anything to label."""
    try:
        return _Task(spec, _reach(model))
    except ActivationLoggingError as error:
        _LOG.info("answers are not labelled: %s", error)
        return None


def _reach(model: Model) -> Labels:
    """The store that the environment names, or the routes of the server that the model is at.

    Raises:
        BenchmarkError, StoreError: there is neither.
    """
    path = given_lmdb_path()
    if path is not None and Path(path).exists():
        return StoreLabels(Path(path))
    base_url = getattr(model.api, "base_url", None)
    if not isinstance(base_url, str):
        raise BenchmarkError("ACTIVATION_LMDB_PATH names no store, and the model has no address")
    return ServerLabels(base_url, key=getattr(model.api, "api_key", None))
