"""Many requests through vLLM's schedulers: ``python -m tests.schedules --requests 100000``.

Prints a line per setting, and ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.progress import track

from bench import docs
from tests.schedules.engine import SETTINGS
from tests.schedules.run import Outcome, processes, run

PER_STORE = 5_000
SHOWN = 5


HEADER = (
    *("setting", "requests", "complete", "dropped", "rows", "preempted", "ended meanwhile"),
    "wrong",
)
SCORES_HEADER = ("setting", "scores", "other in the last digit", "not there")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schedules", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="requests in all")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings whose name has this")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="engines at a time")
    docs.add_flag(parser)
    arguments = parser.parse_args()
    settings = [setting for setting in SETTINGS if arguments.only in setting.name]
    if not settings:
        parser.error(f"no setting has {arguments.only!r} in its name")
    each = max(arguments.requests // len(settings), 1)
    stores = -(-each // PER_STORE)
    jobs = [
        (setting, each // stores, arguments.seed * 1_000_000 + index * 1_000 + number)
        for index, setting in enumerate(settings)
        for number in range(stores)
    ]
    start = time.monotonic()
    outcomes = {setting.name: Outcome() for setting in settings}
    with processes(arguments.processes) as pool:
        done = pool.map(run, *zip(*jobs, strict=True))
        shown = track(done, "engines", total=len(jobs), disable=not sys.stderr.isatty())
        for (setting, *_), outcome in zip(jobs, shown, strict=True):
            outcomes[setting.name].add(outcome)
    everything = Outcome()
    for outcome in outcomes.values():
        everything.add(outcome)
    rows = [_row(name, outcome) for name, outcome in {**outcomes, "all": everything}.items()]
    print(*docs.markdown(HEADER, rows), sep="\n")
    if arguments.docs:
        docs.record_rows(arguments.docs, HEADER, rows)
        scores = [_scores_row(name, one) for name, one in {**outcomes, "all": everything}.items()]
        docs.record_rows(f"{arguments.docs}-scores", SCORES_HEADER, scores)
    print(f"\n{everything.steps:,} steps in {time.monotonic() - start:.0f} s; ", end="")
    print(", ".join(f"{n:,} {what}" for what, n in sorted(everything.happened.items())))
    scores = everything.scores
    print(f"{scores['scores']:,} live scores are what is computed later, ", end="")
    print(f"{scores['last digit']:,} of them but for the last digit of float32")
    for name, outcome in outcomes.items():
        for what in outcome.wrong[:SHOWN]:
            print(f"{name}: {what}")
    return 1 if everything.wrong else 0


def _scores_row(name: str, outcome: Outcome) -> list[str]:
    scores = outcome.scores
    return [name, f"{scores['scores']:,}", f"{scores['last digit']:,}", f"{scores['unknown']:,}"]


def _row(name: str, outcome: Outcome) -> list[str]:
    happened, statuses = outcome.happened, outcome.statuses
    cells = (
        outcome.accepted,
        statuses["complete"],
        statuses["dropped"],
        outcome.rows,
        happened["preempted"],
        happened["aborted while preempted"],
        len(outcome.wrong),
    )
    return [name, *(f"{cell:,}" for cell in cells)]


if __name__ == "__main__":
    sys.exit(main())
