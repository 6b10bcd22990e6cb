"""The formats that a store can be exported to: one file each, found by name.

Another package adds a format in its ``pyproject.toml``::

    [project.entry-points."activation_logging.export_formats"]
    csv = "my_package.csv:FORMAT"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from activation_logging.export.manifest import Part
    from activation_logging.export.plan import Plan
    from activation_logging.export.verified import Files
    from activation_logging.progress import Progress

    RowsOf = Callable[[int, str, str], npt.NDArray[Any]]
    """Gives the rows ``[rows, width]`` of an entry: its number in the part, its key, a column."""


@dataclass(frozen=True)
class PartRows:
    """A part of an export whose rows are to be read.

    ``starts`` is int64 ``[entries + 1]``: the number of each entry's first row in the part.
    """

    files: Files
    part: Part
    starts: npt.NDArray[np.int64]

    def file(self, name: str) -> Path:
        """A file that the format has written; StoreCorrupt if it is not as it was."""
        return self.files.get(self.part, name)

    def below(self, start: str) -> list[Path]:
        """All files whose names begin so."""
        return self.files.below(self.part, start)

    def bounds(self, number: int) -> tuple[int, int]:
        """The first row of an entry in the part, and the one after its last."""
        return int(self.starts[number]), int(self.starts[number + 1])


@dataclass(frozen=True)
class Format:
    """A way to write a store.

    Args:
        name: what ``--format`` takes.
        description: one sentence about what is written.
        write: writes the plan's entries into an empty folder.
        needs: modules, as imported, that the extra ``export`` brings.
        as_stored: each entry keeps its stored type; else all have the type of the plan.
        read: opens a part for reading its rows back; without it the format is for other programs
            only.
    """

    name: str
    description: str
    write: Callable[[Plan, Path, Progress], None]
    needs: tuple[str, ...] = ()
    as_stored: bool = False
    read: Callable[[PartRows], RowsOf] | None = None


FORMATS = Registry(
    "export format",
    Format,
    "activation_logging.export_formats",
    {
        name: f"activation_logging.export.{name}:FORMAT"
        for name in ("parquet", "safetensors", "npy", "zarr")
    },
)
