"""The pages of an LMDB file: how many are in use, and whether they fit together.

LMDB trusts its file. It reports some damaged pages, and others kill the process (SIGBUS, SIGABRT).
The walker that py-lmdb brings reads the file as bytes, page by page, so nothing in it can do harm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from activation_logging.store import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_PAGES_OF = re.compile(
    r"main/(.+) DB: walked (\d+) \w+ pages(?: \((\d+) with dup sub-trees\))?, record says (\d+)"
)


def used_bytes(stats: Iterable[Mapping[str, int]]) -> int:
    """Bytes of all pages that hold something, given LMDB's statistics of every database."""
    kinds = ("branch_pages", "leaf_pages", "overflow_pages")
    return sum(found["psize"] * sum(found[kind] for kind in kinds) for found in stats)


def walk(file: Path) -> list[str] | None:
    """The problems of a data file's pages, a sentence each.

    The time is proportional to the number of records, whatever their size. Pages that are reused
    meanwhile look damaged, so keep a read transaction open if other processes write to the file.

    Returns:
        None if the installed lmdb has no verifier. lmdb 3.0 introduced it.
    """
    try:
        from lmdb.verify import VerifyError, _Verifier
    except ImportError:
        return None
    with file.open("rb") as opened:
        size = file.stat().st_size
        walker = _Verifier(opened, size)
        try:
            said: list[str] = walker.verify()
        except VerifyError as error:
            return [str(error)]
        # The verifier checks only the first page of a value with several pages, so check here that
        # the file contains the last used page. `live` has one byte per page.
        end = (walker.live.rfind(1) + 1) * walker.psize
    found = [problem for problem in said if not _is_miscount(problem)]
    if end > size:
        found.append(f"the file ends at byte {size}, its last used page at byte {end}")
    return found


def _is_miscount(problem: str) -> bool:
    """Whether LMDB itself has counted too many pages of a database of sorted duplicates.

    It does so whenever all duplicates of a key are deleted that had pages of their own. Nothing
    depends on that count: it is bookkeeping, and the pages themselves are checked one by one.
    """
    found = _PAGES_OF.fullmatch(problem)
    if found is None or found[1].encode() not in layout.DUPLICATES:
        return False
    return int(found[4]) > int(found[3] or found[2])
