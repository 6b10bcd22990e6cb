"""The pages of an LMDB file: how many are in use, and whether they fit together.

LMDB trusts its file. It reports some damaged pages, and others kill the process (SIGBUS, SIGABRT).
The walker that py-lmdb brings reads the file as bytes, page by page, so nothing in it can do harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def used_bytes(stats: Iterable[Mapping[str, int]]) -> int:
    """Bytes of all pages that hold something, given LMDB's statistics of every database."""
    kinds = ("branch_pages", "leaf_pages", "overflow_pages")
    return sum(found["psize"] * sum(found[kind] for kind in kinds) for found in stats)


def walk(file: Path) -> list[str] | None:
    """What is wrong with the pages of a data file, a sentence each.

    Takes time in proportion to the number of records, whatever their size. Pages that are used
    again meanwhile look wrong: in a file that is written, keep a read transaction open.

    Returns:
        None if the installed lmdb has no such walker; it came with 3.0.
    """
    try:
        from lmdb.verify import VerifyError, _Verifier
    except ImportError:
        return None
    with file.open("rb") as opened:
        size = file.stat().st_size
        walker = _Verifier(opened, size)
        try:
            found: list[str] = walker.verify()
        except VerifyError as error:
            return [str(error)]
        # Of rows that fill several pages it looks at the first alone. `live` has a byte a page.
        end = (walker.live.rfind(1) + 1) * walker.psize
    if end > size:
        found.append(f"the file ends at byte {size}, what it holds at byte {end}")
    return found
