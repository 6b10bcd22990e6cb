"""The text side of a part for this package's own reader: ``records.jsonl``.

Each line is one entry as a store keeps it, ``{"document":...,"capture":...,"labels":...,
"arrays":...}``: its record, that of its rows (those that are exported), its labels by evaluator,
and the arrays beside it, in base64. Where only labels or arrays have changed since an earlier part,
the first two are null.
"""

from __future__ import annotations

import base64
import hashlib
from itertools import chain
from typing import TYPE_CHECKING

from activation_logging.export.manifest import Listed
from activation_logging.sites import RESID, Site
from activation_logging.store import layout
from activation_logging.store.derived import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from activation_logging.export.plan import Column, Item
    from activation_logging.store import Entry, Store

RECORDS = "records.jsonl"
FIELDS = ("document", "capture", "labels", "arrays")
_NULL = b"null"


def write_records(
    store: Store,
    folder: Path,
    *,
    items: Sequence[Item] = (),
    columns: Sequence[Column] = (),
    changed: Iterable[str] = (),
) -> list[Listed]:
    """Write the file, and list its entries.

    Args:
        store: where they are.
        folder: where the file goes.
        items: the entries of this part.
        columns: what of their rows is exported.
        changed: keys of entries of earlier parts, of which only labels and arrays are written.
    """
    listed = []
    exported = {column.layer for column in columns}
    pairs = chain(((item.key, item) for item in items), ((key, None) for key in changed))
    with (folder / RECORDS).open("wb") as file:
        for key, item in pairs:
            entry = store[key]
            beside = _labels(entry), _arrays(entry)
            own = (_NULL, _NULL) if item is None else (_document(entry), _capture(entry, exported))
            values = (*own, *beside)
            at = file.tell()
            file.write(_line(values))
            listed.append(
                Listed(
                    entry.key,
                    entry.request_id,
                    capture_of(entry),
                    None if item is None else item.num_rows,
                    _digest(beside),
                    at,
                    (len(values[0]), len(values[1]), len(values[2]), len(values[3])),
                )
            )
    return listed


def span(listed: Listed, name: str) -> slice:
    """Where one of :data:`FIELDS` of an entry lies in the file."""
    start = listed.at
    for field, length in zip(FIELDS, listed.lengths, strict=True):
        start += len(f'{{"{field}":')
        if field == name:
            return slice(start, start + length)
        start += length
    raise KeyError(name)


def capture_of(entry: Entry) -> str:
    """The id of an entry's rows, which tells it from other answers with its key."""
    return str(entry.document["capture"])


def beside_digest(entry: Entry) -> str:
    """Differs if an entry has other labels or arrays than before."""
    return _digest((_labels(entry), _arrays(entry)))


def _line(values: Iterable[bytes]) -> bytes:
    parts = (b'"%s":%s' % (name.encode(), raw) for name, raw in zip(FIELDS, values, strict=True))
    return b"{" + b",".join(parts) + b"}\n"


def _document(entry: Entry) -> bytes:
    return layout.dump(layout.with_head(entry.document, entry.sequence))


def _capture(entry: Entry, exported: AbstractSet[int | str]) -> bytes:
    """The record of its rows, as if one segment of the entry's own had those that go out."""
    record = entry.capture_record() or {}
    layers = [layer for layer in record["layers"] if layer in exported]
    sites = {
        code: found
        for code, found in record.get("sites", {}).items()
        if str(Site.from_code(int(code))) in exported
    }
    slices = [[entry.key.encode().hex(), 0, len(entry.positions)]]
    return layout.dump({**record, "layers": layers, "sites": sites, "slices": slices})


def _labels(entry: Entry) -> bytes:
    found = sorted(entry.evaluations.items())
    return layout.dump({name: evaluation.as_json() for name, evaluation in found})


def _arrays(entry: Entry) -> bytes:
    """But for what probes said while the model answered, which the record of the rows has."""
    found = {
        name: base64.b64encode(encode(entry.derived(name), header.created)).decode()
        for name, header in entry.derived_headers().items()
        if not header.details.get("live")
    }
    return layout.dump(dict(sorted(found.items())))


def _digest(values: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(values)).hexdigest()[:32]


def column_of(site: Site) -> str:
    """What the column of a whole site is called."""
    return f"layer_{site.layer}" if site.name == RESID else str(site)
