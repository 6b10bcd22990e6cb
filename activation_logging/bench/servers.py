"""The servers that are compared, each a process of its own."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import httpx

from activation_logging.errors import SettingsError
from activation_logging.process import free_port, running
from activation_logging.sites import SITES
from activation_logging.store import open_store

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self

Variant = Literal["plain", "off", "logging"]
"""``plain``: vLLM does not load the plugin, as if it were not installed. ``off``: it does, with
``ACTIVATION_LOGGING=0``. ``logging``: as users run it."""


class Contestant(NamedTuple):
    """A kind of server: its variant, and what it logs.

    ``sites`` is as in ``ACTIVATION_LAYERS``, or as in ``ACTIVATION_SITES``; ``tokens`` as in
    ``ACTIVATION_TOKENS``, ``probes`` as in ``ACTIVATION_PROBES``. ``asks``: requests ask for the
    scores of all of them.
    """

    variant: Variant
    sites: str = "last"
    tokens: str = "all"
    probes: str = ""
    asks: bool = False

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """From a variant such as ``off``, or ``logging:8,last``, or ``logging:heads@8,resid@all``.

        Raises:
            SettingsError: there is no such variant, or one that logs nothing was given layers.
        """
        variant, _, sites = text.partition(":")
        if variant not in get_args(Variant) or (sites and variant != "logging"):
            known = ", ".join(get_args(Variant))
            raise SettingsError(
                f"candidate: {text!r} is none of {known}, logging:LAYERS, logging:SITES"
            )
        return cls(variant, sites or "last")  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """What :meth:`parse` takes; with probes, how many."""
        name = self.variant if self.sites == "last" else f"{self.variant}:{self.sites}"
        if not self.probes:
            return name
        return f"{name} {self.probes.count('=')} probes" + (", asked" if self.asks else "")


SERVED_NAME = "bench"
_START_S = 900.0
_FLUSH_S = 120.0

# Several servers share the machine's memory: none may take nearly all, as vLLM would by itself.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class ServerOptions:
    """What all servers are started with."""

    model: str
    vllm_args: tuple[str, ...] = ()
    eager: bool = False


class Server:
    """One vLLM server; a context manager that starts and stops it.

    Args:
        place: number among ``servers`` that share the machine; store and log are named after it.
    """

    def __init__(
        self,
        kind: Contestant,
        options: ServerOptions,
        folder: Path,
        *,
        place: int = 0,
        servers: int = 1,
    ) -> None:
        self.kind = kind
        self._memory_share = _MEMORY_SHARE / servers
        self.store = folder / f"{place}-{kind.variant}.lmdb"
        self.log = folder / f"{place}-{kind.variant}.log"
        self._options = options
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """The command line; the same for every variant."""
        options = self._options
        return [
            *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model),
            *("--served-model-name", SERVED_NAME),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *(["--enforce-eager"] if options.eager else []),
            *self._memory(),
            *options.vllm_args,
        ]

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What makes one variant differ from another."""
        env = {k: v for k, v in inherited.items() if not k.startswith("ACTIVATION_")}
        if self.kind.variant == "plain":
            others = [found.name for found in entry_points(group="vllm.general_plugins")]
            names = inherited.get("VLLM_PLUGINS", ",".join(others)).split(",")
            env["VLLM_PLUGINS"] = ",".join(n for n in names if n != "activation_logging")
        else:
            env["ACTIVATION_LOGGING"] = "1" if self.kind.variant == "logging" else "0"
            named = any(name in self.kind.sites for name in SITES)
            env["ACTIVATION_SITES" if named else "ACTIVATION_LAYERS"] = self.kind.sites
            env["ACTIVATION_TOKENS"] = self.kind.tokens
            env["ACTIVATION_LMDB_PATH"] = str(self.store)
            env["ACTIVATION_PROBES"] = self.kind.probes
        return env

    def __enter__(self) -> Self:
        server = running(
            self.command(),
            url=self.base_url,
            log=self.log,
            env=self.environment(),
            start_s=_START_S,
            name=f"the {self.kind.name} server",
        )
        self._process = self._stack.enter_context(server)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def flush(self) -> None:
        """Wait until everything that the server has logged is in its store."""
        if self.kind.variant != "logging":
            return
        url = f"{self.base_url}/v1/activations/flush"
        httpx.post(url, timeout=_FLUSH_S).raise_for_status()

    def counters(self) -> dict[str, dict[str, Any]]:
        """The store's counters, by what wrote them; empty where nothing is logged."""
        if self.kind.variant != "logging":
            return {}
        with open_store(self.store) as store:
            return {record["role"]: record for record in store.writers().values()}

    def stored_bytes(self) -> int:
        """What the store takes of the disk."""
        status = (self.store / "data.mdb").stat()
        return status.st_blocks * 512

    def _memory(self) -> list[str]:
        flag = "--gpu-memory-utilization"
        given = any(a.replace("_", "-").startswith(flag) for a in self._options.vllm_args)
        return [] if given else [flag, f"{self._memory_share:.2f}"]
