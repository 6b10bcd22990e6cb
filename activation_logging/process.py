"""Server processes: start one, wait until it is healthy, and stop it with all that it started."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from activation_logging.errors import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

STOP_S = 60.0
"""How long a server may take to stop by itself, in seconds."""
_POLL_S = 0.5
_PROBE_S = 5.0
_LOG_LINES = 40
_PORTS = range(20_000, 32_768)
"""Below those that Linux gives to connections, above those of Ray's workers."""

# Not a session of its own where that can be helped: Linux schedules by session, and on two cores
# streams stood still for seconds (docs/architecture.md).
_OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)


@contextmanager
def running(
    command: Sequence[str],
    *,
    url: str,
    log: Path,
    env: Mapping[str, str],
    start_s: float,
    stop_s: float = STOP_S,
    kv_cache_gib: int = 1,
    name: str = "the server",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for as long as the block runs; yields its process once it is healthy.

    Args:
        command: its command line. The process leads a group of its own.
        url: its root, such as ``http://127.0.0.1:8000``; ``/health`` is asked below it.
        log: the file that its output replaces.
        env: its whole environment.
        start_s: how long it may take to become healthy, in seconds.
        stop_s: how long it may take to stop by itself, in seconds.
        kv_cache_gib: memory for vLLM's KV cache on a CPU, unless ``env`` says how much. By itself
            vLLM reserves nearly all of a machine's memory.
        name: what errors call it.

    Raises:
        ServerFailed: it exited before it was healthy, or took too long. The text has its log's
            last lines.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib), **env},
            **_OWN_GROUP,
        )
    try:
        _wait_until_healthy(process, url, log, start_s, name)
        yield process
    finally:
        stop(process, stop_s)


def stop(process: subprocess.Popen[bytes], stop_s: float = STOP_S) -> None:
    """End a server that leads a process group: SIGTERM to it, or else SIGKILL to the group.

    vLLM's first process stops the others, so it alone gets SIGTERM. If it does not exit within
    ``stop_s`` seconds, or had exited before, whatever still runs of the group is killed.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stop_s)
            return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on, nor is likely to before a server does.

    Not one of those that the system gives to connections: an engine takes half a minute to start.
    """
    while True:
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def tail(log: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log: Path, start_s: float, name: str
) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"{name} stopped with exit code {process.returncode}; the end of {log}:\n"
                f"{tail(log)}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_PROBE_S):  # noqa: S310
                return
        except (OSError, http.client.HTTPException):
            time.sleep(_POLL_S)
    raise ServerFailed(
        f"{name} was not ready within {start_s:.0f} s; the end of {log}:\n{tail(log)}"
    )
