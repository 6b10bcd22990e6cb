"""The size of the memory map.

A map uses address space but no memory, so a store normally gets a far larger map than it needs.
Batch systems limit the address space (``ulimit -v``). Under such a limit a store gets a map of the
necessary size, which grows with the store.
"""

from __future__ import annotations

import mmap

from activation_logging.errors import StoreError

MAP_SIZE = 1 << 40
"""Size of a map without a limit, bytes."""
_STEP = 64 << 20
"""Reserve of a map beyond its need under a limit, bytes."""


def fitting_map_size(least: int, *, wanted: int = MAP_SIZE, have: int = 0) -> int:
    """A possible size for a map that must hold ``least`` bytes.

    The size is tested with a map of its own, because LMDB removes the old map before it requests
    the new one.

    Args:
        least: smallest size, bytes.
        wanted: preferred size, bytes.
        have: size of the map that is replaced, bytes.

    Raises:
        StoreError: the process's limit on address space is too low.
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
        # A private read-only map uses address space but no memory.
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ).close()
    except (OSError, OverflowError):
        return False
    return True
