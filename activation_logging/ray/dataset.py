"""Answers to the rows of a Ray dataset, with an engine in each of Ray Data's actors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from activation_logging.errors import ClusterError, PromptsError, SettingsError
from activation_logging.extras import require
from activation_logging.generate.prompts import make_line
from activation_logging.generate.run import run_name
from activation_logging.ray.bulk import make_job
from activation_logging.ray.cluster import living
from activation_logging.ray.crew import DEATHS
from activation_logging.ray.needs import need_of, room_for
from activation_logging.ray.process import EngineProcess, Failed, Job
from activation_logging.ray.stores import Kept, answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from ray.data import Dataset

    from activation_logging.generate.prompts import PromptLine

ADDED = ("request_id", "answer", "finish_reason", "error")
"""The columns that a dataset gets, all texts, empty (null) where there is nothing to say."""

_BATCH = 1024

logger = logging.getLogger(f"vllm.{__name__}")


def generate(
    dataset: Dataset,
    *,
    model: str,
    path: str | Path,
    sampling: Mapping[str, Any] | None = None,
    run: str | None = None,
    engines: int | None = None,
    batch_size: int = _BATCH,
    vllm_args: Sequence[str] = (),
) -> Dataset:
    """Answer every row of a dataset, with every answer logged.

    A row is asked unless a store of any node has its answer whole; then it gets that one. So a run
    that broke off goes on where it was. Rows with the same content share one answer: give them
    different tags to have each asked. The plugin's settings come from this program's environment.

    Args:
        dataset: has a column ``prompt`` with texts or ``messages`` with chats, and perhaps ``tags``
            with texts by name, which the entries keep.
        model: what vLLM is to load; a folder must be there on every node.
        path: the folder of the stores, on every node. A node makes a store in it for each engine.
        sampling: fields of vLLM's ``SamplingParams``, the same for every row.
        run: name of the run, under which it is resumed; made of the model and the sampling
            parameters if left out.
        engines: how many; as many as there are GPUs for, or one on each node, if left out.
        batch_size: rows that an engine is given at a time. It answers them all before the next.
        vllm_args: flags as for ``vllm serve``, for the engines.

    Returns:
        The dataset with the columns of :data:`ADDED`: the request's id, for
        ``store.for_request(...)``, the text, why it ended, and instead of these why a row was
        refused. It is computed when it is used, as datasets are.

    Raises:
        SettingsError: logging is off, or an option is invalid.
        ClusterError: no node has room for an engine. While the dataset is computed: an engine
            could not be started, or has died with the same rows three times.
    """
    require("ray", "pyarrow")
    sampling = dict(sampling or {})
    if sampling.get("n", 1) != 1:
        raise SettingsError("sampling: n makes several answers of a row; give 1")
    name = run or run_name(Path("dataset"), model, sampling)
    job = make_job(
        model=model,
        sampling=sampling,
        run=name,
        folder=path,
        engines=engines,
        vllm_args=vllm_args,
    )
    if not ray.is_initialized():
        raise ClusterError("this program is connected to no Ray cluster; call ray.init() first")
    nodes = living()
    need = need_of(vllm_args, nodes)
    room = room_for(need, nodes)
    return dataset.map_batches(
        _Answering,
        fn_constructor_args=[job],
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=engines or room),
        num_cpus=need["CPU"],
        num_gpus=need.get("GPU", 0),
        runtime_env={"env_vars": dict(job.variables.shown)},
    )


class _Answering:
    """What runs in an actor: an engine, and what it makes of a batch."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process = EngineProcess(job)
        self._started = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """The batch with the columns of :data:`ADDED`.

        Raises:
            SettingsError: it has one of these already.
        """
        import pyarrow as pa

        if taken := set(ADDED) & set(table.column_names):
            raise SettingsError(f"the dataset has a column {min(taken)!r} already; rename it")
        lines: list[PromptLine | None] = []
        reasons: dict[int, str] = {}
        for number, row in enumerate(table.to_pylist()):
            try:
                lines.append(make_line(number, _value(row)))
            except PromptsError as error:  # noqa: PERF203 - a bad row is named, the others asked
                reasons[number] = str(error)
                lines.append(None)
        kept, refused = self._answers({line.id: line for line in lines if line is not None})
        found = [None if line is None else kept.get(line.id) for line in lines]
        why = [
            reasons.get(number) or (line and refused.get(line.id))
            for number, line in enumerate(lines)
        ]
        columns = [*([one and one[field] for one in found] for field in range(3)), why]
        for name, column in zip(ADDED, columns, strict=True):
            table = table.append_column(name, pa.array(column, pa.string()))
        return table

    def _answers(self, lines: Mapping[str, PromptLine]) -> tuple[dict[str, Kept], dict[str, str]]:
        """The answers by line, those that are there already included, and reasons of refusals."""
        reasons: list[str] = []
        while len(reasons) < DEATHS:
            if reasons:
                # Before it is looked what is written: the workers of a killed engine still write.
                self._start()
            kept = answers(Path(self._job.folder), self._job.run, lines)
            todo = [line for name, line in lines.items() if name not in kept]
            if not todo:
                return kept, {}
            self._start()
            done = self._process.answer(todo)
            if not isinstance(done, Failed):
                answered, refused = done
                for one in answered:
                    kept[one.line] = Kept(one.request_id, one.text, one.finish_reason)
                names = {line.number: line.id for line in todo}
                return kept, {names[number]: reason for number, reason in refused.items()}
            reasons.append(f"the engine on {done.host} has died: {done.reason}")
            logger.warning(reasons[-1])
            self._process.close()
            self._started = False
        raise ClusterError(f"{len(reasons)} times with the same rows, last {reasons[-1]}")

    def _start(self) -> None:
        """Start the engine if it does not run; not for lines that are all answered.

        Raises:
            ClusterError: it does not start.
        """
        if self._started:
            return
        started = self._process.start()
        if isinstance(started, Failed):
            raise ClusterError(f"no engine on {started.host}: {started.reason}")
        self._started = True


def _value(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a row. A column of objects has each name in each, null where it is not."""
    found = {name: row[name] for name in ("prompt", "messages", "tags") if row.get(name)}
    if "tags" in found:
        found["tags"] = {name: value for name, value in dict(found["tags"]).items() if value}
    if "messages" in found:
        found["messages"] = [
            {name: value for name, value in message.items() if value is not None}
            for message in found["messages"]
        ]
    return found
