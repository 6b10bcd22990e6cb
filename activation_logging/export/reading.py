"""An export as a store to read from, wherever it lies and without LMDB.

:class:`ExportStore` is a :class:`.Store` whose records come from the export's files. Whatever reads
a store (entries, data sets, studies, reports) reads an export by the same code; only its view of
the records is another (:mod:`.contents`). There is no index, so entries are counted one by one.
Files are fetched when they are first needed, and checked before they are read.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from activation_logging.errors import DatasetError, StoreReadOnly
from activation_logging.export.contents import Records, Table
from activation_logging.export.manifest import NAME, PART, Listed, Part, read_part, the_manifest
from activation_logging.export.records import RECORDS, column_of, span
from activation_logging.export.registry import FORMATS, PartRows
from activation_logging.export.verified import Files
from activation_logging.locations import Address, place_of
from activation_logging.store import RowBatch, Store, layout, schema
from activation_logging.store.reading import RowReader
from activation_logging.store.rows import NUMPY_TYPES, shape_in

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from activation_logging.export.registry import RowsOf
    from activation_logging.sites import Site
    from activation_logging.store.engine.environment import Environment
    from activation_logging.store.engine.snapshot import Snapshot

_HELD_BYTES = 256 << 20
"""Rows that are held in memory, because the next read often wants others of the same answer."""
_READ_AT_ONCE = 256
"""Answers whose rows are in memory together when many are read."""


class ExportStore(Store):
    """The entries of an export, read-only.

    Args:
        path: the export's folder or address.

    Raises:
        NotAStore: there is no export.
        StoreCorrupt: its manifest is damaged, or a file is not as it says.
        StoreVersionError: another version of this program made it.
        DatasetError: it has one row per answer only.
        AddressError: the address cannot be reached, or gives no right to it.
    """

    is_export = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._open_export(path)

    def _open_export(self, path: str | os.PathLike[str]) -> None:
        opened = Opened(path)
        self.path = cast("Path", opened.path)
        self.writable = False
        # It offers what reading asks of an environment: `inherited`, `path` and `snapshot`.
        self._environment = cast("Environment", opened)
        self._row_reader = RowReader(self)

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        self._open_export(state[0])

    def read(  # type: ignore[override] # as overloaded there
        self, keys: Iterable[str], *, position: str | int | None = None, **where: Any
    ) -> npt.NDArray[Any] | RowBatch:
        """As :meth:`.Store.read`, some answers at a time, whose rows are read whole."""
        read_some: Any = super().read
        if isinstance(keys, str):
            raise TypeError("keys is a list of keys, not one of them")
        keys = list(keys)
        starts = range(0, max(len(keys), 1), _READ_AT_ONCE)
        some = [keys[start : start + _READ_AT_ONCE] for start in starts]
        found: list[Any] = [read_some(each, position=position, **where) for each in some]
        if position is not None:
            return cast("npt.NDArray[Any]", np.concatenate(found))
        counts = np.concatenate([np.diff(batch.offsets) for batch in found])
        values = np.concatenate([batch.values for batch in found])
        return RowBatch(values, np.cumsum([0, *counts], dtype=np.int64))

    def transact(self, action: Any) -> Any:  # noqa: ARG002 - none is run
        """Refuse: an export is written by ``export`` only."""
        raise StoreReadOnly(_only_read(self.path))

    @property
    def replaced(self) -> bool:
        """Whether the folder has another export by now, such as a longer one, or none.

        False of an address: it is read as it was when it was opened.
        """
        return cast("Opened", self.environment).file != _file_of(self.path)

    def readers(self) -> list[dict[str, int]]:
        """None: there are no transactions."""
        return []

    def disk_bytes(self) -> tuple[int, int]:
        """The bytes of its files, twice: they take as much as they hold."""
        size = cast("Opened", self.environment).nbytes
        return size, size


def _file_of(where: Path | Address) -> object:
    """Tells an ``export.json`` on this machine from its successor."""
    if isinstance(where, Address):
        return None
    try:
        status = (where / NAME).stat()
    except OSError:
        return "none"
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _only_read(path: object) -> str:
    return (
        f"{path} is an export, which is only read: change the store that it was made of, and bring "
        "it up to date with `activation-logging export --append`"
    )


class _At(NamedTuple):
    """An entry's place in a part; ``number`` counts the part's entries that have rows."""

    part: int
    listed: Listed
    number: int


class Opened:
    """An opened export: its parts, its entries, and their rows. Threads may share it."""

    inherited = False
    """Unlike an LMDB environment, it may be used after a fork."""
    writable = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = place_of(path)
        self.path: Path | Address = place.address.absolute()
        self.file = _file_of(self.path)
        self._manifest = the_manifest(place)
        position = self._manifest.head.position
        if position is not None:
            raise DatasetError(
                f"{self.path} has one row of each answer only ({position}); data sets and reports "
                "need all: export without --position"
            )
        self._files = Files(place)
        self._lock = threading.RLock()
        self._readers: dict[int, RowsOf] = {}
        self._texts: dict[int, mmap.mmap] = {}
        self._held: OrderedDict[tuple[str, Site], npt.NDArray[Any]] = OrderedDict()
        self._starts: list[npt.NDArray[np.int64]] = []
        self._entries: dict[str, _At] = {}
        self._beside: dict[str, _At] = {}
        for number, part in enumerate(self._manifest.parts):
            self._list(number, part)
        self.tables = self._tables()

    def _list(self, number: int, part: Part) -> None:
        file = self._files.get(part, PART)
        rows: list[int] = []
        for one in read_part(file.read_bytes(), str(file)).entries:
            at = _At(number, one, len(rows))
            if one.rows is not None:
                self._entries[one.key] = at
                rows.append(one.rows)
            self._beside[one.key] = at
        self._starts.append(np.cumsum([0, *rows], dtype=np.int64))

    def _tables(self) -> dict[bytes, Table]:
        """The databases of a store but for rows, labels and arrays: keys, and their values."""
        keys = list(self._entries)
        captures, requests = {}, defaultdict(list)
        for key, at in self._entries.items():
            captures[layout.id_key(at.listed.capture)] = key
            for name in {at.listed.request_id, at.listed.capture}:
                requests[layout.id_key(name)].append(key.encode())
        made = layout.dump({"created": hashlib.sha256(self._manifest.dump()).hexdigest()})
        return {
            # What follows a store knows it by this (:meth:`.Feed.identity`).
            layout.META: Table([layout.FORMAT_KEY], lambda _: [made]),
            layout.MAIN: Table(
                sorted(key.encode() for key in keys),
                lambda raw: [self.text(raw.decode(), "document")],
            ),
            layout.LOG: Table(
                [layout.sequence_key(number) for number in range(len(keys))],
                lambda raw: [keys[layout.sequence_number(raw)].encode()],
            ),
            layout.CAPTURES: Table(
                sorted(captures), lambda raw: [self.text(captures[raw], "capture")]
            ),
            layout.REQUESTS: Table(sorted(requests), lambda raw: requests[raw]),
        }

    def __getattr__(self, name: str) -> Any:
        """What else an LMDB environment has: it is for writing and upkeep."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise StoreReadOnly(_only_read(self.path))

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self._manifest.sizes())

    def snapshot(self) -> Snapshot:
        """A view of the records, for one thread at a time."""
        return cast("Snapshot", Records(self))

    def text(self, key: str, name: str) -> bytes:
        """One field of an entry's line in ``records.jsonl``, as it was written."""
        at = (self._beside if name in {"labels", "arrays"} else self._entries)[key]
        with self._lock:
            if at.part not in self._texts:
                path = self._files.get(self._manifest.parts[at.part], RECORDS)
                with path.open("rb") as file:
                    self._texts[at.part] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._texts[at.part][span(at.listed, name)]

    def rows(self, key: str, site: Site) -> npt.NDArray[Any]:
        """The rows of one site of an entry, ``[rows, width]`` in their stored type.

        Raises:
            StoreCorrupt: a file is missing, half written or damaged.
            DatasetError: the format cannot be read back.
        """
        with self._lock:  # the formats' libraries promise nothing to threads
            if (key, site) in self._held:
                self._held.move_to_end((key, site))
                return self._held[key, site]
            at = self._entries[key]
            record = schema.capture(self.text(key, "capture"), f"capture of {key}")
            dtype = NUMPY_TYPES[shape_in(record, key, site).dtype]
            given = self._reader(at.part)(at.number, key, column_of(site))
            # Exported numbers are as wide as the stored ones or wider: this changes no value.
            rows = self._held[key, site] = np.ascontiguousarray(given, dtype=dtype)
            while (
                len(self._held) > 1 and sum(one.nbytes for one in self._held.values()) > _HELD_BYTES
            ):
                self._held.popitem(last=False)
            return rows

    def _reader(self, number: int) -> RowsOf:
        if number not in self._readers:
            found = FORMATS.get(self._manifest.head.format)
            if found.read is None:
                raise DatasetError(
                    f"{self.path} is in the format {found.name}, which cannot be read back; export "
                    "as parquet, safetensors, npy or zarr"
                )
            part = self._manifest.parts[number]
            self._readers[number] = found.read(PartRows(self._files, part, self._starts[number]))
        return self._readers[number]
