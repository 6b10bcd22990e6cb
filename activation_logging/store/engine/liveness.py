"""Checks whether a writer's process is still running."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 19
"""Index of the start time in ``/proc/PID/stat`` after the name; in clock ticks since the boot."""


def boot() -> str | None:
    """An id of this machine's last start; None if unknown."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


def birth(pid: int) -> str | None:
    """Boot and start time, which no other process of the same number shares; None if unknown."""
    # Not psutil's create_time: it is in seconds since the epoch, and moves when the clock is set.
    try:
        # The name is in parentheses and may itself contain parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{_BOOT.read_text().strip()} {fields[_START_FIELD]}"
    except (OSError, IndexError):
        return None


def is_running(writer: Mapping[str, Any]) -> bool:
    """Whether a writer may still write; one on another machine is taken to be running."""
    if "stopped" in writer:
        return False
    if writer["host"] != socket.gethostname():
        return True
    try:
        os.kill(writer["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    born, found = writer.get("born"), birth(writer["pid"])
    return None in (born, found) or born == found
