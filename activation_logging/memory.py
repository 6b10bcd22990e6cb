"""How much memory this machine can still give."""

from __future__ import annotations

import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = CGROUP) -> int | None:
    """Bytes that this machine can give, or this container below its limit; None if unknown.

    Args:
        cgroup: where the kernel says what the container has.
    """
    found = []
    if (there := _number(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo"))) is not None:
        found.append(there << 10)
    if (limit := _number(r"(\d+)", cgroup / "memory.max")) is not None:
        used = _number(r"(\d+)", cgroup / "memory.current") or 0
        # What was read of files and is not in use makes room by itself.
        cached = _number(r"inactive_file (\d+)", cgroup / "memory.stat") or 0
        found.append(max(limit - max(used - cached, 0), 0))
    return min(found, default=None)


def _number(line: str, file: Path) -> int | None:
    """The number in a line of a file of the kernel's; None where it is not there."""
    try:
        found = re.search(f"^{line}$", file.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
