"""A sweep on a Ray cluster: a task for each site and position, which reads nothing else."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError

from activation_logging.dataset.features import read_blocks
from activation_logging.dataset.layers import Source
from activation_logging.detectors.sweep import Cell
from activation_logging.errors import ActivationLoggingError, ClusterError
from activation_logging.extras import require
from activation_logging.ray.cluster import connected, living, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.detectors.sweep import Scores, Task
    from activation_logging.progress import Progress

_COPIES = 4
"""Of the states of a place: as read, of a training side, the same standardised, and room."""


@dataclass(frozen=True)
class fit_on_ray:  # noqa: N801 - it stands where a function may stand, and has an address
    """Fit a sweep on a Ray cluster: ``run_study(store, fit=fit_on_ray())``.

    The scores equal those of one machine to the last digit. Every node must reach the store under
    the same path.

    Args:
        address: of the cluster, see :func:`.connected`.

    Raises:
        ClusterError: there is no cluster, or a node cannot read the store or has died too often.
        DatasetError: a state is not finite; the message says where.
    """

    address: str | None = None

    def __call__(
        self,
        task: Task,
        layers: Sequence[int | str],
        positions: Sequence[str | int],
        progress: Progress,
    ) -> Mapping[Cell, Scores]:
        """See :func:`.fit_here`."""
        progress("connecting to Ray", 0, len(layers) * len(positions))
        with connected(self.address):
            return _fit_all(task, layers, positions, progress)


def _fit_all(
    task: Task,
    layers: Sequence[int | str],
    positions: Sequence[str | int],
    progress: Progress,
) -> Mapping[Cell, Scores]:
    cells = [Cell(layer, position) for layer in layers for position in positions]
    shared = ray.put(task)
    remote = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_fit_part)
    room = max(node.resources.get("memory", 0.0) for node in living())
    found: dict[Cell, Scores] = {}
    running = []
    for part in _parts(layers):
        width = max(map(task.examples.width, part))
        memory = min(room, _COPIES * 4.0 * len(task.examples) * width * len(part))
        sized = remote.options(memory=int(memory))
        running += [sized.remote([shared], part, position) for position in positions]
    progress("fitting probes", 0, len(cells))
    try:
        while running:
            (call,), running = ray.wait(running, num_returns=1)
            found.update(ray.get(call))
            progress("fitting probes", len(found), len(cells))
    except RayError as error:
        for call in running:
            ray.cancel(call, force=True)
        raise _in_one_sentence(error) from None
    # In the order of one machine, on which the choice between equal places depends.
    return {cell: found[cell] for cell in cells}


def _parts(layers: Sequence[int | str]) -> Iterator[list[int | str]]:
    """The heads of one site together, which are read together; each layer by itself."""
    for _, part in groupby(layers, key=lambda layer: Source.labelled(layer).site):
        yield list(part)


def _fit_part(
    shared: list[Any], layers: Sequence[int | str], position: str | int
) -> dict[Cell, Scores]:
    """What runs on a worker: one site at one position.

    Raises:
        ClusterError: the store is not there.
    """
    require("detect", "sklearn")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    try:
        # Unpickling opens the store. In a list the reference arrives as it is.
        task: Task = ray.get(shared[0])
    except RaySystemError as error:
        why = str(error).partition("\n")[0].removeprefix("System error: ")
        host = socket.gethostname()
        raise ClusterError(f"{host} cannot read the store, which every node must: {why}") from None
    with threadpool_limits(1):
        return {
            Cell(block.layer, position): task.fit(block.X[:, 0], workers=1)
            for block in read_blocks(task.examples, layers, [position])
        }


def _in_one_sentence(error: RayError) -> ActivationLoggingError:
    if isinstance(error, RayTaskError) and isinstance(error.cause, ActivationLoggingError):
        return error.cause
    return ClusterError(f"a part of the sweep cannot be fitted: {reason_of(error)}")
