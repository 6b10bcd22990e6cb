"""The file system below a store: whether LMDB may trust it, and whether it has room."""

from __future__ import annotations

import os
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

NETWORK_TYPES = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs", "fuse.smbnetfs"),
    }
)
"""On these, a memory map does not show at once what another machine has written, or locks do not
reach across machines; LMDB's manual forbids both."""

# Of linux/fs.h.
_GET_FLAGS, _SET_FLAGS, _NO_COPY_ON_WRITE = 0x80086601, 0x40086602, 0x00800000

_MOUNTS = Path("/proc/self/mounts")
_ESCAPE = re.compile(r"\\([0-7]{3})")
"""How the list of mounts writes spaces and the like."""


def network_type(path: Path, mounts: Path | None = None) -> str | None:
    """The type of the network file system that holds ``path``; None for a local one.

    Args:
        path: a file or folder, resolved; it need not exist yet.
        mounts: another list of mounts than the kernel's; where there is none, nothing is known.
    """
    try:
        lines = (mounts or _MOUNTS).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, depth = "", -1
    for line in lines:
        _, mounted_on, kind, *_ = line.split()
        mount = Path(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), mounted_on))
        # Of two mounts on one folder, the later hides the earlier.
        if path.is_relative_to(mount) and len(mount.parts) >= depth:
            found, depth = kind, len(mount.parts)
    return found if found in NETWORK_TYPES else None


def reserve(file: Path, size: int) -> None:
    """Reserve disk space for a file that will be written through a memory map.

    A write to a page that the disk has no room for kills the process (SIGBUS). Does nothing where
    the space is reserved already: closing a file releases this process's locks on it. Systems
    without ``posix_fallocate`` (macOS) have a new file written with zeros.

    Args:
        file: made if it is not there.
        size: its length in bytes, if it is to be made.

    Raises:
        OSError: there is no room, or no permission.
    """
    try:
        status = file.stat()
        if not hasattr(os, "posix_fallocate") or status.st_blocks * 512 >= status.st_size:
            return
        size = status.st_size
    except FileNotFoundError:
        pass
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            _write_in_place(descriptor)
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)


def _write_in_place(descriptor: int) -> None:
    """Keep btrfs from giving each write of a file a new place, for which there may be no room.

    Only an empty file can be marked so. Other file systems do not know the mark, or need it not.
    """
    if sys.platform != "linux":
        return
    import fcntl

    with suppress(OSError):
        flags = bytearray(struct.pack("l", 0))
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        marked = struct.unpack("l", flags)[0] | _NO_COPY_ON_WRITE
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", marked))
