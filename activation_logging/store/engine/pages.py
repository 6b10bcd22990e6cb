"""Checks the pages of an LMDB file without LMDB.

LMDB trusts its file. It reports some damaged pages and crashes on others (SIGBUS, SIGABRT). The
verifier of py-lmdb reads the file as bytes, page by page, so damage cannot crash it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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
            found: list[str] = walker.verify()
        except VerifyError as error:
            return [str(error)]
        # The verifier checks only the first page of a value with several pages, so check here that
        # the file contains the last used page. `live` has one byte per page.
        end = (walker.live.rfind(1) + 1) * walker.psize
    if end > size:
        found.append(f"the file ends at byte {size}, its last used page at byte {end}")
    return found
