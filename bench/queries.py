"""What questions to a large store cost: filters, counts, labels, and appending with the index.

    python bench/queries.py [--entries 300000] [--folder DIR] [--rounds 5] [--json FILE]

A store of so many answers is made, each with 48 rows of 8 numbers: what lies in the rows is not
asked for. Every hundredth answer is labelled, every ten-thousandth hallucinated. Each question is
asked in a process of its own, so that its memory can be told. `walk` is the same question to the
same store without its index, as version 0.1 answers it; it is left out above 300,000 entries.

Appending is a pair of runs in alternating order, with and without the index; the ratio's median is
printed with the least and the greatest. The store stays in the folder if one is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
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
from rich.progress import track
from rich.table import Table

from activation_logging import Evaluation, open_store
from activation_logging.bench.ratios import Spread
from activation_logging.console import PlainConsole
from activation_logging.store import StoreWriter
from activation_logging.store.query import select
from activation_logging.store.statistics import counts
from activation_logging.store.statistics import statistics as all_statistics
from activation_logging.strict_json import dumps
from bench.answers import NUM_LAYERS, capture, document, fill
from bench.docs import add_flag, record, write_figures
from bench.version_1 import make_version_1

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from activation_logging import Store
    from activation_logging.store.mutations import Mutations

ROWS, HIDDEN = 48, 8
WALKED = 300_000
PAGE = 20
APPENDED = 3000
START = 1.7e9
BLOCK = np.ones((ROWS, HIDDEN), np.uint16)


def answer(number: int) -> dict[str, Any]:
    """An answer; a thousandth of them failed, and every model but one is rare."""
    own = {
        "prompt": f"Question {number}: what is this and that?",
        "response": "This is an answer of some length. " * 4,
        "model": "org/rare" if number % 100_000 == 7 else "org/SmolLM2-135M-Instruct",
        "tags": {
            "benchmark": "short_facts",
            "sample_id": str(number),
            "domain": f"domain {number % 50}",
        },
        "created": START + number * 0.01,
    }
    if number % 1000 == 3:
        own["error"] = "the engine failed"
    return document(number, ROWS) | own


def verdict(number: int) -> Evaluation:
    """The label of an answer."""
    label = "hallucinated" if number % 10_000 == 0 else "correct"
    return Evaluation("short_facts", label, float(label == "hallucinated"), "rules")


def put(change: Mutations, txn: Any, number: int) -> None:
    """Write one answer, and its label if it has one."""
    change.put_capture(txn, capture(number, (NUM_LAYERS,), BLOCK))
    key = change.put_entry(txn, answer(number))
    if number % 100 == 0:
        change.put_evaluation(txn, key, verdict(number))


def first_page(**wanted: Any) -> Callable[[Store], Any]:
    """The newest entries that match, as a listing shows them."""

    def ask(store: Store) -> int:
        page = list(select(store, limit=PAGE, **wanted))
        return len([(entry.prompt, entry.status, entry.evaluations) for entry in page])

    return ask


def dataset(store: Store) -> int:
    """The newest 400 labelled answers of a kind, as a data set without its rows."""
    from activation_logging.dataset.examples import select_examples

    return len(select_examples(store, "small", tags={"benchmark": "short_facts"}))


def write_labels(store: Store) -> int:
    """Another evaluator's labels of ten thousand answers, in groups."""
    with open_store(store.path, writable=True) as writable:
        keys = list(islice(writable, 10_000))
        return writable.put_evaluations((key, Evaluation("groups", "correct")) for key in keys)


def write_one_label(store: Store) -> int:
    """One label."""
    with open_store(store.path, writable=True) as writable:
        writable.put_evaluation(next(iter(writable)), name="one", label="correct")
    return 1


QUESTIONS: Mapping[str, Callable[[Store], Any]] = {
    "no filter": first_page(),
    "a rare label": first_page(label="hallucinated"),
    "a common label of one evaluator": first_page(label="short_facts=correct"),
    "a label that nobody has": first_page(label="refused"),
    "a tag that one has": first_page(tags={"sample_id": "12345"}),
    "a tag that all have": first_page(tags={"benchmark": "short_facts"}),
    "a tag that nobody has": first_page(tags={"benchmark": "none"}),
    "a rare status": first_page(status="failed"),
    "a status that nobody has": first_page(status="dropped"),
    "a rare model": first_page(model="rare"),
    "a model that nobody has": first_page(model="none"),
    "a time": first_page(since=START + 100, until=START + 200),
    "a time that has not come": first_page(since=START + 1e9),
    "rare label, common tag, model, time": first_page(
        label="hallucinated", tags={"benchmark": "short_facts"}, model="rare", since=START
    ),
    "counts by status, model and label": lambda store: counts(store).entries,
    "stats": lambda store: all_statistics(store).entries,
    "data set of 400 labelled": dataset,
    "one label written": write_one_label,
    "10,000 labels written": write_labels,
}


def own_memory() -> float:
    """This process's memory that is not a file's, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def ask(path: Path, name: str, *, rounds: int, walk: bool) -> dict[str, Any]:
    """Ask one question several times; milliseconds of the first and the median, and memory."""
    if walk:
        # As a store of version 1 is read.
        from activation_logging.store.index import Index

        Index.of = lambda _snapshot: None
    with open_store(path) as store:
        len(store)
        before = own_memory()
        times = []
        found = None
        for _ in range(1 if walk else rounds):
            started = time.perf_counter()
            found = QUESTIONS[name](store)
            times.append(1000 * (time.perf_counter() - started))
        return {
            "first_ms": times[0],
            "median_ms": statistics.median(times),
            "found": found,
            "own_memory_mib": own_memory() - before,
        }


def ask_apart(path: Path, name: str, rounds: int, *, walk: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--ask", name, "--folder", str(path)]
    command += ["--rounds", str(rounds), *(["--walk"] if walk else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def append(path: Path, *, indexed: bool) -> float:
    """Answers a second through the background writer, in groups of 32."""
    open_store(path, writable=True).close()
    if not indexed:
        make_version_1(path)
    writer = StoreWriter(path, role="bench", queue_bytes=8 << 30)
    documents = [answer(number) for number in range(APPENDED)]
    block = np.ones((ROWS, 576), np.uint16)
    started = time.perf_counter()
    for number, each in enumerate(documents):
        writer.put_capture(capture(number, (NUM_LAYERS,), block))
        writer.put_entry(each)
        if number % 32 == 31:
            writer.flush()
    writer.flush()
    seconds = time.perf_counter() - started
    writer.close()
    return APPENDED / seconds


def compare_appending(folder: Path, rounds: int) -> dict[str, Any]:
    """Answers a second with and without the index, and the ratio of pairs."""
    pairs = []
    for turn in track(range(rounds), "appending"):
        speeds = {}
        for indexed in (turn % 2 == 0, turn % 2 == 1):
            path = folder / f"append-{turn}-{indexed}"
            speeds[indexed] = append(path, indexed=indexed)
            shutil.rmtree(path)
        pairs.append((speeds[True], speeds[False]))
    spread = Spread.of([with_index / without for with_index, without in pairs])
    return {
        "with": statistics.median(pair[0] for pair in pairs),
        "without": statistics.median(pair[1] for pair in pairs),
        "ratio": spread.median,
        "least": spread.least,
        "greatest": spread.greatest,
    }


def label_four_hundred(path: Path) -> None:
    """Labels of an evaluator that has judged 400 answers, half of them hallucinated."""
    with open_store(path, writable=True) as store:
        keys = [entry.key for entry in select(store, status="complete", limit=400)]
        store.put_evaluations(
            (key, Evaluation("small", "hallucinated" if place % 2 else "correct"))
            for place, key in enumerate(keys)
        )


def main() -> None:
    """Make the store, ask, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, help="where the store is made, and stays")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    parser.add_argument("--walk", action="store_true", help=argparse.SUPPRESS)
    add_flag(parser)
    options = parser.parse_args()
    if options.ask:
        asked = ask(options.folder, options.ask, rounds=options.rounds, walk=options.walk)
        sys.stdout.write(dumps(asked))
        return
    terminal = PlainConsole(width=120)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / f"{options.entries}.lmdb"
        if not path.exists():
            started = time.perf_counter()
            fill(path, options.entries, put)
            label_four_hundred(path)
            terminal.print(f"made in {time.perf_counter() - started:.0f} s")
        walk = options.entries <= WALKED
        shown = Table("", "first", "then", *(["walk"] if walk else []), "found", "own memory")
        found: dict[str, Any] = {"entries": options.entries}
        for name in QUESTIONS:
            answer = ask_apart(path, name, options.rounds, walk=False)
            if walk and "written" not in name:
                answer["walk_ms"] = ask_apart(path, name, 1, walk=True)["first_ms"]
            found[name] = answer
            walked = [f"{answer['walk_ms']:,.0f} ms" if "walk_ms" in answer else ""] if walk else []
            shown.add_row(
                name,
                f"{answer['first_ms']:.2f} ms",
                f"{answer['median_ms']:.2f} ms",
                *walked,
                str(answer["found"]),
                f"{answer['own_memory_mib']:.1f} MiB",
            )
        terminal.print(shown)
        record(options.docs, shown)
        size = (path / "data.mdb").stat().st_blocks * 512
        terminal.print(f"{options.entries:,} entries, {size / 2**30:.2f} GiB on disk")
        found["append"] = appended = compare_appending(folder, options.rounds)
        terminal.print(
            f"appending: {appended['with']:.0f} entries/s with the index, "
            f"{appended['without']:.0f} without: {appended['ratio']:.2f} "
            f"({appended['least']:.2f} to {appended['greatest']:.2f})"
        )
    write_figures(options.json, found)


if __name__ == "__main__":
    main()
