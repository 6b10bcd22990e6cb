"""The connection to a Ray cluster, its nodes, and what an error of Ray says in one sentence."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from activation_logging.errors import ActivationLoggingError, ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

_DETAIL = re.compile(r"Worker exit detail: (.*)")
_GUESSES = "Some common causes include"
_ANSWER_S = 5.0
_OBJECTS_BYTES = 256 << 20
"""Shared memory of a cluster that is started here. Prompts and scores are small."""


class Node(NamedTuple):
    """A living node, and all resources that it has, whether they are in use or not."""

    id: str
    host: str
    resources: Mapping[str, float]

    def holds(self, need: Mapping[str, float]) -> bool:
        """Whether something with this need could ever run here."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in need.items())


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Be connected to a Ray cluster for as long as the block runs.

    A program that is connected already stays so. Otherwise it is the cluster at ``address``, else
    the one that ``RAY_ADDRESS`` names or that runs on this machine. If there is none, one is
    started on this machine, and ends with the block. What Ray prints meanwhile of nodes that die
    goes to standard error.

    Raises:
        ClusterError: there is no cluster at the address, none could be started, or the program is
            connected to another.
    """
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in {None, "auto", there}:
            raise ClusterError(
                f"this program is connected to the Ray cluster at {there}, not to {address}; leave "
                "the address out, or call ray.shutdown() first"
            )
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    named = address or os.environ.get("RAY_ADDRESS") or "auto"
    if named not in {"auto", "local"}:
        refuse_silent(named)
    if named == "local" or not _join(named, options):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
        try:
            ray.init(address="local", **options)
        except Exception as error:  # noqa: BLE001 - Ray raises no narrower one
            ray.shutdown()
            raise ClusterError(
                f"Ray could not be started on this machine: {brief_reason(error)}"
            ) from None
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ray.shutdown()


def _join(address: str, options: Mapping[str, Any]) -> bool:
    """Connect to a cluster that runs; False where ``auto`` finds none."""
    try:
        ray.init(address=address, **options)
    except ConnectionError:
        if address == "auto":
            return False
        raise _no_cluster(
            address, "something else listens there, or it wants a token: set RAY_AUTH_MODE=token"
        ) from None
    return True


def refuse_silent(address: str) -> None:
    """Raise ClusterError unless something listens there. Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except ValueError:
        raise _no_cluster(address, "an address is HOST:PORT") from None
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None


def _no_cluster(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at {address} ({why}); start one with `ray start --head`, or give "
        "the address that it printed (--ray-address, RAY_ADDRESS)"
    )


def living() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def on_every_node(function: Callable[..., T], *args: Any) -> tuple[list[T], list[str]]:
    """Call a function on every living node.

    Returns:
        What it returns there, and a sentence about each node where it fails.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {}
    for node in living():
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        calls[task.options(scheduling_strategy=there).remote(*args)] = node
    found, problems = [], []
    for call, node in calls.items():
        try:
            found.append(ray.get(call))
        except RayError as error:  # noqa: PERF203 - one node's trouble is not another's
            problems.append(f"{node.host}: {reason_of(error)}")
    return found, problems


def reason_of(error: RayError) -> str:
    """What has happened, in a sentence: Ray's own texts go on for many lines."""
    if isinstance(error, RayTaskError):
        return brief_reason(error.cause)
    if isinstance(error, ActorUnavailableError):
        return "its process or node cannot be reached any more"
    # The first line says that it happened, those with a tab to what, and the next one why.
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("\t")]
    lines = [line for line in lines if line]
    why = lines[min(1, len(lines) - 1)] if lines else type(error).__name__
    if (detail := _DETAIL.search(why)) is None:
        return why
    if _GUESSES in detail[1]:
        return "its process died without a word, as when the kernel kills it for want of memory"
    return f"its process died: {detail[1]}"


def brief_reason(error: BaseException) -> str:
    """An error in a line; of those that are not this package's own, also the type."""
    text = " ".join(str(error).split())
    if isinstance(error, ActivationLoggingError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
