"""A package that is not ours, as if a user had installed it: entry points without pip."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def outside_package(
    folder: Path, source: str, points: Mapping[str, Mapping[str, str]], name: str = "outside"
) -> dict[str, str]:
    """Write a package of one module; the environment of a process that has it installed.

    Args:
        folder: where packages are; several of them may share it.
        source: the module's text.
        points: group of entry points -> name -> attribute of the module.
        name: the module's and the distribution's.
    """
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{key} = {name}:{value}\n" for key, value in named.items())
            for group, named in points.items()
        )
    )
    path = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}
