"""The server as a Ray Serve application: vLLM and its log in each replica.

    pip install "ray[serve]"
    serve run deploy.ray_serve:build model=MODEL store=/data/activations.lmdb gpus=1

More words are ``replicas=2`` and ``arguments="--max-model-len 4096"``, flags as for ``vllm serve``.

A replica runs ``activation_logging.server:app`` in its own process, and vLLM's engine beside it.
It is ready when the model is loaded. ``store`` is a path on the disk of the machine that a replica
runs on. It must be absolute, because a replica starts in a folder of Ray's. Replicas on one machine
share a store. ``VLLM_API_KEY`` and ``HF_TOKEN`` reach the replicas if they are set where the
application is started.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

if TYPE_CHECKING:
    from collections.abc import Mapping

GIVEN_ON = ("VLLM_API_KEY", "HF_TOKEN")
"""Variables that are handed on to the replicas."""


def application() -> Any:
    """The server's ASGI application. It is imported in the replica, whose variables it reads."""
    from activation_logging.server import app

    return app


@serve.deployment(max_ongoing_requests=256, graceful_shutdown_timeout_s=120)
@serve.ingress(application)
class Server:
    """One replica; every request goes to the application."""


def build(arguments: Mapping[str, str]) -> serve.Application:
    """The application that ``serve run`` starts; ``arguments`` are the words ``NAME=VALUE``.

    Raises:
        ValueError: the store's path is relative.
    """
    store = Path(arguments["store"])
    if not store.is_absolute():
        raise ValueError(f"store={store} is relative; name a path from the root of each machine")
    variables = {
        "ACTIVATION_MODEL": arguments["model"],
        "ACTIVATION_ALLOWED_MODELS": arguments["model"],
        "ACTIVATION_LMDB_PATH": str(store),
        "ACTIVATION_VLLM_ARGS": arguments.get("arguments", ""),
        **{name: os.environ[name] for name in GIVEN_ON if name in os.environ},
    }
    return Server.options(
        num_replicas=int(arguments.get("replicas", "1")),
        ray_actor_options={
            "num_gpus": float(arguments.get("gpus", "0")),
            "runtime_env": {"env_vars": variables},
        },
    ).bind()
