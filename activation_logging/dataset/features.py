"""Reading states: one pass over the store for as many layers and positions as are wanted."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.layers import Source
from activation_logging.dataset.positions import Place, Rows, find_rows, pool_rows
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.progress import Progress, silent, track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from activation_logging.dataset.examples import Examples
    from activation_logging.store import Entry

BLOCK_BYTES = 512 << 20
"""How much of a sweep is held in memory at once, bytes."""


class Block(NamedTuple):
    """The features of one layer, site or head at several positions.

    ``layer`` is its label, see :mod:`.layers`. ``X[:, p]`` is float32 ``[n, width]``; NaN for
    answers that have no state at that position.
    """

    layer: int | str
    X: npt.NDArray[np.float32]


class Located(NamedTuple):
    """Where the states of several positions are stored.

    ``rows[i][p]`` are the rows of example ``i`` at position ``p``, or None. ``reasons`` is
    ``[n, positions]``: the reason why there is no state, and an empty text where there is one.
    """

    rows: list[list[Rows | None]]
    reasons: npt.NDArray[np.object_]

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Whether there is a state, ``[n, positions]``."""
        return np.asarray(self.reasons == "", dtype=bool)


def locate(examples: Examples, positions: Sequence[str | int]) -> Located:
    """Look for every position in every example; reads nothing from the store."""
    found = [[_rows_or_reason(name, place) for name in positions] for place in examples.places]
    reasons = np.array([[reason for _, reason in row] for row in found], dtype=object)
    return Located(
        [[rows for rows, _ in row] for row in found],
        reasons.reshape(len(examples), len(positions)),
    )


def _rows_or_reason(position: str | int, place: Place) -> tuple[Rows | None, str]:
    try:
        return find_rows(position, place), ""
    except InputMissing as missing:
        return None, str(missing)


def read_blocks(
    examples: Examples,
    layers: Sequence[int | str],
    positions: Sequence[str | int],
    *,
    progress: Progress = silent,
) -> Iterator[Block]:
    """Features of every layer in turn, reading the store as few times as memory allows.

    Raises:
        DatasetError: a state is not finite; the message says where.
    """
    located = locate(examples, positions)
    for chunk in _chunks(examples, layers, len(positions)):
        X = [
            np.full((len(examples), len(positions), examples.width(layer)), np.nan, np.float32)
            for layer in chunk
        ]
        what = f"reading layers {chunk[0]}-{chunk[-1]}" if len(chunk) > 1 else f"layer {chunk[0]}"
        for row, entry in enumerate(track(examples.entries(), what, len(examples), progress)):
            for column, rows in enumerate(located.rows[row]):
                vectors = [] if rows is None else read_vectors(entry, chunk, rows)
                for number, vector in enumerate(vectors):
                    X[number][row, column] = vector
        for number, layer in enumerate(chunk):
            _refuse_nan(examples, layer, positions, X[number], located.there)
            yield Block(layer, X[number])


def _chunks(
    examples: Examples, layers: Sequence[int | str], positions: int
) -> Iterator[list[int | str]]:
    """Layers whose features go into memory together."""
    chunk: list[int | str] = []
    size = 0
    for layer in layers:
        one = len(examples) * positions * examples.width(layer) * 4
        if chunk and size + one > BLOCK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(layer)
        size += one
    if chunk:
        yield chunk


def read_rows(entry: Entry, layer: int | str, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows of one layer, site or head, ``[rows, width]``; float16 stays as it is."""
    site, head = Source.of(layer, entry.num_layers)
    if head is None:
        return entry.rows(site, start, stop)
    return entry.site_rows(site, start, stop)[:, head]


def read_vector(entry: Entry, layer: int | str, rows: Rows) -> npt.NDArray[np.float32]:
    """One pooled state, float32 ``[width]``."""
    (vector,) = read_vectors(entry, [layer], rows)
    return vector.copy()  # a view of one head would keep all heads in memory


def read_vectors(
    entry: Entry, layers: Iterable[int | str], rows: Rows
) -> Iterator[npt.NDArray[np.float32]]:
    """The pooled states of layers, sites or heads in turn; heads of one site are read together."""
    named = (Source.of(layer, entry.num_layers) for layer in layers)
    for site, sources in groupby(named, key=attrgetter("site")):
        part = entry.rows(site, rows.start, rows.stop).astype(np.float32, copy=False)
        pooled = pool_rows(part, rows.pool)
        for source in sources:
            whole = source.head is None
            yield pooled if whole else pooled[source.columns(entry.shape_of(site).shape)]


def _refuse_nan(
    examples: Examples,
    layer: int | str,
    positions: Sequence[str | int],
    X: npt.NDArray[np.float32],
    there: npt.NDArray[np.bool_],
) -> None:
    bad = there & ~np.isfinite(X).all(axis=2)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DatasetError(
            f"{int(bad.any(axis=1).sum())} answers have states that are not finite (the first: "
            f"{examples.keys[row]}, layer {layer}, {positions[column]}); the model or its number "
            "format overflowed there: delete them, or leave them out (broken='skip', --skip-broken)"
        )


def finite(
    examples: Examples,
    layers: Sequence[int | str],
    positions: Sequence[str | int],
    *,
    progress: Progress = silent,
) -> Examples:
    """Only the examples whose states are all finite; the others are counted."""
    located = locate(examples, positions)
    good = [
        all(
            np.isfinite(vector).all()
            for rows in located.rows[row]
            if rows is not None
            for vector in read_vectors(entry, layers, rows)
        )
        for row, entry in enumerate(
            track(examples.entries(), "looking for NaN", len(examples), progress)
        )
    ]
    return examples.take(np.flatnonzero(good), why="with states that are not finite")
