"""How much memory this machine can still give."""

from __future__ import annotations

import re
from pathlib import Path


def available() -> int | None:
    """Bytes that this machine, or this container, can give; None where the kernel does not say."""
    found = []
    if counted := re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE):
        found.append(int(counted[1]) << 10)
    if (limit := _read("/sys/fs/cgroup/memory.max").strip()).isdecimal():
        found.append(int(limit))
    return min(found, default=None)


def _read(path: str) -> str:
    """What a file of the kernel's says; nothing where it is not there."""
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
