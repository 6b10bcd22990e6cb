"""The environment variables that an engine must have, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from activation_logging.probe_list import absolute, parse_probes

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIXES = ("ACTIVATION_", "VLLM_", "HF_", "OMP_", "KMP_")
_SECRET = ("_TOKEN", "_KEY")
_OWN = {
    # Each engine has a store of its own, and each node its own folders and addresses.
    *("ACTIVATION_LMDB_PATH", "HF_HOME", "HF_HUB_CACHE", "VLLM_CACHE_ROOT", "VLLM_HOST_IP"),
    *("VLLM_API_KEY", "VLLM_LOGGING_STREAM"),
}


@dataclass(frozen=True)
class Variables:
    """What is sent to engines.

    ``shown`` goes through Ray's runtime environment, which Ray shows to everybody who may look at
    the cluster. ``secret`` goes to the engine's process alone.
    """

    shown: Mapping[str, str]
    secret: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Variables:
        """Those of a process that count: of this package, of vLLM, the hub and threads."""
        found = {
            name: value
            for name, value in environ.items()
            if name.startswith(_PREFIXES) and name not in _OWN
        }
        if probes := found.get("ACTIVATION_PROBES"):
            found["ACTIVATION_PROBES"] = absolute(parse_probes(probes))
        secret = {name: found.pop(name) for name in list(found) if name.endswith(_SECRET)}
        return cls(found, secret)

    def lost(self, environ: Mapping[str, str]) -> str | None:
        """The name of one that has not arrived, or with another value."""
        return next(
            (name for name, value in self.shown.items() if environ.get(name) != value), None
        )
