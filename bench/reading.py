"""Reading for training: `store.read` against what else holds rows, the same rows in one run.

    python bench/reading.py [--folder DIR] [--rounds 5] [--megabytes 256] [--json FILE]
    python bench/reading.py --where               # what a batch of one row each consists of

Every contestant holds the same float32 rows in the way its users would have it:

=========== =======================================================================================
store       one entry per answer, read by key with `store.read`; `first pass` opens the store anew
store, bf16 the same in bfloat16, as models with that type are logged; given out as float32
memmap      one array [total rows, hidden], and where each answer begins
safetensors shards of 256 MB with a tensor per answer, opened once
zarr        one array in chunks of 128 rows, not compressed
datasets    Hugging Face's, a line per row, saved to disk, memory-mapped, `with_format("numpy")`
=========== =======================================================================================

A batch is 64 answers, given out as one float32 array that is the caller's own: all rows of each,
or the last of each. Answers come in order or shuffled. Files are in the page cache. In each round
all contestants run one after the other, in turned order; ratios are within a round, to memmap.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from activation_logging import open_store
from activation_logging.bench.ratios import Spread
from activation_logging.store import StoreWriter
from activation_logging.store.rows import copy_single
from bench.answers import NUM_LAYERS, capture, document, to_bfloat16
from bench.docs import add_flag, record, write_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH = 64
SHARD_BYTES = 256 << 20
LEAST_S = 0.2
"""Passes are repeated until they take so long."""

Read = "Callable[[np.ndarray], np.ndarray]"
"""From the numbers of some answers to their rows."""


class Rows(NamedTuple):
    """Rows of all answers ``[total, hidden]``, and where each answer's begin, ``[answers + 1]``."""

    values: np.ndarray
    offsets: np.ndarray

    def of(self, answer: int) -> np.ndarray:
        """One answer's."""
        return self.values[self.offsets[answer] : self.offsets[answer + 1]]


class Contestant(NamedTuple):
    """Something that holds rows: how to open it, which gives how to read all rows, or the last."""

    name: str
    open: Callable[[], tuple[Any, Any]]


def make_rows(megabytes: int, hidden: int) -> Rows:
    """Normally distributed rows that bfloat16 can hold, 64 to 192 for each answer."""
    generator = np.random.default_rng(0)
    answers = max(BATCH, megabytes * 1_000_000 // (128 * hidden * 4))
    offsets = np.concatenate([[0], np.cumsum(generator.integers(64, 193, answers))])
    values = generator.standard_normal((offsets[-1], hidden), np.float32)
    values.view(np.uint32)[...] &= 0xFFFF0000
    return Rows(values, offsets)


# --- contestants -----------------------------------------------------------------------


def store(folder: Path, rows: Rows, dtype: str) -> Callable[[], tuple[Any, Any]]:
    """This project's."""
    path = folder / f"{dtype}.lmdb"
    writer = StoreWriter(path, role="bench")
    for number in range(len(rows.offsets) - 1):
        block = rows.of(number)
        stored = to_bfloat16(block) if dtype == "bfloat16" else block
        writer.put_capture(capture(number, (NUM_LAYERS,), stored))
        writer.put_entry(document(number, len(block)))
    writer.close()

    def opened() -> tuple[Any, Any]:
        found = open_store(path)
        keys = [entry.key for entry in found.entries()]
        return (
            lambda answers: found.read([keys[i] for i in answers.tolist()]).values,
            lambda answers: found.read([keys[i] for i in answers.tolist()], position=-1),
        )

    return opened


def _all_rows(found: Any, offsets: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The rows of some answers out of an array of all rows."""
    return np.concatenate([found[offsets[i] : offsets[i + 1]] for i in answers.tolist()])


def memmap(folder: Path, rows: Rows) -> Callable[[], tuple[Any, Any]]:
    """The array of numpy that everybody would take."""
    path, offsets = folder / "rows.npy", rows.offsets
    np.save(path, rows.values)

    def opened() -> tuple[Any, Any]:
        found = np.load(path, mmap_mode="r")
        last = offsets[1:] - 1
        return (
            lambda answers: _all_rows(found, offsets, answers),
            lambda answers: np.asarray(found[last[answers]]),
        )

    return opened


def safetensors(folder: Path, rows: Rows) -> Callable[[], tuple[Any, Any]]:
    """A tensor per answer."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for number in range(len(rows.offsets) - 1):
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][str(number)] = rows.of(number)
        size += rows.of(number).nbytes
    home = {int(name): n for n, shard in enumerate(shards) for name in shard}
    for n, shard in enumerate(shards):
        save_file(shard, folder / f"{n}.safetensors")

    length = np.diff(rows.offsets).tolist()

    def opened() -> tuple[Any, Any]:
        files = [
            safe_open(folder / f"{n}.safetensors", framework="numpy") for n in range(len(shards))
        ]
        return (
            lambda answers: np.concatenate(
                [files[home[i]].get_tensor(str(i)) for i in answers.tolist()]
            ),
            lambda answers: np.concatenate(
                [files[home[i]].get_slice(str(i))[length[i] - 1 :] for i in answers.tolist()]
            ),
        )

    return opened


def zarr(folder: Path, rows: Rows) -> Callable[[], tuple[Any, Any]]:
    """Zarr 3."""
    import zarr as library

    path, offsets = folder / "rows.zarr", rows.offsets
    hidden = rows.values.shape[1]
    array = library.create_array(
        path, shape=rows.values.shape, chunks=(128, hidden), dtype="float32", compressors=None
    )
    array[:] = rows.values

    def opened() -> tuple[Any, Any]:
        found = library.open_array(path, mode="r")
        last = offsets[1:] - 1
        return (
            lambda answers: _all_rows(found, offsets, answers),
            lambda answers: found.oindex[last[answers]],
        )

    return opened


def datasets(folder: Path, rows: Rows) -> Callable[[], tuple[Any, Any]]:
    """Hugging Face datasets."""
    import datasets as library
    import pyarrow as pa

    library.disable_progress_bars()
    path, offsets = str(folder / "rows.arrow"), rows.offsets
    hidden = rows.values.shape[1]
    features = library.Features({"state": library.List(library.Value("float32"), length=hidden)})
    table = pa.table({"state": pa.FixedSizeListArray.from_arrays(rows.values.ravel(), hidden)})
    library.Dataset(table.cast(features.arrow_schema)).save_to_disk(path)

    def opened() -> tuple[Any, Any]:
        found = library.load_from_disk(path).with_format("numpy")
        last = offsets[1:] - 1
        return (
            lambda answers: found[
                np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in answers])
            ]["state"],
            lambda answers: found[last[answers]]["state"],
        )

    return opened


# --- measuring -------------------------------------------------------------------------


def one_pass(read: Any, orders: Sequence[np.ndarray]) -> int:
    """Rows that were read."""
    return sum(len(read(order)) for order in orders)


def measure(contestant: Contestant, which: int, batches: Sequence[np.ndarray], rows: Rows) -> Any:
    """Seconds per pass, processor seconds per pass, rows per pass."""
    fresh = contestant.name.endswith("first pass")
    reader = contestant.open()[which]
    if not fresh:
        check(reader, which, batches[-1], rows)
        one_pass(reader, batches)
    spent = cpu = 0.0
    passes = count = 0
    while spent < LEAST_S and passes < 200:
        if fresh:
            reader = contestant.open()[which]
        started, cpu_started = time.perf_counter(), time.process_time()
        count = one_pass(reader, batches)
        spent += time.perf_counter() - started
        cpu += time.process_time() - cpu_started
        passes += 1
    return spent / passes, cpu / passes, count


def check(read: Any, which: int, answers: np.ndarray, rows: Rows) -> None:
    """The rows must be the right ones, and the caller's own."""
    wanted = [rows.of(i)[-1:] if which else rows.of(i) for i in answers.tolist()]
    found = read(answers)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate(wanted))


def rounds_of(
    contestants: Sequence[Contestant], rows: Rows, rounds: int, title: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of every contestant, by what is read."""
    answers = len(rows.offsets) - 1
    order = np.arange(answers)
    shuffled = np.random.default_rng(1).permutation(answers)
    for which, what in enumerate(("all rows", "one row each")):
        for how, sequence in (("in order", order), ("shuffled", shuffled)):
            batches = [sequence[i : i + BATCH] for i in range(0, answers, BATCH)]
            found: dict[str, list[Any]] = {one.name: [] for one in contestants}
            name = f"{title}, {what}, {how}"
            for turn in track(range(rounds), name, console=Console(stderr=True)):
                for one in (*contestants[turn % 6 :], *contestants[: turn % 6]):
                    found[one.name].append(measure(one, which, batches, rows))
            base = found["memmap"]
            width = rows.values.shape[1] * 4
            figures = {}
            for who, runs in found.items():
                pairs = list(zip(base, runs, strict=True))
                values = {
                    "ratio": [b[0] / f[0] for b, f in pairs],
                    "cpu ratio": [b[1] / f[1] for b, f in pairs],
                    "rows/s": [f[2] / f[0] for f in runs],
                    "bytes/s": [f[2] * width / f[0] for f in runs],
                }
                figures[who] = {what: Spread.of(each)._asdict() for what, each in values.items()}
            yield name, figures


# --- where the time goes ---------------------------------------------------------------


def where(folder: Path, rows: Rows) -> dict[str, float]:
    """Microseconds of processor time: the parts of one batch, and the first pass per answer."""
    opened, answers = store(folder, rows, "float32"), np.arange(BATCH)
    last = memmap(folder, rows)()[1]
    everything = np.arange(len(rows.offsets) - 1)
    with open_store(folder / "float32.lmdb") as found:
        keys = [entry.key for entry in found.entries()][:BATCH]
        found.read(keys, position=-1)
        reader, view = found._row_reader, found.snapshot()
        places = reader._places_in(view, "last", -1)

        window, low = places._look()
        there = places.addresses(keys) - low
        parts = {
            "a batch": lambda: found.read(keys, position=-1),
            "- its transaction": found.snapshot,
            "- whether what is known still holds": partial(reader._places_in, view, "last", -1),
            "- the addresses of its keys": lambda: places.addresses(keys),
            "- the rows": lambda: copy_single(places._kind, window, there),
            "memmap, a batch": lambda: last(answers),
        }
        figures = {what: _least(part, 300) for what, part in parts.items()}
    for which, what in enumerate(("all rows", "one row")):
        seconds = []
        for _ in range(5):
            read = opened()[which]
            started = time.process_time()
            read(everything)
            first = time.process_time() - started
            started = time.process_time()
            read(everything)
            seconds.append(first - (time.process_time() - started))
        figures[f"first pass, {what}, more than later ones, an answer"] = (
            statistics.median(seconds) / len(everything) * 1e6
        )
    return figures


def _least(part: Callable[[], Any], times: int) -> float:
    """Microseconds that something takes when nothing disturbs it."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        part()
        found.append(time.perf_counter() - started)
    return min(found) * 1e6


# --- the program -----------------------------------------------------------------------


def show(figures: dict[str, Any], docs: str | None) -> None:
    """Print a table of each kind of reading; kept as ``NAME-1``, ``NAME-2`` and so on."""
    for number, (name, found) in enumerate(figures.items(), 1):
        table = Table("what", "to memmap", "processor time", "rows/s", "MB/s", title=name)
        for who, each in found.items():
            ratio = each["ratio"]
            table.add_row(
                who,
                f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})",
                f"{each['cpu ratio']['median']:.2f}",
                f"{each['rows/s']['median']:,.0f}",
                f"{each['bytes/s']['median'] / 1e6:,.0f}",
            )
        Console(width=120).print(table)
        record(docs and f"{docs}-{number}", table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading for training.")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=256, help="rows of each contestant")
    parser.add_argument("--hidden", type=int, nargs="+", default=[576, 4096])
    parser.add_argument("--where", action="store_true", help="say where the time of a batch goes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    add_flag(parser)
    args = parser.parse_args()
    if args.where:
        for hidden in args.hidden:
            with tempfile.TemporaryDirectory(dir=args.folder) as base:
                table = Table("what", "us", title=f"{hidden} wide")
                for what, value in where(Path(base), make_rows(args.megabytes, hidden)).items():
                    table.add_row(what, f"{value:.1f}")
                Console(width=120).print(table)
                record(args.docs and f"{args.docs}-{hidden}", table)
        return
    figures: dict[str, Any] = {}
    for hidden in args.hidden:
        with tempfile.TemporaryDirectory(dir=args.folder) as base:
            folder, rows = Path(base), make_rows(args.megabytes, hidden)
            ours, half = store(folder, rows, "float32"), store(folder, rows, "bfloat16")
            contestants = [
                Contestant("memmap", memmap(folder, rows)),
                Contestant("store", ours),
                Contestant("store, first pass", ours),
                Contestant("store, bf16", half),
                Contestant("safetensors", safetensors(folder, rows)),
                Contestant("zarr", zarr(folder, rows)),
                Contestant("datasets", datasets(folder, rows)),
            ]
            figures |= rounds_of(contestants, rows, args.rounds, f"{hidden} wide")
    show(figures, args.docs)
    write_figures(args.json, figures)


if __name__ == "__main__":
    main()
