"""An export in parts: made at an address, or appended to, and gone on with where it broke off.

Each part is written into a folder of this machine, sent file by file, and finished by its
``part.json``. ``export.json`` comes last. What a broken run has finished is taken over by the next
one; what it has not is deleted once there is a new ``export.json``. The folders of a run have names
of their own, so two runs at once never write to the same file. The one that ends later finds
another ``export.json`` than it began with, and refuses.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs, to_builtins

from activation_logging.errors import DatasetError, OutputExists, StoreCorrupt, StoreVersionError
from activation_logging.export.manifest import (
    NAME,
    PART,
    File,
    Head,
    Listed,
    Manifest,
    Part,
    PartRecord,
    describe_files,
    read_manifest,
    read_part,
)
from activation_logging.export.plan import Known, Named
from activation_logging.export.records import write_records
from activation_logging.export.verified import refuse_half_written, verified
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from activation_logging.export.plan import Item, Plan
    from activation_logging.export.registry import Format
    from activation_logging.locations import Place
    from activation_logging.progress import Progress
    from activation_logging.store import Store

PART_BYTES = 512 << 20
"""Entries whose rows have reached this size, in bytes, make a part."""

_FOLDER = "part-"


@dataclass
class There:
    """What is at a place before a run: the parts to go on with, and what is to be deleted.

    ``raw`` is the ``export.json`` that was there. ``head`` is what its parts share; None where
    there are none. ``known`` are their entries by the digest of the answer and by key.
    ``unfinished`` are files that nothing lists.
    """

    raw: bytes | None = None
    head: Head | None = None
    parts: list[Part] = field(default_factory=list)
    known: dict[str, dict[str, Known]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)


def look(place: Place, *, append: bool, overwrite: bool) -> There:
    """Find out what is at a place.

    Raises:
        OutputExists: something is there that is neither to be appended to nor replaced.
        StoreCorrupt: a part that is there is damaged, or one of its files is missing or half
            written.
        StoreVersionError: another version of this program wrote what is there.
        AddressError: the place cannot be read.
    """
    raw = place.read(NAME)
    names = place.sizes()
    ours = [name for name in names if name.startswith(_FOLDER)]
    if raw is None and len(ours) < len(names):
        raise OutputExists(
            f"{place.address} holds something else than an export of this program; name a place "
            "of its own"
        )
    if names and not (append or overwrite):
        what = "an export is there already" if raw else "an interrupted export is there"
        raise OutputExists(
            f"{place.address}: {what}; go on with it with --append, --overwrite it, or choose "
            "another place"
        )
    if overwrite:
        listed = set() if raw is None else {NAME, *_listed_names(place, raw)}
        return There(raw, unfinished=[name for name in names if name in listed or name in ours])
    there = There(raw)
    manifest = None if raw is None else read_manifest(place, raw)
    if manifest is not None:
        there.head = manifest.head
        for part in manifest.parts:
            refuse_half_written(place, part, names)
            _take(there, part, _record(place, part.inside(PART), part.files.get(PART)))
    listed = {name for part in there.parts for name in part.names}
    _take_over(there, place, {name: names[name] for name in ours if name not in listed})
    return there


def _listed_names(place: Place, raw: bytes) -> list[str]:
    """What an ``export.json`` lists; nothing if it cannot be read, since it is to be replaced."""
    try:
        manifest = read_manifest(place, raw)
    except (StoreCorrupt, StoreVersionError):
        return []
    return [name for part in (manifest.parts if manifest else ()) for name in part.names]


def _record(place: Place, name: str, file: File | None) -> PartRecord:
    return read_part(verified(place, name, file), str(place.within(name)))


def _take(there: There, part: Part, record: PartRecord) -> None:
    there.parts.append(part)
    for one in record.entries:
        copies = there.known.setdefault(one.answer, {})
        copies[one.key] = Known(Named(one.key, one.capture), one.beside)


def _take_over(there: There, place: Place, sizes: Mapping[str, int]) -> None:
    """Go on with the finished parts of a run that broke off, if they are of the same export."""
    for name in sizes:
        folder, _, last = name.partition("/")
        raw = place.read(name) if last == PART else None
        if raw is None:
            continue
        try:
            record = read_part(raw, str(place.within(name)))
            part = _part(folder, record, raw)
            refuse_half_written(place, part, sizes)
        except StoreCorrupt:  # A broken run may well have left such a file.
            continue
        is_new = all(one.answer not in there.known for one in record.entries)
        if is_new and (
            there.head is None or _without_writers(there.head) == _without_writers(record.head)
        ):
            there.head = there.head or record.head
            _take(there, part, record)
    taken = {name for part in there.parts for name in part.names}
    there.unfinished = [name for name in sizes if name not in taken]


def _without_writers(head: Head) -> Head:
    return structs.replace(head, writers=[])


def _part(folder: str, record: PartRecord, raw: bytes) -> Part:
    with_rows = [one.rows for one in record.entries if one.rows is not None]
    own = File(len(raw), hashlib.sha256(raw).hexdigest())
    return Part(folder, len(with_rows), sum(with_rows), {**record.files, PART: own})


def head_of(plan: Plan, chosen: Format, label: str | None, tags: Mapping[str, str]) -> Head:
    """What the parts of a plan share."""
    return Head(
        format=chosen.name,
        model=plan.model,
        layers=[column.layer for column in plan.columns],
        sites={column.name: list(column.shape) for column in plan.columns if column.is_site},
        num_layers=plan.num_layers,
        hidden_size=plan.hidden_size,
        dtype="as stored" if chosen.as_stored else plan.dtype,
        position=plan.position,
        label=label,
        tags=dict(tags),
        writers=sorted(plan.store.writers()),
    )


def joined(there: Head, new: Head, where: object) -> Head:
    """The head of an export with parts of both.

    Raises:
        DatasetError: they do not go together; says in what they differ.
    """
    if there.writers and new.writers and not set(there.writers) & set(new.writers):
        raise DatasetError(
            f"{where} is an export of another store: none of the processes that wrote that one has "
            "written this one; export to another place, or `activation-logging merge` the stores"
        )
    writers = sorted({*there.writers, *new.writers})
    before, now = to_builtins(there), to_builtins(new)
    for name in before:
        if name != "writers" and before[name] != now[name]:
            raise DatasetError(
                f"{where} cannot be appended to: its {name} is {_shown(before[name])}, that of the "
                f"new entries {_shown(now[name])}; export to another place"
            )
    return structs.replace(there, writers=writers)


def _shown(value: Any) -> str:
    return dumps(value, ascii_only=False)[:300]


def write_part(plan: Plan, chosen: Format, head: Head, folder: Path, progress: Progress) -> Part:
    """Write a plan's entries into an empty folder as one part.

    Returns:
        The part, its folder's name left empty.
    """
    chosen.write(plan, folder, progress)
    listed = write_records(plan.store, folder, items=plan.items, columns=plan.columns)
    return _finish(folder, head, listed)


def _finish(folder: Path, head: Head, listed: list[Listed]) -> Part:
    record = PartRecord(head, listed, describe_files(folder))
    raw = (dumps(to_builtins(record)) + "\n").encode()
    (folder / PART).write_bytes(raw)
    return _part("", record, raw)


def send_parts(
    place: Place,
    plan: Plan,
    chosen: Format,
    head: Head,
    *,
    first: int,
    part_bytes: int,
    progress: Progress,
) -> Iterator[Part]:
    """Write a plan's entries to a place, part by part; ``first`` is the number of the first one."""
    done = 0
    for number, items in enumerate(_batches(plan, part_bytes), first):

        def told(what: str, sent: int, _: int, before: int = done) -> None:
            progress(what, before + sent, len(plan.items))

        with tempfile.TemporaryDirectory(prefix="activation-logging-") as name:
            part = write_part(plan.part(items), chosen, head, Path(name), told)
            yield _send(place, Path(name), part, number)
        done += len(items)


def send_changes(
    place: Place, store: Store, head: Head, changed: Sequence[Item], number: int
) -> Part:
    """Write the labels and arrays of entries of earlier parts as one more part."""
    with tempfile.TemporaryDirectory(prefix="activation-logging-") as name:
        listed = write_records(store, Path(name), changed=changed)
        return _send(place, Path(name), _finish(Path(name), head, listed), number)


def _send(place: Place, folder: Path, part: Part, number: int) -> Part:
    """Send the files of a part to a folder of its own, ``part.json`` last."""
    named = structs.replace(part, folder=f"{_FOLDER}{number:05d}-{secrets.token_hex(4)}")
    for name in [*(name for name in part.files if name != PART), PART]:
        place.put(named.inside(name), folder / name)
    return named


def _batches(plan: Plan, part_bytes: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in plan.items:
        batch.append(item)
        size += item.num_rows * plan.row_bytes
        if size >= part_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def publish(place: Place, there: There, manifest: Manifest) -> None:
    """Write ``export.json``, then delete what a broken or replaced run has left.

    Raises:
        OutputExists: another run has written one meanwhile; what this one sent stays, and
            ``--append`` takes over what is still new.
        AddressError: the place cannot be written.
    """
    raw = manifest.dump()
    if not place.replace(NAME, raw, there.raw):
        raise OutputExists(
            f"{place.address}: another export to this place was finished meanwhile, and stands; "
            "start this one again with --append, which writes what is still new"
        )
    place.delete(name for name in there.unfinished if name != NAME)
