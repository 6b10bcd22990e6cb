"""The store of a worker, as it tells of it to front ends, which may write to another."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.errors import UnsupportedEngineError
from activation_logging.store.elsewhere import about, find_captures
from activation_logging.store.engine.liveness import boot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.store import StoreWriter
    from activation_logging.vllm_plugin.captures import Captures
    from activation_logging.vllm_plugin.collector import RowCollector
    from activation_logging.vllm_plugin.hosts import Located, Met


def check_variables() -> None:
    """Refuse a worker whose environment lacks what its server set.

    The process that makes an engine's configuration sets the path of the store, always.

    Raises:
        UnsupportedEngineError: the variable has not reached this process.
    """
    path = os.environ.get("ACTIVATION_LMDB_PATH", "")
    if not Path(path).is_absolute():
        raise UnsupportedEngineError(
            f"the ACTIVATION_* variables of the server did not reach its worker on host "
            f"{socket.gethostname()}: with Ray, take them out of ray_non_carry_over_env_vars.json, "
            "or give them with ray.init(runtime_env={'env_vars': ...}), the path of the store as "
            "an absolute one"
        )


class WorkerStore:
    """The store that a worker writes to.

    Args:
        writer: writes to it.
        captures: makes what is written.
        collector: knows the requests.
    """

    def __init__(self, writer: StoreWriter, captures: Captures, collector: RowCollector) -> None:
        self._writer = writer
        self._captures = captures
        self._collector = collector
        self._where: str | None = None
        """What front ends call it; None if it is theirs, or none has met this worker."""

    def meet(self, said: Met, home: str, marker: str) -> Met:
        """What the worker says of itself, with what is to be said of its store.

        Args:
            said: what is to be said otherwise.
            home: ``HOST:PATH`` of the front end's store.
            marker: name of a file in that folder.
        """
        shared = (self._writer.path / marker).exists()
        self._captures.entry_in = None if shared else home
        met = replace(
            said,
            path=str(self._writer.path),
            boot=boot(),
            shared=shared,
            ceiling=self._captures.settings.ceiling is not None,
            rows=about(self._captures.empty("")),
        )
        self._where = None if shared else met.where
        return met

    def locate(self, names: Sequence[str], unseen: Sequence[str]) -> Located:
        """What this store has of some requests, and which the worker knows nothing of."""
        found = find_captures(self._writer.path, unseen if self._where is None else names)
        unknown = [name for name in self._collector.unknown(unseen) if name not in found]
        return self._where, {} if self._where is None else found, unknown
