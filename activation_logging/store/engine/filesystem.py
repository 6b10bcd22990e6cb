"""The file system of a store: its type, and space for the lock file."""

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
"""File systems whose memory maps do not show another machine's writes at once, or whose locks do
not work across machines. LMDB's manual forbids both."""

# From linux/fs.h.
_GET_FLAGS, _SET_FLAGS, _NO_COPY_ON_WRITE = 0x80086601, 0x40086602, 0x00800000

_MOUNTS = Path("/proc/self/mounts")
_ESCAPE = re.compile(r"\\([0-7]{3})")
"""Escapes of spaces and other characters in the list of mounts."""


def network_type(path: Path, mounts: Path | None = None) -> str | None:
    """The type of the network file system that holds ``path``; None if local or unknown.

    Args:
        path: a file or folder, resolved. It need not exist.
        mounts: a list of mounts to read in place of the kernel's.
    """
    try:
        lines = (mounts or _MOUNTS).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, depth = "", -1
    for line in lines:
        _, mounted_on, kind, *_ = line.split()
        mount = Path(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), mounted_on))
        # If one folder has two mounts, the later hides the earlier.
        if path.is_relative_to(mount) and len(mount.parts) >= depth:
            found, depth = kind, len(mount.parts)
    return found if found in NETWORK_TYPES else None


def reserve(file: Path, size: int) -> None:
    """Allocate disk space for a file that will be written through a memory map.

    A write to a page without disk space kills the process (SIGBUS). If all space is allocated, the
    file is not opened, because closing it would release this process's locks on it. Systems without
    ``posix_fallocate`` (macOS) write zeros to a new file.

    Args:
        file: the file; it is created if it does not exist.
        size: length of a new file, bytes.

    Raises:
        OSError: the disk is full, or permission is missing.
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
    """Switch copy-on-write off on btrfs: there each write needs new space, which may be missing.

    Only an empty file can be marked. Other file systems do not know or do not need the mark.
    """
    if sys.platform != "linux":
        return
    import fcntl

    with suppress(OSError):
        flags = bytearray(struct.pack("l", 0))
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        marked = struct.unpack("l", flags)[0] | _NO_COPY_ON_WRITE
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", marked))
