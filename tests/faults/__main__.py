"""Everything that can go wrong around a store and a server: ``make torture``.

    python -m tests.faults [--long] [--only NAME ...] [--share 0.1] [--seed 0] [--json FILE]

Each trial is done a few times; with ``--long`` as often as docs/reliability.md says, which has the
results. Each line is printed when its trial is done, with its counts. The first thing that does not
hold ends the run. ``tests/unit/store/test_faults.py``, ``test_machine.py`` and
``tests/server/test_faults.py`` do a few of each too.
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

from activation_logging.console import PlainConsole
from bench import docs
from tests.faults import crowds, disks, hostile, kills, power, servers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Trial = Callable[[Path], Mapping[str, Any]]

SHORT = 0.02
"""The share of the long form that is done without ``--long``."""


def trials(share: float, seed: int, at_once: int, tell: Callable[[str], None]) -> dict[str, Trial]:
    """What is done, by name, to a folder of its own; ``share`` of the long form's numbers.

    Args:
        share: 1 is the long form.
        seed: of all random numbers.
        at_once: servers that run side by side while their processes are killed.
        tell: called with a line after each kill of a server.
    """

    def times(number: int) -> int:
        return max(round(number * share), 1)

    def flips(bits: int, number: int) -> Trial:
        return lambda folder: hostile.flip(folder, times(number), bits, seed)

    def full(policy: Any, disk: Any = disks.small_disk) -> Trial:
        return lambda folder: disks.fill_the_disk(folder / "disk", policy, times(10), disk)

    def limited(policy: Any) -> Trial:
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
        "malformed requests": lambda folder: servers.pester_one(folder, times(10_000), seed),
        "kill a server": lambda folder: servers.kill_many(folder, times(100), seed, at_once, tell),
    }


def without_loss(found: Mapping[str, int]) -> Mapping[str, int]:
    """Insist that no cut has lost anything."""
    assert found["lost"] == 0, found
    return found


def state_machine(examples: int) -> Mapping[str, Any]:
    """The rules of :mod:`tests.faults.machine`, with twice the steps of a test."""
    from hypothesis.stateful import run_state_machine_as_test

    from tests.faults.machine import StoreMachine, options

    run_state_machine_as_test(StoreMachine, settings=options(examples, steps=50))
    return {"orders of events": examples}


def run(trial: Trial, parent: Path | None) -> Mapping[str, Any]:
    """What a trial has counted, and how long it took."""
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=parent))
    started = time.monotonic()
    try:
        found = dict(trial(folder))
    except disks.NotPermitted as reason:
        found = {"skipped": str(reason)}
    finally:
        shutil.rmtree(folder)
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--long", action="store_true", help="as often as docs/reliability.md says")
    parser.add_argument("--only", action="append", help="this trial alone; may be repeated")
    parser.add_argument("--share", type=float, help=f"of the long form (default: {SHORT})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, help="servers that run side by side")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary one)")
    parser.add_argument("--json", type=Path, help="write the counts here")
    docs.add_flag(parser)
    args = parser.parse_args()
    share = args.share if args.share is not None else 1.0 if args.long else SHORT
    terminal = PlainConsole()
    chosen = trials(share, args.seed, args.at_once, terminal.print)
    if unknown := set(args.only or ()) - set(chosen):
        parser.error(f"no trial is called {unknown.pop()!r}: {'; '.join(chosen)}")
    # Forged numbers overflow, and full disks are complained of; neither is news here.
    logging.disable()
    warnings.simplefilter("ignore")
    counts = {}
    for name in args.only or chosen:
        counts[name] = run(chosen[name], args.folder)
        terminal.print(f"{name}: " + ", ".join(f"{what} {n}" for what, n in counts[name].items()))
    if args.docs:
        rows = [
            [name, ", ".join(f"{n:,} {what}" for what, n in found.items() if what != "seconds")]
            for name, found in counts.items()
        ]
        docs.record_rows(args.docs, ["what was done", "what was counted"], rows)
    docs.write_figures(args.json, counts)


if __name__ == "__main__":
    main()
