"""What many stores cost that are read as one: opening them, and the questions of a listing.

    python bench/many.py [--stores 50] [--entries 1000000] [--folder DIR] [--rounds 5] [--json FILE]

So many entries are spread over the stores in turn, so that every page of a list comes from all of
them. Each has 4 rows of 8 numbers: what lies in the rows is not asked for. Opening is of a process
that has opened nothing yet; the time of the imports is not counted. `halves` moves the rows of
every hundredth entry to the next store, as a server on several hosts leaves them. The stores stay
in the folder if one is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from activation_logging import open_store
from activation_logging.console import PlainConsole
from activation_logging.store.query import find, select
from activation_logging.store.statistics import counts
from activation_logging.strict_json import dumps
from bench.answers import NUM_LAYERS, capture, document, fill
from bench.docs import add_flag, record, write_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from activation_logging import Store
    from activation_logging.store.mutations import Mutations

ROWS, HIDDEN = 4, 8
PAGE = 20
READ = 1000
SHARE_APART = 100
START = 1.7e9
BLOCK = np.ones((ROWS, HIDDEN), np.uint16)

OPEN = """
import sys, time
from activation_logging import open_store
started = time.perf_counter()
with open_store(sys.argv[1]) as store:
    len(store)
    sys.stdout.write(str(1000 * (time.perf_counter() - started)))
"""


def answer(number: int) -> dict[str, Any]:
    """An answer, a hundredth of a second after the one before, which is in another store."""
    own = {
        "prompt": f"Question {number}: what is this and that?",
        "response": "This is an answer of some length. " * 4,
        "tags": {"sample_id": str(number), "domain": f"domain {number % 50}"},
        "created": START + number * 0.01,
    }
    return document(number, ROWS) | own


def make(folder: Path, stores: int, entries: int, *, halves: bool) -> None:
    """Stores of entries in turn; with ``halves``, some have their rows in the next store."""
    for store in range(stores):

        def put(change: Mutations, txn: Any, place: int, store: int = store) -> None:
            number = place * stores + store
            change.put_entry(txn, answer(number))
            apart = halves and number % SHARE_APART == 0
            if not apart:
                change.put_capture(txn, capture(number, (NUM_LAYERS,), BLOCK))
            # The entry before this one in time is in the store before.
            if halves and (number - 1) % SHARE_APART == 0:
                change.put_capture(txn, capture(number - 1, (NUM_LAYERS,), BLOCK))

        fill(folder / f"host-{store:02}.lmdb", entries // stores, put)


def page(**wanted: Any) -> Callable[[Store], int]:
    """The newest entries that match, as a listing shows them."""

    def ask(store: Store) -> int:
        found = select(store, limit=PAGE, **wanted)
        return len([(entry.prompt, entry.status, entry.evaluations) for entry in found])

    return ask


def by_key(store: Store) -> int:
    """One entry by the hash of its prompt, which one of the stores has."""
    (entry,) = store.for_prompt(answer(len(store) // 2)["prompt"])
    return len(store[entry.stored_key].response_token_ids)


def by_request(store: Store) -> int:
    """One entry by its request."""
    return len(find(store, answer(len(store) // 3)["request_id"]))


def rows(store: Store) -> int:
    """The last states of the newest thousand answers."""
    keys = [entry.key for entry in select(store, status="complete", limit=READ)]
    return len(store.read(keys, position="response_last"))


def walk(store: Store) -> int:
    """Ten thousand entries in order of time."""
    return len([entry.created for entry in islice(store.entries(), 10_000)])


QUESTIONS: Mapping[str, Callable[[Store], int]] = {
    "newest 20": page(),
    "newest 20 with a tag that a fiftieth has": page(tags={"domain": "domain 7"}),
    "newest 20 that are complete": page(status="complete"),
    "a tag that one has": page(tags={"sample_id": "12345"}),
    "by key": by_key,
    "by request": by_request,
    "counts by status, model and label": lambda store: counts(store).statuses["complete"],
    "10,000 entries in order of time": walk,
    "last states of 1,000 answers": rows,
}


def open_apart(folder: Path) -> float:
    """Milliseconds that a process takes to open the stores and count their entries."""
    command = [sys.executable, "-c", OPEN, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Make the stores, ask, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", type=int, default=50)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--halves", action="store_true", help="see above")
    parser.add_argument("--folder", type=Path, help="where the stores are made, and stay")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    add_flag(parser)
    options = parser.parse_args()
    terminal = PlainConsole(width=120)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not any(folder.glob("*.lmdb")):
            started = time.perf_counter()
            make(folder, options.stores, options.entries, halves=options.halves)
            terminal.print(f"made in {time.perf_counter() - started:.0f} s")
        opened = [open_apart(folder) for _ in range(options.rounds)]
        found: dict[str, Any] = {"open": {"first_ms": opened[0], "median_ms": _median(opened)}}
        with open_store(folder) as store:
            title = f"{len(store):,} entries in {len(store.parts)} stores"
            for name, question in QUESTIONS.items():
                times = []
                number = 0
                for _ in range(options.rounds):
                    started = time.perf_counter()
                    number = question(store)
                    times.append(1000 * (time.perf_counter() - started))
                found[name] = {"first_ms": times[0], "median_ms": _median(times), "found": number}
    shown = Table("", "first", "then", "found")
    for name, each in found.items():
        cells = (f"{each['first_ms']:,.1f} ms", f"{each['median_ms']:,.1f} ms")
        shown.add_row(name, *cells, f"{each.get('found', ''):}")
    terminal.print(title)
    terminal.print(shown)
    record(options.docs, shown)
    write_figures(options.json, json.loads(dumps(found)))


def _median(times: list[float]) -> float:
    return statistics.median(times)


if __name__ == "__main__":
    main()
