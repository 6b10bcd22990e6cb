"""All tests, in two runs of pytest side by side: those that share a server, and the others.

    python -m tests [pytest's arguments]

One run keeps two cores busy for a part of its time only: a server takes half a minute to start, and
imports one module after another. Each run has a log in ``output/tests``; the logs are shown one
after the other. Arguments that name a test make it one run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "output" / "tests"
ALONE = tuple(
    f"tests/server/test_{name}.py"
    for name in (
        *("adapters", "async_llm", "doors", "generate", "models", "quantised", "refusals"),
        *("sites", "texts"),
    )
)
"""Tests with servers and engines of their own, so that it is all the same in which run they are."""
PASSED = {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
"""A selection may leave nothing to one of the two."""
AGAIN = 5
"""So many failed tests of a run are run once more; of more than that the machine is no reason."""
_POLL_S = 0.2
THREADS = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On two cores the second thread of either run would only spin, waiting for the other run's core.

By itself vLLM binds a worker to all cores but the last: the workers of both runs to the same one.
"""
UNWRITTEN = "PYTHONDONTWRITEBYTECODE"
"""Hundreds of processes import this project, and each would compile it anew."""


def environment() -> dict[str, str]:
    """That of the runs; a variable of ``THREADS`` that is set already stays as it is."""
    return {**THREADS, **{name: v for name, v in os.environ.items() if name != UNWRITTEN}}


class Part:
    """One of the two runs.

    Args:
        log: the file that its output replaces.
        cache: of pytest: one of its own, so that ``--lf`` finds what failed here.
        arguments: of pytest.
    """

    def __init__(self, log: Path, cache: Path, arguments: Sequence[str]) -> None:
        self.log = log
        self.cache = cache
        self.arguments = arguments
        color = ("--color=yes",) if sys.stdout.isatty() else ()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *color, *arguments],
                cwd=ROOT,
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def show(self) -> None:
        """Print the log from its beginning, and go on until the run ends."""
        print(f"--- {self.log}", flush=True)
        with self.log.open(encoding="utf-8", errors="replace") as log:
            ended = False
            while not ended:
                ended = self.process.poll() is not None
                sys.stdout.write(log.read())
                sys.stdout.flush()
                time.sleep(0 if ended else _POLL_S)

    def failed(self) -> list[str]:
        """The tests that failed, as far as pytest could write them down."""
        noted = self.cache / "v" / "cache" / "lastfailed"
        return sorted(json.loads(noted.read_text("utf-8"))) if noted.exists() else []

    def summary(self) -> str:
        """Its last line, which says how many tests passed."""
        return self.log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]


def selections(*, gpu: bool) -> dict[str, Sequence[str]]:
    """What each of the two runs is told to run, in the order in which their logs are shown.

    An engine takes nearly all memory of a GPU, so that there is room for one at a time.
    """
    moved = () if gpu else ALONE
    return {
        "others": ("tests/unit", "tests/schedules", *moved),
        "servers": ("tests/server", *(f"--ignore={module}" for module in moved)),
    }


def names_a_test(argument: str) -> bool:
    return not argument.startswith("-") and Path(argument.partition("::")[0]).exists()


def again(part: Part) -> int:
    """Run what failed once more; the exit code of that, or of the part where it tells nothing."""
    failed = part.failed()
    if part.process.returncode != pytest.ExitCode.TESTS_FAILED or not 0 < len(failed) <= AGAIN:
        return part.process.returncode
    log = part.log.with_name(f"{part.log.stem}-again.log")
    alone = Part(log, part.cache, [*part.arguments, "--lf"])
    alone.show()
    for test in sorted(set(failed) - set(alone.failed())):
        print(f"FAILED beside the other run, passed alone: {test}")
    return alone.process.returncode


def run(
    parts: Mapping[str, Sequence[str]], arguments: Sequence[str], logs: Path, cache: Path
) -> int:
    """Run pytest once per part, all at once; the exit code of one that failed, or 0."""
    logs.mkdir(parents=True, exist_ok=True)
    started = [
        Part(logs / f"{name}.log", cache / name, [*selection, *arguments])
        for name, selection in parts.items()
    ]
    try:
        for part in started:
            part.show()
    finally:
        # An interrupt reaches all of them, and those with servers have to stop these first.
        for part in started:
            part.process.wait()
    codes = {again(part) for part in started}
    for part in started:
        print(part.summary())
    return max(codes - PASSED, default=min(codes))


def main(arguments: Sequence[str]) -> int:
    if any(map(names_a_test, arguments)):
        os.execve(sys.executable, [sys.executable, "-m", "pytest", *arguments], environment())
    parts = selections(gpu=shutil.which("nvidia-smi") is not None)
    return run(parts, arguments, LOGS, ROOT / ".pytest_cache")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
