"""The study of answers: the time of each part, its memory, and plain scikit-learn beside it.

    python -m bench.study [--answers 2000 --layers 10] [--hidden 576] [--folder DIR] [--docs NAME]

Makes a store of synthetic answers, once per size: rows of a spectrum that falls as that of real
states does, and labels that a direction of them tells a little. Then two processes of their own:

======= ===========================================================================================
study   ``run_study`` on the store, everything that a report needs; its parts by the stages that it
        tells its progress by
sklearn the fits of the sweep alone, by a pipeline of StandardScaler and LogisticRegression on
        float32 arrays in memory; filling the arrays is not counted
======= ===========================================================================================

Of each part the wall clock and, in brackets, the processor time, which other work on the machine
disturbs less. Memory is the peak of what a process has for itself (anonymous); pages of the store
that the kernel keeps, and may give up, are not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from activation_logging import open_store
from activation_logging.console import PlainConsole
from activation_logging.dataset.examples import select_examples
from activation_logging.dataset.features import read_blocks
from activation_logging.detectors import Options, run_study
from activation_logging.detectors.linear import LINEAR_C
from activation_logging.detectors.splits import make_folds
from activation_logging.store import StoreWriter
from bench.answers import capture, document, to_bfloat16
from bench.docs import add_flag, record, write_figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

POSITIONS = ("prompt_last", "response_first", "response_last", "response_mean", "response_max")
ROWS = 16
PARTS = {
    "reading": ("looking for labels", "reading", "layer", "comparing", "finding"),
    "sweep": ("fitting probes",),
    "intervals": ("intervals",),
    "detectors": ("fitting detectors",),
    "trust": ("shuffled labels", "conformal thresholds", "learning curves"),
}
"""What the study's stages are counted as, by how their names begin."""
terminal = PlainConsole(width=120)


def make_store(path: Path, answers: int, layers: int, hidden: int) -> None:
    """Write the answers; about one thing each."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, hidden + 1) ** -0.5
    mix = (rng.standard_normal((hidden, hidden)) * spectrum[:, None]).astype(np.float32)
    told = rng.standard_normal(hidden).astype(np.float32)
    told /= np.linalg.norm(told)
    labels = rng.integers(0, 2, answers)
    writer = StoreWriter(path, role="bench")
    for number in track(range(answers), "writing the store"):
        noise = rng.standard_normal((layers * ROWS, hidden), np.float32)
        with threadpool_limits(1):
            states = (noise + np.float32(0.8 * labels[number]) * told) @ mix
        blocks = to_bfloat16(states).reshape(layers, ROWS, hidden)
        made = capture(number, range(1, layers + 1), blocks[0])
        (segment,) = made.segments
        rows = dict(zip(range(1, layers + 1), blocks, strict=True))
        writer.put_capture(replace(made, segments=(replace(segment, rows=rows),)))
        words = rng.integers(0, 2000, 12)
        entry = document(number, ROWS)
        entry["response"] = " ".join(f"word{word}" for word in words)
        entry["tags"] = {"entity": f"thing {number}", "domain": "abcd"[number % 4]}
        entry["logprobs"] = (-rng.exponential(size=len(entry["response_token_ids"]))).tolist()
        writer.put_entry(entry)
    writer.close()
    with open_store(path, writable=True) as store:
        for number in track(range(answers), "labelling"):
            (found,) = store.for_request(f"cmpl-{number:032x}")
            label = "hallucinated" if labels[number] else "correct"
            store.put_evaluation(found.key, name="bench", label=label, judge="bench")


class Seconds(NamedTuple):
    """Of the clock, and of all processors that this process had."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)

    def __add__(self, other: Seconds) -> Seconds:  # type: ignore[override]
        return Seconds(self.wall + other.wall, self.processor + other.processor)


# --- contestants -----------------------------------------------------------------------


def study(path: Path) -> dict[str, Seconds]:
    """``run_study`` by its parts."""
    parts: dict[str, Seconds] = defaultdict(lambda: Seconds(0, 0))
    last, since = "reading", Seconds.now()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last, since
        del done, total
        now = Seconds.now()
        parts[last] += now - since
        last, since = _part(what), now

    with open_store(path) as store:
        run_study(store, "bench", Options(positions=POSITIONS), progress=progress)
    progress("", 0, 0)
    return parts


def _part(what: str) -> str:
    return next((part for part, starts in PARTS.items() if what.startswith(starts)), "rest")


def sklearn(path: Path) -> dict[str, Seconds]:
    """The sweep's fits by scikit-learn's own pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with open_store(path) as store:
        examples = select_examples(store, "bench")
        blocks = [block.X for block in read_blocks(examples, examples.labels_of(), POSITIONS)]
    y, groups = examples.y, examples.groups
    folds = make_folds(y, groups)
    started = Seconds.now()
    for X in blocks:
        for position in range(len(POSITIONS)):
            one = X[:, position]
            for fold in folds:
                for fit, rest in ((fold.fit, fold.validation), (fold.train, fold.test)):
                    model = make_pipeline(
                        StandardScaler(), LogisticRegression(C=LINEAR_C, max_iter=2000)
                    )
                    model.fit(one[fit], y[fit]).predict_proba(one[rest])
    return {"sweep": Seconds.now() - started}


def sklearn_on_one_core(path: Path) -> dict[str, Seconds]:
    """The same without threads in its matrix products."""
    with threadpool_limits(1):
        return sklearn(path)


CONTESTANTS = {"study": study, "sklearn": sklearn, "sklearn, one thread": sklearn_on_one_core}


# --- measuring -------------------------------------------------------------------------


def run(name: str, path: Path) -> dict[str, Any]:
    """One contestant in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.study", "--run", name, "--store", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_here(name: str, path: Path) -> dict[str, Any]:
    """One contestant in this process, with its peak memory."""
    with _peak() as peak:
        started = Seconds.now()
        found = CONTESTANTS[name](path)
        whole = Seconds.now() - started
    return {**found, "whole": whole, "peak_mib": peak[0]}


class _peak:  # noqa: N801 - a context, used as a function
    """The most anonymous memory that the process has meanwhile, MiB, in a list of one."""

    def __enter__(self) -> list[float]:
        self._most, self._stop = [0.0], threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self._most

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            text = Path("/proc/self/status").read_text(encoding="utf-8")
            size = next(line for line in text.splitlines() if line.startswith("RssAnon"))
            self._most[0] = max(self._most[0], int(size.split()[1]) / 1024)


def rows_of(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The table: a row per part, a column per contestant."""
    for part in (*PARTS, "rest"):
        yield part, *(_shown(each.get(part)) for each in found.values())
    # What is not measured of the others is their reading.
    yield "whole", *(_shown(each["whole"]) if "trust" in each else "" for each in found.values())
    yield "peak memory", *(f"{each['peak_mib']:,.0f} MiB" for each in found.values())


def _shown(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:,.1f} s ({value[1]:,.1f} s)"


def main() -> None:
    """Make the store, run each contestant, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--folder", type=Path, default=Path("output/bench-study"))
    parser.add_argument("--only", choices=list(CONTESTANTS), help="one of them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--run", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    add_flag(parser)
    options = parser.parse_args()
    if options.run:
        sys.stdout.write(json.dumps(run_here(options.run, options.store)))
        return
    size = f"{options.answers}-{options.layers}-{options.hidden}"
    path = options.folder / f"{size}.lmdb"
    if not path.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)  # of a run that was broken off
        make_store(making, options.answers, options.layers, options.hidden)
        making.rename(path)
    names = [options.only] if options.only else list(CONTESTANTS)
    found = {name: run(name, path) for name in names}
    table = Table(title=f"{options.answers} answers, {options.layers} layers, 5 positions")
    for header in ("", *found):
        table.add_column(header, justify="right" if header else "left")
    for row in rows_of(found):
        table.add_row(*row)
    terminal.print(table)
    write_figures(options.json, found)
    record(options.docs, table)


if __name__ == "__main__":
    main()
