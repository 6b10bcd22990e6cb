"""Files of an export, each checked against the manifest before anything reads it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.errors import StoreCorrupt
from activation_logging.files import sha256
from activation_logging.locations import RemotePlace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from activation_logging.export.manifest import File, Part
    from activation_logging.locations import Place


def verified(place: Place, name: str, file: File | None) -> bytes:
    """A small file of an export as the manifest describes it.

    Raises:
        StoreCorrupt: it is not there, is half written, or differs.
    """
    where = str(place.within(name))
    raw = place.read(name)
    if raw is None or file is None:
        raise _missing(where)
    _refuse_other(where, file, len(raw), hashlib.sha256(raw).hexdigest)
    return raw


def refuse_half_written(place: Place, part: Part, sizes: Mapping[str, int]) -> None:
    """Compare the sizes of a part's files with what the part lists; ``sizes`` are those there.

    Raises:
        StoreCorrupt: a file is not there, or is half written.
    """
    for name, file in part.files.items():
        inside = part.inside(name)
        where = str(place.within(inside))
        if inside not in sizes:
            raise _missing(where)
        _refuse_other_size(where, file, sizes[inside])


class Files:
    """The files of an export's parts, on this machine. Threads may share them.

    Those of an address are fetched when they are first asked for, into a folder that goes away
    with this object.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._cache = Path()
        if isinstance(place, RemotePlace):
            self._cache = Path(tempfile.mkdtemp(prefix="activation-logging-"))
            weakref.finalize(self, _remove, self._cache, os.getpid())
        self._checked: dict[str, Path] = {}
        self._lock = threading.Lock()

    def get(self, part: Part, name: str) -> Path:
        """A file of a part, named as the part lists it.

        Raises:
            StoreCorrupt: the manifest does not list it, it is not there, is half written, or
                differs from its sum.
            AddressError: it cannot be fetched.
        """
        inside = part.inside(name)
        with self._lock:
            path = self._checked.get(inside)
            if path is None:
                path = self._checked[inside] = self._fetch(inside, part.files.get(name))
            return path

    def below(self, part: Part, start: str) -> list[Path]:
        """All files of a part whose names begin so."""
        return [self.get(part, name) for name in part.files if name.startswith(start)]

    def _fetch(self, name: str, file: File | None) -> Path:
        where = str(self.place.within(name))
        if file is None:
            raise _missing(where)
        try:
            path = self.place.local(name, self._cache)
        except FileNotFoundError:
            raise _missing(where) from None
        _refuse_other(where, file, path.stat().st_size, lambda: sha256(path))
        return path


def _remove(cache: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child, whose parent goes on reading
        shutil.rmtree(cache, ignore_errors=True)


def _missing(where: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{where} is missing from the export, or its export.json does not list it; export again "
        "with --overwrite"
    )


def _refuse_other_size(where: str, file: File, size: int) -> None:
    if size != file.bytes:
        raise StoreCorrupt(
            f"{where} has {size} bytes of {file.bytes}: it is half written; export again with "
            "--overwrite"
        )


def _refuse_other(where: str, file: File, size: int, digest: Callable[[], str]) -> None:
    _refuse_other_size(where, file, size)
    if digest() != file.sha256:
        raise StoreCorrupt(
            f"{where} is damaged: its SHA-256 is not the one that export.json lists; export again "
            "with --overwrite"
        )
