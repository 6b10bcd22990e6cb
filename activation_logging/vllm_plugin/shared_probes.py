"""How several API servers of one engine learn of a change that was asked of one of them.

vLLM starts them from one process, which makes a folder that they all inherit the name of. The one
that changes the probes writes all of them to a file there; the others look at its time whenever
somebody asks something of them. Before workers use them it announces them in another file, so that
the others know the scores of answers on their way. A lock keeps two from changing them at once.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.detectors.probe_parcel import pack, unpack
from activation_logging.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from activation_logging.detectors.served_probes import ServedProbes

_VARIABLE = "_ACTIVATION_SHARED_FOLDER"
_folder: tempfile.TemporaryDirectory[str] | None = None
"""It goes away with the process that has made it."""


def share() -> None:
    """Make the folder, in the process that starts the API servers. A second call does nothing."""
    global _folder  # noqa: PLW0603 - it lives as long as the process
    if _VARIABLE not in os.environ:
        _folder = tempfile.TemporaryDirectory(prefix="activation-logging-")
        os.environ[_VARIABLE] = _folder.name


class SharedProbes:
    """The file, as one API server sees it.

    Args:
        folder: where it is, mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "probes"
        self._coming = folder / "coming"
        self._lock = folder / "lock"
        self._seen: tuple[int, int] | None = None

    @classmethod
    def here(cls) -> SharedProbes | None:
        """That of this server; None where it has one API server only."""
        folder = os.environ.get(_VARIABLE)
        return cls(Path(folder)) if folder else None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from changing the probes; waits until none of them does."""
        with self._lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def announce(self, served: ServedProbes) -> None:
        """Tell the others what workers are about to use."""
        write_whole(self._coming, pack(served))

    def coming(self) -> ServedProbes | None:
        """What was announced last; None if nothing was."""
        try:
            return unpack(self._coming.read_bytes())
        except FileNotFoundError:
            return None

    def put(self, served: ServedProbes) -> None:
        """Tell the others."""
        write_whole(self._file, pack(served))
        self._seen = self._stamp()

    def news(self) -> ServedProbes | None:
        """The probes, if another one has changed them since this was asked last."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        # Of two changes in between, the first read finds the second one's probes.
        self._seen = stamp
        return unpack(self._file.read_bytes())

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino
