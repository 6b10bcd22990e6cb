"""Everything that can go wrong around a store, at length: ``make torture``.

    python -m bench.torture [--only NAME ...] [--share 0.1] [--seed 0] [--folder DIR] [--json FILE]

The long form of ``tests/unit/store/test_faults.py`` and ``test_machine.py``; docs/reliability.md
has the figures. Each line is printed when it is done, with its counts; the first thing that does
not hold ends the run.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from activation_logging.bench.machine import describe
from activation_logging.console import PlainConsole
from activation_logging.strict_json import dumps
from tests.unit.store.faults import crowds, disks, hostile, kills, power
from tests.unit.store.faults.machine import StoreMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def trials(share: float, seed: int) -> dict[str, Callable[[Path], Mapping[str, Any]]]:
    """What is done, by name, to a folder of its own; ``share`` of the usual number of times."""

    def times(number: int) -> int:
        return max(round(number * share), 1)

    def flips(bits: int, number: int) -> Callable[[Path], Mapping[str, Any]]:
        return lambda folder: hostile.flip(folder, times(number), bits, seed)

    def full(policy: Any, disk: Any = disks.small_disk) -> Callable[[Path], Mapping[str, Any]]:
        return lambda folder: disks.fill_the_disk(folder / "disk", policy, times(10), disk)

    def limited(policy: Any) -> Callable[[Path], Mapping[str, Any]]:
        return lambda folder: disks.limit_file_size(folder / "files", policy, times(10))

    def lasting(folder: Path) -> Mapping[str, Any]:
        return crowds.lasting_reader(folder / "a.lmdb", times(500))._asdict()

    return {
        "kill writers": lambda folder: kills.kill_writers(folder, times(100), seed),
        "kill compactions": lambda folder: kills.kill_compaction(
            folder / "a.lmdb", times(100), seed
        ),
        "cut the power": lambda folder: without_loss(
            power.cut_the_power(folder, times(30), times(1000), seed)
        ),
        "full disk, block": full("block"),
        "full disk, drop": full("drop"),
        "full btrfs, block": full("block", disks.copying_disk),
        "full btrfs, drop": full("drop", disks.copying_disk),
        "quota of btrfs": lambda folder: disks.exhaust_a_quota(folder / "disk", times(10)),
        "ulimit -f, block": limited("block"),
        "ulimit -f, drop": limited("drop"),
        "16 readers, 2 writers": lambda folder: crowds.crowd(
            folder / "a.lmdb", readers=16, writers=2, answers=times(3000)
        ),
        "a reader that stays": lasting,
        "flip 1 bit": flips(1, 1000),
        "flip 10 bits": flips(10, 500),
        "flip 100 bits": flips(100, 500),
        "flip 1000 bits": flips(1000, 200),
        "cut the file": lambda folder: hostile.cut(folder, times(500), seed),
        "forge records": lambda folder: hostile.forge(folder, min(share, 1.0)),
        "state machine": lambda _: state_machine(times(150)),
    }


def without_loss(found: Mapping[str, int]) -> Mapping[str, int]:
    """Insist that no cut has lost anything."""
    assert found["lost"] == 0, found
    return found


def state_machine(examples: int) -> Mapping[str, Any]:
    """The rules of :mod:`tests.unit.store.faults.machine`, with twice the steps of a test."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return {"orders of events": examples}


def main() -> None:
    parser = argparse.ArgumentParser(description="Everything that can go wrong around a store.")
    parser.add_argument("--only", action="append", help="this trial alone; may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary one)")
    parser.add_argument("--json", type=Path, help="write the counts here")
    args = parser.parse_args()
    # Forged numbers overflow, and full disks are complained of; neither is news here.
    logging.disable()
    warnings.simplefilter("ignore")
    figures, terminal = {}, PlainConsole()
    for name, trial in trials(args.share, args.seed).items():
        if args.only and name not in args.only:
            continue
        folder = Path(tempfile.mkdtemp(prefix="torture-", dir=args.folder))
        started = time.monotonic()
        try:
            found = dict(trial(folder))
        except disks.NotPermitted as reason:
            found = {"skipped": str(reason)}
        finally:
            shutil.rmtree(folder)
        figures[name] = {**found, "seconds": round(time.monotonic() - started, 1)}
        counts = ", ".join(f"{what} {number}" for what, number in figures[name].items())
        terminal.print(f"{name}: {counts}")
    if args.json:
        args.json.write_text(dumps({**figures, "machine": describe()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
