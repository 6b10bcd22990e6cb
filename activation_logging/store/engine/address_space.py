"""How large a memory map may be.

A map takes address space and no memory, so a store gets far more than it will need. Batch systems
limit address space (``ulimit -v``): there it gets what it needs, and more as it grows.
"""

from __future__ import annotations

import mmap

from activation_logging.errors import StoreError

MAP_SIZE = 1 << 40
"""What a map gets where nothing limits it, bytes."""
_STEP = 64 << 20
"""What it gets beyond its need where something does, bytes."""


def fitting_map_size(least: int, *, wanted: int = MAP_SIZE, have: int = 0) -> int:
    """The size for a map that must hold ``least`` bytes.

    It is tried out, for LMDB lets go of the old map before it asks for the new one.

    Args:
        least: what must lie inside, bytes.
        wanted: what it should be.
        have: size of the map that it takes the place of.

    Raises:
        StoreError: this process may not have so much.
    """
    for size in (wanted if wanted >= least else 2 * least, least + _STEP, least):
        if _can_map(size - have):
            return size
    raise StoreError(
        f"{max(least - have, 0) >> 20} MiB more of address space are needed than this process may "
        "have; raise its limit (ulimit -v)"
    )


def _can_map(size: int) -> bool:
    if size <= 0:
        return True
    try:
        # What is private and only read counts as address space alone.
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ).close()
    except (OSError, OverflowError):
        return False
    return True
