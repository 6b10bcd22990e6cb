"""A real server under malformed requests and SIGKILL, at length; ``make torture`` runs it.

    python -m bench.torture_server [--requests 10000] [--kills 100] [--seed 0] [--at-once 2]

The short form is ``tests/server/test_faults.py``. Exits with 1, and says why, at the first thing
that is not as it should be.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.table import Table

from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from tests.server.conftest import free_port, running
from tests.server.faults import ROLES, Killed, kill_under_load, pester

BATCH = 1000
terminal = PlainConsole(width=120)


def command(port: int) -> list[str]:
    """A small server of the default model."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(demo_model_path())),
        *("--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", "2048", "--gpu-memory-utilization", "0.3"),
    ]


def torment(requests: int, seed: int, folder: Path) -> None:
    """Send malformed requests with proper ones beside them, and print which answers came."""
    statuses: Counter[int] = Counter()
    port = free_port()
    with running(command(port), folder, port=port, model="smol") as server:
        for number in range(0, requests, BATCH):
            found, wrong = pester(server, min(BATCH, requests - number), seed + number)
            assert not wrong, wrong[:5]
            statuses += found
            terminal.print(f"{statuses.total()} of {requests} malformed requests")
    table = Table("answer", "times")
    for status, times in sorted(statuses.items()):
        table.add_row(str(status), str(times))
    terminal.print(table)


def kill(times: int, seed: int, folder: Path, at_once: int) -> None:
    """Kill processes of fresh servers at random moments, and print what the kills have left.

    A server that starts keeps one core busy, so several are started at once.
    """
    rng = random.Random(seed)  # noqa: S311 - moments, no secrets
    moments = [(ROLES[number % len(ROLES)], rng.uniform(0.5, 6)) for number in range(times)]

    def one(number: int) -> Killed:
        role, moment = moments[number]
        port = free_port()
        with running(command(port), folder / str(number), port=port, model="smol") as server:
            return kill_under_load(server, role, moment)

    left: dict[str, list[Killed]] = {role: [] for role in ROLES}
    with ThreadPoolExecutor(at_once) as pool:
        for number, found in enumerate(pool.map(one, range(times))):
            role, moment = moments[number]
            left[role].append(found)
            text = f"kill {number + 1} of {times}, {role} after {moment:.1f} s: {found}"
            terminal.print(text)
    table = Table("killed", "times", *Killed._fields)
    for role, found_all in left.items():
        sums = [str(sum(column)) for column in zip(*found_all, strict=True)]
        table.add_row(role, str(len(found_all)), *sums)
    terminal.print(table)


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description="Malformed requests and kills, at length.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, help="servers that run side by side")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        if args.requests:
            torment(args.requests, args.seed, Path(folder) / "malformed")
        if args.kills:
            kill(args.kills, args.seed, Path(folder), args.at_once)


if __name__ == "__main__":
    main()
