"""Whether the pages of a store's file fit together, found out without LMDB.

LMDB trusts its file: of a damaged page it sees some, and dies of others (SIGBUS, SIGABRT). The
walker that py-lmdb brings reads the file as bytes, page by page, so nothing in it can do harm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.store import environment
from activation_logging.store.exclusive import holder

if TYPE_CHECKING:
    import os


def structure_problems(path: str | os.PathLike[str]) -> list[str] | None:
    """What is wrong with the pages of the store at ``path``, a sentence each.

    Takes time in proportion to the number of records, whatever their size.

    Returns:
        None if the installed lmdb has no such walker (it came with 3.0), or there is no file.
    """
    try:
        from lmdb import verify as walker
    except ImportError:
        return None
    folder = Path(path).expanduser().resolve()
    if not (folder / "data.mdb").is_file():
        return None
    # In a file that others write to, pages must stay where they are for as long as this looks.
    # LMDB has opened it there already, and lives.
    view = None if holder(folder) is None else environment.acquire(folder, create=False).snapshot()
    try:
        found: list[str] = walker.verify(str(folder))
    except walker.VerifyError as error:
        return [str(error)]
    finally:
        del view
    return found
