"""What an export says of itself: ``export.json``, and a ``part.json`` in each of its parts.

An export is made of *parts*, each of which one format has written. One that was written at once to
a local folder has a single part, which is that folder. Others have a folder for each. A part is
finished when its ``part.json`` is there, and belongs to the export when ``export.json`` lists it.
That file is written last. It has the size and the SHA-256 of every file, and readers open no other.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import Meta, Struct, ValidationError, convert, field, to_builtins

from activation_logging import __version__
from activation_logging.errors import NotAStore, StoreCorrupt, StoreVersionError
from activation_logging.files import sha256
from activation_logging.store import layout
from activation_logging.store.schema import Layer, Rows, Size
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from activation_logging.locations import Place

NAME = layout.EXPORT
PART = "part.json"
VERSION = 2
"""Exports of version 0.2 have no version and no sums, and can be read by other programs only."""

Count = Annotated[int, Meta(ge=0)]
T = TypeVar("T", bound=Struct)

_FILE = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[^/\\\x00-\x1f][^\\\x00-\x1f]*")
"""A name below the part's folder: no absolute path, and none that leads out of it."""


class File(Struct, frozen=True):
    """A file's size in bytes, and its SHA-256 in hexadecimal."""

    bytes: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Head(Struct, frozen=True):
    """What all parts of an export share.

    ``writers`` are the ids of the processes that have written the store, which no other store has.
    ``label`` and ``tags`` are the conditions that the entries met.
    """

    format: str
    model: str
    layers: list[Layer | str]
    sites: dict[str, list[Size]]
    num_layers: Layer
    hidden_size: Rows
    dtype: str
    position: str | int | None = None
    label: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    writers: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[Layer | str, list[Size]]:
        """The shape of a row of each layer or site."""
        return {layer: self.sites.get(str(layer), [self.hidden_size]) for layer in self.layers}


class Listed(Struct, frozen=True):
    """An entry of a part, and where its record lies in ``records.jsonl``.

    ``answer`` is :func:`.merge.answer_digest`, by which it is found again in a store.
    ``rows`` is None where only its labels and arrays are there: an earlier part has the rest.
    ``at`` is the offset of its line; ``lengths`` are the bytes of its document, its capture, its
    labels and its arrays. ``beside`` is a digest of the last two.
    """

    key: str
    request_id: str
    capture: str
    answer: str
    rows: Rows | None
    beside: str
    at: Count
    lengths: tuple[Count, Count, Count, Count]


class PartRecord(Struct, frozen=True):
    """What ``part.json`` says of a part: its files but for itself."""

    head: Head
    entries: list[Listed]
    files: dict[str, File]


class Part(Struct, frozen=True):
    """A part as ``export.json`` lists it; ``files`` are named relative to its folder."""

    folder: str
    entries: Count
    rows: Count
    files: dict[str, File]

    def inside(self, name: str) -> str:
        """A file's name relative to the export."""
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def names(self) -> list[str]:
        """The names of all files, relative to the export."""
        return [self.inside(name) for name in self.files]


class Manifest(Struct, frozen=True):
    """What ``export.json`` says.

    ``store`` is where the store was; ``left_out`` counts its entries that are not here, by reason.
    """

    head: Head
    parts: list[Part]
    store: str = ""
    left_out: dict[str, Count] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """Number of entries."""
        return sum(part.entries for part in self.parts)

    @property
    def rows(self) -> int:
        """Number of rows of each column."""
        return sum(part.rows for part in self.parts)

    def sizes(self) -> Iterator[int]:
        """Bytes of each file that it lists."""
        return (file.bytes for part in self.parts for file in part.files.values())

    def dump(self) -> bytes:
        """The file's text."""
        record = {
            "made_by": f"activation-logging {__version__}",
            "version": VERSION,
            "store": self.store,
            "entries": self.entries,
            "rows": self.rows,
            **to_builtins(self.head),
            "left_out": self.left_out,
            "parts": to_builtins(self.parts),
        }
        return (dumps(record, indent=1) + "\n").encode()


def read_manifest(place: Place, raw: bytes | None = None) -> Manifest | None:
    """What a place's ``export.json`` says; None if there is none.

    Args:
        place: where to look.
        raw: the file, if it has been read already.

    Raises:
        StoreVersionError: another version of this program wrote it.
        StoreCorrupt: it is damaged.
        AddressError: the place cannot be read.
    """
    raw = place.read(NAME) if raw is None else raw
    if raw is None:
        return None
    where = str(place.within(NAME))
    record = _parse(raw, where)
    version = record.get("version")
    if version != VERSION:
        raise StoreVersionError(
            f"{where} was written by another version ({str(record.get('made_by'))[:80]}), whose "
            "exports this one cannot read or append to; export again, to another place or with "
            "--overwrite"
        )
    found = _convert({**record, "head": record}, Manifest, where)
    for part in found.parts:
        _refuse_to_leave([*([part.folder] if part.folder else []), *part.files], where)
    return found


def the_manifest(place: Place) -> Manifest:
    """As :func:`read_manifest`, where there must be one.

    Raises:
        NotAStore: there is none.
    """
    found = read_manifest(place)
    if found is None:
        raise NotAStore(
            f"{place.address} is no export: {NAME} is not there, which is written last; if an "
            "export to this place was interrupted, `export --append` goes on with it"
        )
    return found


def read_part(raw: bytes, where: str) -> PartRecord:
    """What a ``part.json`` says.

    Raises:
        StoreCorrupt: it is damaged.
    """
    found = _convert(_parse(raw, where), PartRecord, where)
    _refuse_to_leave(found.files, where)
    return found


def describe_files(folder: Path) -> dict[str, File]:
    """Size and sum of every file in a folder and those below it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): File(path.stat().st_size, sha256(path))
        for path in found
    }


def _refuse_to_leave(names: Iterable[str], where: str) -> None:
    if not all(map(_FILE.fullmatch, names)):
        raise StoreCorrupt(f"{where} lists a file of a name that leads elsewhere")


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise StoreCorrupt(f"{where} is damaged: it is no JSON object")
    return record


def _convert(record: Any, kind: type[T], where: str) -> T:
    try:
        return convert(record, kind)
    except ValidationError as error:
        raise StoreCorrupt(f"{where} is damaged: {error}") from None
