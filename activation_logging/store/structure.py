"""Looking at the pages of a store's file, whoever has it open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.store import environment
from activation_logging.store.exclusive import holder
from activation_logging.store.pages import walk

if TYPE_CHECKING:
    import os


def structure_problems(path: str | os.PathLike[str]) -> list[str] | None:
    """What is wrong with the pages of the store at ``path``, a sentence each.

    Returns:
        None if that cannot be told with the installed lmdb (see :mod:`.pages`), or there is no
        file.
    """
    folder = Path(path).expanduser().resolve()
    if not (folder / "data.mdb").is_file():
        return None
    # In a file that others write to, pages must stay where they are for as long as this looks.
    # LMDB has opened it there already, and lives.
    view = None if holder(folder) is None else environment.acquire(folder, create=False).snapshot()
    try:
        return walk(folder / "data.mdb")
    finally:
        del view
