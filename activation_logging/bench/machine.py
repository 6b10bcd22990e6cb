"""What the machine is, and how busy its processors were with whom."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from activation_logging.extras import version_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKAGES = ("activation-logging", "vllm", "torch", "transformers", "lmdb", "numpy")
_LOOK_S = 0.4
_PATIENCE_S = 20.0
_IDLE_SHARE = 0.15


class CpuTimes(NamedTuple):
    """Processor time since some point in the past, core-seconds."""

    ours: float
    others: float


def cpu_times(pids: Iterable[int]) -> CpuTimes:
    """Time taken by these processes and their children, and by everything else.

    What the hypervisor gave to other machines (steal) counts as others'.
    """
    ours = 0.0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for member in family:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            ours += times.user + times.system
    system = psutil.cpu_times()
    idle = system.idle + getattr(system, "iowait", 0.0)
    guest = getattr(system, "guest", 0.0) + getattr(system, "guest_nice", 0.0)
    return CpuTimes(ours, sum(system) - guest - idle - ours)


def wait_until_idle(pids: Iterable[int]) -> None:
    """Return when these processes and their children use next to no processor time.

    vLLM's engine polls for a second after its last request, and would take a core from the server
    that is measured next.
    """
    family = list(pids)
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        before = cpu_times(family).ours
        time.sleep(_LOOK_S)
        if cpu_times(family).ours - before < _IDLE_SHARE * _LOOK_S:
            return


def describe() -> dict[str, Any]:
    """The machine and the versions that a measurement depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split("\n")[:-1]
