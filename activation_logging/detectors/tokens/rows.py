"""Rows that a fit passes over many times: in memory where they fit, else in a file of its own.

A store's rows lie scattered over its entries, with other layers between them. One pass over the
store writes those of one layer side by side, and the passes of a fit read that.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

States = npt.NDArray[np.float32]

CHUNK = 16_384
"""Rows of one step of a pass."""
MEMORY = 512 << 20
"""Largest size of rows that are held in memory, bytes."""


class Rows(Protocol):
    """Rows ``[n, width]``, float32, that can be passed over in chunks."""

    shape: tuple[int, int]

    def chunks(self) -> Iterator[tuple[slice, States]]:
        """Each part of the rows and where it stands; what it gave before may be overwritten."""
        ...


class InMemory:
    """Rows of an array."""

    def __init__(self, X: npt.NDArray[Any]) -> None:
        self._X = np.asarray(X, np.float32)
        self.shape = self._X.shape

    def chunks(self) -> Iterator[tuple[slice, States]]:
        """Views of the array."""
        for start in range(0, len(self._X), CHUNK):
            part = slice(start, min(start + CHUNK, len(self._X)))
            yield part, self._X[part]


class OnDisk:
    """Rows in a file without a name, which goes away with the object; one chunk is in memory.

    Raises:
        DatasetError: the file cannot be written.
    """

    def __init__(self, parts: Iterable[States], width: int) -> None:
        count = 0
        try:
            self._file = tempfile.TemporaryFile(prefix="activation-logging-")  # noqa: SIM115 - kept
            for part in parts:
                self._file.write(np.ascontiguousarray(part, np.float32).data)
                count += len(part)
            self._file.flush()
        except OSError as error:
            raise DatasetError(
                f"the states do not fit in memory, and {tempfile.gettempdir()} does not take them "
                f"({error.strerror}); set TMPDIR to a folder with room"
            ) from None
        self.shape = (count, width)
        self._buffer = np.empty((min(CHUNK, count), width), np.float32)

    def chunks(self) -> Iterator[tuple[slice, States]]:
        """One buffer, filled again for each part."""
        self._file.seek(0)
        for start in range(0, self.shape[0], CHUNK):
            part = slice(start, min(start + CHUNK, self.shape[0]))
            into = self._buffer[: part.stop - start]
            self._file.readinto(into.data.cast("B"))
            yield part, into


def gather(parts: Iterable[States], count: int, width: int, memory: int = MEMORY) -> Rows:
    """Rows from the parts that a store gives.

    Args:
        parts: ``[some, width]`` each.
        count: number of rows in all.
        width: number of elements of a row.
        memory: largest size that is held in memory, bytes; more goes into a file in the folder for
            temporary files (``TMPDIR``).
    """
    if count * width * 4 > memory:
        return OnDisk(parts, width)
    joined = np.empty((count, width), np.float32)
    at = 0
    for part in parts:
        joined[at : at + len(part)] = part
        at += len(part)
    return InMemory(joined)


def moments(
    rows: Rows, weight: npt.NDArray[np.float64], use: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of every column for ``k`` choices of rows, ``[width, k]`` each.

    Args:
        rows: ``[n, width]``.
        weight: what each row counts for, ``[n]``.
        use: which rows each choice has, ``[n, k]``.

    Returns:
        Means and deviations; a constant column has a deviation of 1.
    """
    total = np.zeros((rows.shape[1], use.shape[1]))
    squares = np.zeros_like(total)
    shift: npt.NDArray[np.float32] | None = None
    for part, X in rows.chunks():
        # Beside the mean of the first rows the squares lose no digits.
        shift = X.mean(axis=0) if shift is None else shift
        moved = X - shift
        counted = (weight[part, None] * use[part]).astype(np.float32)
        total += moved.T @ counted
        moved *= moved
        squares += moved.T @ counted
    assert shift is not None
    size = weight @ use
    mean = total / size
    spread = np.sqrt(np.maximum(squares / size - mean**2, 0.0))
    mean += shift[:, None]
    return mean, np.where(spread <= 1e-6 * np.abs(mean), 1.0, spread)
