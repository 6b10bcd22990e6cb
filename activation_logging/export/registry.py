"""The formats that a store can be exported to: one file each, found by name.

Another package adds a format in its ``pyproject.toml``::

    [project.entry-points."activation_logging.export_formats"]
    csv = "my_package.csv:FORMAT"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from activation_logging.export.plan import Plan
    from activation_logging.progress import Progress


@dataclass(frozen=True)
class Format:
    """A way to write a store.

    Args:
        name: what ``--format`` takes.
        description: one sentence about what is written.
        write: writes the plan's entries into an empty folder.
        needs: modules, as imported, that the extra ``export`` brings.
        as_stored: each entry keeps its stored type; else all have the type of the plan.
    """

    name: str
    description: str
    write: Callable[[Plan, Path, Progress], None]
    needs: tuple[str, ...] = ()
    as_stored: bool = False


FORMATS = Registry(
    "export format",
    Format,
    "activation_logging.export_formats",
    {
        name: f"activation_logging.export.{name}:FORMAT"
        for name in ("parquet", "safetensors", "npy", "zarr")
    },
)
