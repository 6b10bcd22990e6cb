"""The store against plain LMDB: the same bytes, the same commits, the same disk.

    python bench/store.py [--folder DIR] [--rounds 5] [--json FILE]

Appending goes through the background writer, as in a server. Reading is a random entry and
layer by its key. Every figure is the ratio of a pair of runs, one right after the other, in
alternating order; the median over rounds is printed with the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb
import numpy as np
from rich.progress import track
from rich.table import Table

from activation_logging import open_store
from activation_logging.bench.ratios import Spread
from activation_logging.console import PlainConsole
from activation_logging.store import StoreWriter
from activation_logging.store.layout import prompt_key
from bench.answers import NUM_LAYERS, capture, document, to_bfloat16
from bench.docs import add_flag, record, spread_text, write_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

READS = 5000


class Shape(NamedTuple):
    """Rows of one layer of one entry."""

    rows: int
    hidden: int


SMALL, LARGE = Shape(128, 576), Shape(256, 4096)
"""An entry of the default model, and one of a model of eight billion parameters."""
ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}


def bfloat16(generator: np.random.Generator, shape: Shape) -> np.ndarray:
    """Normally distributed states, as the bits of bfloat16."""
    return to_bfloat16(generator.standard_normal(shape, np.float32))


@contextmanager
def raw_lmdb(path: Path, **flags: Any) -> Iterator[Any]:
    """A plain LMDB environment with the options that the store uses."""
    env = lmdb.open(str(path), map_size=1 << 36, max_dbs=4, **ENGINE, **flags)
    try:
        yield env
    finally:
        env.close()


class Folders:
    """Fresh folders on the disk in question; used ones are removed."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._count = 0

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        self._count += 1
        path = self._base / f"{self._count}.lmdb"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path)


# --- appending -------------------------------------------------------------------------


def append_store(
    path: Path, entries: int, per_commit: int, layers: Sequence[int], block: Any
) -> float:
    """Seconds to put so many entries through the background writer, ``per_commit`` at a time."""
    writer = StoreWriter(path, role="bench", queue_bytes=8 << 30)
    documents = [document(number, len(block)) for number in range(entries)]
    started = time.perf_counter()
    for number in range(entries):
        writer.put_capture(capture(number, layers, block))
        writer.put_entry(documents[number])
        if (number + 1) % per_commit == 0 or number + 1 == entries:
            writer.flush()
    seconds = time.perf_counter() - started
    assert writer.stats.lost == writer.stats.errors == 0
    writer.close()
    return seconds


def append_raw(
    path: Path, entries: int, per_commit: int, layers: Sequence[int], block: Any
) -> float:
    """The same rows and the entry's JSON, under the same keys."""
    documents = [document(number, len(block)) for number in range(entries)]
    keys = [prompt_key(each["prompt"]).encode() for each in documents]
    with raw_lmdb(path) as env:
        rows = env.open_db(b"rows")
        started = time.perf_counter()
        for first in range(0, entries, per_commit):
            with env.begin(write=True) as txn:
                for number in range(first, min(first + per_commit, entries)):
                    for layer in layers:
                        key = number.to_bytes(16, "big") + layer.to_bytes(2, "big")
                        txn.put(key, block.data, db=rows)
                    value = json.dumps(documents[number], separators=(",", ":")).encode()
                    txn.put(keys[number], value)
        return time.perf_counter() - started


# --- reading ---------------------------------------------------------------------------


def fill(path: Path, entries: int, layers: Sequence[int], block: Any) -> None:
    """A store to read from."""
    writer = StoreWriter(path, role="bench")
    for number in range(entries):
        writer.put_capture(capture(number, layers, block))
        writer.put_entry(document(number, len(block)))
    writer.close()


def fill_raw(path: Path, keys: Sequence[str], layers: Sequence[int], block: Any) -> None:
    """The same rows under ``key + layer``."""
    with raw_lmdb(path) as env, env.begin(write=True) as txn:
        for key in keys:
            for layer in layers:
                txn.put(f"{key}/{layer}".encode(), block.data)


def read_store(path: Path, wanted: Sequence[tuple[str, int]]) -> float:
    """Seconds to read these entries' layers, each by its key, into an array of its own."""
    with open_store(path) as store:
        started = time.perf_counter()
        for key, layer in wanted:
            store[key].stored(layer)
        return time.perf_counter() - started


def read_raw(path: Path, wanted: Sequence[tuple[str, int]], kind: np.dtype) -> float:
    """The same with a transaction per read, ``get``, ``frombuffer`` and ``copy``."""
    with raw_lmdb(path, readonly=True) as env:
        started = time.perf_counter()
        for key, layer in wanted:
            with env.begin(buffers=True) as txn:
                np.frombuffer(txn.get(f"{key}/{layer}".encode()), kind).copy()
        return time.perf_counter() - started


# --- listing, and a DataLoader ---------------------------------------------------------


def first_page(path: Path) -> float:
    """Seconds to open a store and list its newest fifty entries, in a process of its own."""
    import subprocess
    import sys

    program = (
        "import sys, time; t = time.perf_counter()\n"
        "from activation_logging import open_store\n"
        "from activation_logging.store.query import select\n"
        "imported = time.perf_counter()\n"
        "with open_store(sys.argv[1]) as store:\n"
        "    page = [(e.key, e.prompt, e.status) for e in select(store, limit=50)]\n"
        "    count = len(store)\n"
        "print(time.perf_counter() - imported, count, len(page))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    return float(found.stdout.split()[0])


def loader_seconds(path: Path, keys: Sequence[str], workers: int, layer: int) -> float:
    """Seconds for one epoch: a layer's rows of each entry, float32, reduced to two vectors."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Entries(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self._store: Any = None

        def __len__(self) -> int:
            return len(keys)

        def __getitem__(self, index: int) -> Any:
            if self._store is None:
                self._store = open_store(path)
            rows = self._store[keys[index]].layer(layer)
            return torch.from_numpy(np.concatenate([rows.mean(0), np.abs(rows).max(0)]))

    torch.set_num_threads(1)
    loader = DataLoader(
        Entries(), batch_size=64, shuffle=True, num_workers=workers, persistent_workers=True
    )
    # The first epoch starts the workers and warms the page cache.
    assert sum(len(batch) for batch in loader) == len(keys)
    started = time.perf_counter()
    assert sum(len(batch) for batch in loader) == len(keys)
    return time.perf_counter() - started


# --- the program -----------------------------------------------------------------------


def pairs(
    rounds: int, ours: Callable[[], float], raw: Callable[[], float], title: str
) -> list[tuple[float, float]]:
    """``(ours, raw)`` seconds of each round, in alternating order."""
    found = []
    for turn in track(range(rounds), title, console=PlainConsole(stderr=True)):
        if turn % 2:
            first = ours()
            found.append((first, raw()))
        else:
            first = raw()
            found.append((ours(), first))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The store against plain LMDB.")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--entries", type=int, default=2000, help="entries to append and to read")
    parser.add_argument("--listed", type=int, default=100_000, help="entries to list a page of")
    parser.add_argument("--json", type=Path, help="write the figures here")
    add_flag(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as base:
        figures = measure(args, Folders(Path(base)))
    record(args.docs, show(figures))
    write_figures(args.json, figures)


def measure(args: argparse.Namespace, folders: Folders) -> dict[str, Any]:
    """All figures, by name."""
    generator = np.random.default_rng(0)
    small, large = bfloat16(generator, SMALL), bfloat16(generator, LARGE)
    five = [6, 12, 18, 24, NUM_LAYERS]
    figures: dict[str, Any] = {}
    for name, layers, block, entries, per_commit in (
        ("append, 1 layer of 128 x 576", [NUM_LAYERS], small, args.entries, 32),
        ("append, 5 layers of 128 x 576", five, small, args.entries, 32),
        ("append, 1 layer of 256 x 4096", [NUM_LAYERS], large, args.entries // 8, 32),
    ):
        figures[name] = appending(args.rounds, folders, layers, block, entries, per_commit, name)
    for name, block, entries in (
        ("128 x 576", small, args.entries),
        ("256 x 4096", large, args.entries // 8),
    ):
        figures |= reading(args.rounds, folders, block, entries, name)
    figures |= loading(args.rounds, folders, small, args.entries)
    figures |= listing(args.rounds, folders, bfloat16(generator, Shape(4, 576)), args.listed)
    return figures


def appending(  # noqa: PLR0917 - what makes one figure differ from another
    rounds: int,
    folders: Folders,
    layers: Sequence[int],
    block: np.ndarray,
    entries: int,
    per_commit: int,
    name: str,
) -> dict[str, Any]:
    def ours() -> float:
        with folders.fresh() as path:
            return append_store(path, entries, per_commit, layers, block)

    def raw() -> float:
        with folders.fresh() as path:
            return append_raw(path, entries, per_commit, layers, block)

    found = pairs(rounds, ours, raw, name)
    megabytes = entries * len(layers) * block.nbytes / 1e6
    return {
        "ratio": Spread.of([theirs / mine for mine, theirs in found])._asdict(),
        "entries/s": Spread.of([entries / mine for mine, _ in found])._asdict(),
        "MB/s": Spread.of([megabytes / mine for mine, _ in found])._asdict(),
    }


def reading(
    rounds: int, folders: Folders, block: np.ndarray, entries: int, shape: str
) -> dict[str, Any]:
    layers, kind, figures = [15, NUM_LAYERS], np.dtype("<u2"), {}
    with folders.fresh() as path, folders.fresh() as raw_path:
        fill(path, entries, layers, block)
        with open_store(path) as store:
            keys = list(store)
        fill_raw(raw_path, keys, layers, block)
        choose = random.Random(0)  # noqa: S311
        wanted = [(choose.choice(keys), choose.choice(layers)) for _ in range(READS)]
        name = f"read (entry, layer) of {shape}"
        found = pairs(
            rounds, lambda: read_store(path, wanted), lambda: read_raw(raw_path, wanted, kind), name
        )
        figures[name] = {
            "ratio": Spread.of([theirs / mine for mine, theirs in found])._asdict(),
            "us": Spread.of([mine / len(wanted) * 1e6 for mine, _ in found])._asdict(),
            "us raw": Spread.of([theirs / len(wanted) * 1e6 for _, theirs in found])._asdict(),
        }
    return figures


def loading(rounds: int, folders: Folders, block: np.ndarray, entries: int) -> dict[str, Any]:
    with folders.fresh() as path:
        fill(path, entries, [NUM_LAYERS], block)
        with open_store(path) as store:
            keys = list(store)
        found = [
            (loader_seconds(path, keys, 1, NUM_LAYERS), loader_seconds(path, keys, 2, NUM_LAYERS))
            for _ in track(range(rounds), "DataLoader", console=PlainConsole(stderr=True))
        ]
    return {
        "DataLoader, 2 workers against 1": {
            "ratio": Spread.of([one / two for one, two in found])._asdict(),
            "entries/s": Spread.of([len(keys) / two for _, two in found])._asdict(),
        }
    }


def listing(rounds: int, folders: Folders, block: np.ndarray, entries: int) -> dict[str, Any]:
    with folders.fresh() as path:
        started = time.perf_counter()
        fill(path, entries, [NUM_LAYERS], block)
        written = time.perf_counter() - started
        seconds = [first_page(path) for _ in range(rounds)]
    return {
        f"write {entries} small entries": {"s": Spread.of([written])._asdict()},
        f"open {entries} entries, list 50": {"s": Spread.of(seconds)._asdict()},
    }


def show(figures: dict[str, Any]) -> Table:
    """Print the table."""
    table = Table("what", "ratio to raw LMDB", "absolute")
    for name, found in figures.items():
        ratio = found.get("ratio")
        table.add_row(
            name,
            spread_text(ratio) if ratio else "",
            ", ".join(
                f"{value['median']:.4g} {unit}" for unit, value in found.items() if unit != "ratio"
            ),
        )
    PlainConsole(width=120).print(table)
    return table


if __name__ == "__main__":
    main()
