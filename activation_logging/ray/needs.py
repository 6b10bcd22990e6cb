"""What an engine needs of a node, and how many of them a cluster has room for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from activation_logging.errors import ClusterError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from activation_logging.ray.cluster import Node

Need = dict[str, float]


def need_of(vllm_args: Sequence[str], nodes: Sequence[Node]) -> Need:
    """The resources of one engine: its GPUs, or a part of a node where no node has any.

    Args:
        vllm_args: flags as for ``vllm serve``; those of tensor and pipeline parallelism count.
        nodes: of the cluster.

    Raises:
        SettingsError: one of these flags is no number.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tensor-parallel-size", "-tp", dest="tensor", default="1")
    parser.add_argument("--pipeline-parallel-size", "-pp", dest="pipeline", default="1")
    given, _ = parser.parse_known_args([_dashes(word) for word in vllm_args])
    try:
        gpus = int(given.tensor) * int(given.pipeline)
    except ValueError:
        raise SettingsError(
            f"--tensor-parallel-size {given.tensor} and --pipeline-parallel-size {given.pipeline} "
            "must be numbers"
        ) from None
    with_gpus = any(node.resources.get("GPU") for node in nodes)
    return {"CPU": 1.0, **({"GPU": float(gpus)} if with_gpus else {})}


def room_for(need: Mapping[str, float], nodes: Sequence[Node]) -> int:
    """How many engines: as many as the GPUs allow, else one on each node.

    Raises:
        ClusterError: no node is large enough.
    """
    fitting = [node for node in nodes if node.holds(need)]
    if not fitting:
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
        there = "; ".join(
            f"{node.host}: " + ", ".join(f"{node.resources.get(name, 0):g} {name}" for name in need)
            for node in nodes
        )
        raise ClusterError(f"no node has room for an engine, which needs {wanted} ({there})")
    if "GPU" not in need:
        return len(fitting)
    return sum(int(node.resources["GPU"] // need["GPU"]) for node in fitting)


def _dashes(word: str) -> str:
    """A flag as vLLM reads it: with dashes."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word
