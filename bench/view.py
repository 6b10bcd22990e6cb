"""How fast the pages are: a store of short answers, and the time of every page of it.

    python bench/view.py [--entries 1000000] [--folder DIR] [--rounds 5] [--docs NAME]

Each answer has three words of its own, four tags, and six states of 64 numbers. Half are labelled
by one evaluator, a tenth by a second one, and all have a score; prompts come three times each. The
store is made by the store's own writing, the index and the sketches of states by the page's. Pages
are asked for over the ASGI application, so the times are those of a server without its network. The
store stays in the folder if one is given. A million take 5 GB.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from activation_logging import Evaluation, open_store
from activation_logging.console import PlainConsole
from activation_logging.store import Derived
from activation_logging.store.derived import encode
from bench.answers import NUM_LAYERS, capture, document, fill, to_bfloat16
from bench.docs import add_flag, record

if TYPE_CHECKING:
    from activation_logging.store.mutations import Mutations

ROWS = 6
WIDTH = 64
WORDS = [
    a + b + c for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u") for c in "bdgklmnprst"
]
LABELS = ("correct", "correct", "correct", "hallucinated", "refused")


def answer(number: int) -> dict[str, Any]:
    """An answer about something; every prompt is asked three times."""
    chance = np.random.default_rng(number // 3)
    about = " ".join(WORDS[i] for i in chance.integers(0, len(WORDS), 3))
    texts = [" It", " is", f" {WORDS[number % len(WORDS)]}", "."]
    return document(number, ROWS) | {
        "prompt": f"What is {about}?",
        "response": "".join(texts),
        "response_tokens": texts,
        "logprobs": [-0.1, -0.2, -1.5, -0.01],
        "model": "org/rare" if number % 1000 == 7 else f"org/model-{number % 3}",
        "tags": {
            "benchmark": f"benchmark {number % 5}",
            "sample_id": str(number // 3),
            "domain": f"domain {number % 50}",
            "split": "test" if number % 4 else "train",
        },
        "created": 1.7e9 + number * 0.01,
    }


def put(change: Mutations, txn: Any, number: int) -> None:
    """Write one answer with rows, labels and scores."""
    chance = np.random.default_rng(number)
    block = to_bfloat16(chance.standard_normal((ROWS, WIDTH), np.float32))
    change.put_capture(txn, capture(number, (NUM_LAYERS,), block))
    key = change.put_entry(txn, answer(number))
    if number % 2:
        label = LABELS[number % 7 % 5]
        change.put_evaluation(txn, key, Evaluation("facts", label, judge="rules"))
    if number % 10 == 1:
        change.put_evaluation(txn, key, Evaluation("hand", LABELS[number % 5], judge="hand"))
    scores = np.full(ROWS, np.nan, np.float32)
    scores[3:] = chance.random(3)
    details = {"digest": "0" * 64}
    raw = encode(Derived(key, "score/made_up", scores, details), 1.7e9)
    change.put_derived(txn, key, "score/made_up", raw)


def pages(key: str) -> dict[str, str]:
    """Addresses by what they show."""
    entry = f"entry/{key.replace('#', '.')}"
    return {
        "the list": "",
        "one label": "?label=facts%3Dhallucinated",
        "a label, a tag, a model": "?label=facts%3Drefused&tag=domain%3Ddomain+7&model=org%2Frare",
        "by score, highest first": "?score=score%2Fmade_up&sort=highest",
        "a range of scores, lowest first": "?score=score%2Fmade_up&low=0.5&high=0.6&sort=lowest",
        "a search for a rare word": "?q=bab",
        "a search for a word that all have": "?q=what",
        "that, with a label": "?q=what&label=facts%3Dcorrect",
        "the list, far back": "?after=1700001000.0%3A100000",
        "disagreement of two judges": "label?by=new&order=disagreement",
        "unlabelled answers near a threshold": "label?by=new&order=threshold&score=score%2Fmade_up",
        "agreement of judges": "agreement?first=facts&second=hand",
        "an answer": entry,
        "its heat map": f"{entry}/map",
        "the nearest answers by state": f"{entry}/near",
    }


def main() -> None:
    """Make the store and its index, ask for every page, and print the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is made, and stays")
    parser.add_argument("--rounds", type=int, default=5)
    add_flag(parser)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2, because the first is told apart")
    terminal = PlainConsole(width=120)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / f"{options.entries}.lmdb"
        if not path.exists():
            started = time.perf_counter()
            fill(path, options.entries, put)
            terminal.print(f"store made in {time.perf_counter() - started:.0f} s")
        shown = measure(path, options.rounds, terminal)
        terminal.print(shown)
        record(options.docs, shown)


def measure(path: Path, rounds: int, terminal: PlainConsole) -> Table:
    """The table of times; the first is that of a page that nobody has asked for before.

    The processor's time is that of all threads, of the first and the median: it is the same on a
    busy machine, and leaves out what the disk takes.
    """
    from starlette.testclient import TestClient

    from activation_logging.view.app import make_app
    from activation_logging.view.sketches import Place

    shown = Table("page", "first", "then", "slowest", "processor, first", "then")
    started = time.perf_counter()
    with open_store(path) as store:
        app = make_app(store.path)
        app.state.view.index.build()
        terminal.print(f"index made in {time.perf_counter() - started:.0f} s")
        started, newest = time.perf_counter(), next(store.entries(newest_first=True))
        app.state.view.near.build(Place(newest.model, f"resid@{NUM_LAYERS}", "response_last"))
        terminal.print(f"states read in {time.perf_counter() - started:.0f} s")
        client = TestClient(app, base_url="http://localhost")
        for name, address in pages(newest.key).items():
            times, busy = [], []
            for _ in range(rounds):
                started, worked = time.perf_counter(), time.process_time()
                answer = client.get(f"/activations/{address}")
                times.append(1000 * (time.perf_counter() - started))
                busy.append(1000 * (time.process_time() - worked))
                assert answer.status_code == 200, answer.text
            middle, slowest = statistics.median(times[1:]), max(times[1:])
            cells = (times[0], middle, slowest, busy[0], statistics.median(busy[1:]))
            shown.add_row(name, *(f"{each:.0f} ms" for each in cells))
    return shown


if __name__ == "__main__":
    main()
