"""How a store, and an export of it, grow: bytes, files and seconds, measured and extrapolated.

    python bench/growth.py [--answers 1000 10000 100000] [--wide 1000 10000] [--folder DIR]
                           [--docs growth]

Stores of so many answers are written through the background writer, as in a server, and exported
as safetensors. Each answer has 128 rows of 64 numbers: what grows with the number of answers is not
in the rows. A second kind of answer, 128 rows of 576 numbers, gives the cost of bytes.

The bytes of an answer follow from LMDB's pages (:func:`answer_bytes`), and the table has both, so
that the formula can be doubted. Times are ``seconds = a * answers + b * bytes``, solved from the
two largest stores of each kind. One that does not grow with the store is listed as measured. From
these the second table goes on to what does not fit here. ``--docs NAME`` writes ``NAME`` and
``NAME-extrapolated``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.progress import track
from rich.table import Table

from activation_logging import open_store
from activation_logging.console import PlainConsole
from activation_logging.export import export_store
from activation_logging.export.parts import PART_BYTES
from activation_logging.store import StoreWriter, layout
from activation_logging.store.query import select
from activation_logging.store.statistics import counts
from bench.answers import capture, document
from bench.docs import add_flag, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PAGE = 4096
"""Bytes of a page of LMDB's file on x86-64."""
_PAGE_HEADER = 16
_INLINE = 2000
"""A value longer than about this, bytes, gets pages of its own."""
_LAYER = 30
_READS = 300
_AT_ONCE = 1000
"""Answers that are handed to the writer before it is waited for, as a busy server's are."""

FILES_OF_A_PART = 5
"""Of safetensors: the shard, its index, the texts, the records, and ``part.json``."""


class Shape(NamedTuple):
    """Rows of an answer, and their width: every layer and site together."""

    rows: int
    width: int
    layers: int = 1

    @property
    def row_bytes(self) -> int:
        """Bytes of an answer's rows in bfloat16."""
        return self.rows * self.width * self.layers * 2


class Model(NamedTuple):
    """A model that is extrapolated to."""

    name: str
    shape: Shape


MODELS = (
    Model("135M, last layer", Shape(128, 576)),
    Model("8B, last layer", Shape(256, 4096)),
    Model("70B, five layers", Shape(512, 8192, 5)),
)
ANSWERS = (10**6, 10**7, 10**8, 10**9)
HOSTS = (1, 10, 100)


class Measured(NamedTuple):
    """One store: its answers, its sizes in bytes, and seconds."""

    answers: int
    shape: Shape
    file_bytes: int
    text_bytes: int
    export_bytes: int
    export_files: int
    write: float
    export: float
    export_opened: float
    open: float
    page: float
    counted: float
    read: float
    """Of one state of one answer, at random."""

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows."""
        return self.answers * self.shape.row_bytes


def pages(nbytes: int) -> int:
    """Bytes of the file that a value takes which has pages of its own."""
    return -(-(nbytes + _PAGE_HEADER) // PAGE) * PAGE


def answer_bytes(shape: Shape, text: int, small: float) -> float:
    """Bytes of a store's file for each answer.

    Each layer's rows are one value, and the text is one; a value of more than half a page has whole
    pages. ``small`` is what its other records take together: where its rows are, its place in the
    order and in the lists of the index.

    Args:
        shape: its rows.
        text: bytes of its record.
        small: bytes of all others.
    """
    rows = shape.layers * pages(shape.rows * shape.width * 2)
    return rows + (pages(text) if text > _INLINE else text) + small


def measure(folder: Path, answers: int, shape: Shape) -> Measured:
    """Write a store of so many answers, export it, and ask it questions."""
    path, out = folder / "s", folder / "export"
    block = np.ones((shape.rows, shape.width), np.uint16)
    text = len(layout.dump(layout.with_head(document(answers, shape.rows), answers)))
    write = _timed(lambda: _write(path, answers, block))
    export = _timed(lambda: export_store(path, out, format="safetensors", append=True))
    files = [file for file in out.rglob("*") if file.is_file()]
    with open_store(path) as store:
        keys = list(islice(store, 0, None, max(answers // _READS, 1)))[:_READS]
        np.random.default_rng(0).shuffle(keys)
        read = _timed(lambda: [store[key].rows(_LAYER, -1) for key in keys]) / len(keys)
        found = Measured(
            answers,
            shape,
            (path / "data.mdb").stat().st_size,
            text,
            sum(file.stat().st_size for file in files),
            len(files),
            write,
            export,
            min(_timed(lambda: open_store(out).close()) for _ in range(3)),
            0.0,
            min(_timed(lambda: list(select(store, limit=20))) for _ in range(5)),
            min(_timed(lambda: counts(store)) for _ in range(5)),
            read,
        )
    opened = min(_timed(lambda: open_store(path).close()) for _ in range(5))
    shutil.rmtree(path)
    shutil.rmtree(out)
    return found._replace(open=opened)


def _write(path: Path, answers: int, block: np.ndarray) -> None:
    writer = StoreWriter(path, role="bench")
    for number in track(range(answers), f"{answers} answers"):
        writer.put_capture(capture(number, [_LAYER], block))
        writer.put_entry(document(number, len(block)))
        if (number + 1) % _AT_ONCE == 0:
            writer.flush(None)
    writer.close(600)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Rates(NamedTuple):
    """Seconds for an answer, and for a byte of rows."""

    answer: float
    byte: float

    def seconds(self, answers: float, shape: Shape) -> float:
        """For so many answers."""
        return answers * (self.answer + shape.row_bytes * self.byte)


def solve(narrow: Measured, wide: Measured, what: str) -> Rates:
    """From two stores whose answers differ in their rows only."""
    one = getattr(narrow, what) / narrow.answers
    other = getattr(wide, what) / wide.answers
    byte = max(other - one, 0.0) / (wide.shape.row_bytes - narrow.shape.row_bytes)
    return Rates(max(one - byte * narrow.shape.row_bytes, 0.0), byte)


def small_bytes(largest: Measured) -> float:
    """Bytes for each answer that neither rows nor text explain, from the largest store."""
    return largest.file_bytes / largest.answers - answer_bytes(
        largest.shape, largest.text_bytes, 0.0
    )


def measured_table(found: Iterable[Measured], small: float) -> Table:
    """What was measured, beside the formula for bytes."""
    table = Table(
        *("answers", "rows", "bytes an answer", "formula", "written", "exported"),
        *("opened", "first page", "counted", "one state", "the export opened"),
    )
    for one in found:
        formula = answer_bytes(one.shape, one.text_bytes, small)
        table.add_row(
            f"{one.answers:,}",
            f"{one.shape.rows} x {one.shape.width}",
            f"{one.file_bytes / one.answers:,.0f}",
            f"{formula:,.0f} ({100 * (formula * one.answers / one.file_bytes - 1):+.1f} %)",
            f"{one.answers / one.write:,.0f}/s",
            f"{one.answers / one.export:,.0f}/s",
            *map(_ms, (one.open, one.page, one.counted, one.read, one.export_opened)),
        )
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"


def extrapolated_table(write: Rates, export: Rates, text: int, small: float) -> Table:
    """Bytes, files and hours of what does not fit here, for each number of hosts."""
    table = Table(
        *("answers", "of a model", "on each of 1, 10, 100 hosts"),
        *("files of the export", "written in", "exported in"),
    )
    for answers in ANSWERS:
        for model in MODELS:
            size = answers * answer_bytes(model.shape, text * model.shape.rows // 128, small)
            parts = max(1, round(answers * model.shape.row_bytes / PART_BYTES))
            table.add_row(
                f"{answers:,}",
                model.name,
                ", ".join(_size(size / hosts) for hosts in HOSTS),
                f"{parts * FILES_OF_A_PART + 1:,}",
                *(
                    ", ".join(_duration(rate.seconds(answers / n, model.shape)) for n in HOSTS)
                    for rate in (write, export)
                ),
            )
    return table


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.3g} PB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description="How a store grows.")
    parser.add_argument("--answers", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--wide", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--folder", type=Path, help="where the stores are made; removed afterwards")
    add_flag(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        narrow = [measure(Path(folder), count, Shape(128, 64)) for count in options.answers]
        wide = [measure(Path(folder), count, Shape(128, 576)) for count in options.wide]
    small = small_bytes(narrow[-1])
    write, export = (solve(narrow[-1], wide[-1], what) for what in ("write", "export"))
    terminal = PlainConsole()
    measured = measured_table([*narrow, *wide], small)
    extrapolated = extrapolated_table(write, export, narrow[-1].text_bytes, small)
    terminal.print(measured)
    terminal.print(extrapolated)
    for what, rates in (("written", write), ("exported", export)):
        terminal.print(
            f"{what}: {1e6 * rates.answer:.0f} us an answer and {1e9 * rates.byte:.2f} ns a byte; "
            f"{small:.0f} bytes an answer beside rows and text"
        )
    if options.docs:
        record(options.docs, measured)
        record(f"{options.docs}-extrapolated", extrapolated)


if __name__ == "__main__":
    main()
