"""Writing a store in another format: a local folder whole or not at all, elsewhere in parts."""

from __future__ import annotations

import glob
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from activation_logging.dataset.positions import parse_position
from activation_logging.errors import DatasetError, OutputExists, SettingsError
from activation_logging.export.manifest import NAME, Head, Manifest, Part
from activation_logging.export.parts import (
    PART_BYTES,
    There,
    head_of,
    joined,
    look,
    publish,
    send_changes,
    send_parts,
    write_part,
)
from activation_logging.export.plan import Choice, Plan, choose, make_plan
from activation_logging.export.registry import FORMATS, Format
from activation_logging.extras import require
from activation_logging.files import locked, locked_where_possible
from activation_logging.locations import Address, Place, place_of
from activation_logging.progress import Progress, silent
from activation_logging.store import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from activation_logging.store import Store
    from activation_logging.store.places import Where

DEFAULT_FORMAT = "parquet"


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how many entries were left out, by reason.

    ``there`` counts the entries that were in the export before, ``refreshed`` those of them whose
    labels or arrays were written again because they have changed.
    """

    folder: Path | Address
    format: str
    entries: int
    rows: int
    layers: tuple[int | str, ...]
    dtype: str
    bytes: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    there: int = 0
    refreshed: int = 0


def export_store(
    store_path: Where,
    out_dir: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - what everybody calls it
    layers: Sequence[int | str] | None = None,
    sites: Sequence[str] | None = None,
    position: str | int | None = None,
    label: str | None = None,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    append: bool = False,
    part_bytes: int = PART_BYTES,
    progress: Progress = silent,
) -> ExportResult:
    """Write the complete entries of a store in another format.

    A local folder appears when all is written, under its own name: a broken run leaves nothing
    behind. At an address, and with ``append``, the entries go out in parts, and ``export.json``,
    which lists them, is written last: a broken run leaves finished parts, which ``append`` goes on
    with. What is not named of the format, the layers and the conditions is then as it was.

    Args:
        store_path: the store's folder, or several, see :func:`.open_store`.
        out_dir: the folder to make, or an address such as ``s3://bucket/folder``.
        format: a name in :data:`FORMATS`; ``parquet`` if not given.
        layers: which layers of the residual stream. Entries without one of them are left out.
        sites: which other sites, such as ``heads@15``, likewise. Without both, all layers and
            sites, which every entry must then have.
        position: one row per entry, see :mod:`activation_logging.dataset.positions`; else all rows.
        label: only entries that this evaluator has judged.
        model: only this model's entries.
        tags: only entries that carry all of these tags.
        overwrite: replace an earlier export at ``out_dir``.
        append: add what is not in the export yet, and labels and arrays that have changed since.
        part_bytes: entries whose rows have reached this size make a part.
        progress: told how far it is.

    Raises:
        DatasetError: nothing to export, or the entries do not go together, or not with what is
            there; says what to do.
        OutputExists: ``out_dir`` is there already, or another export to it has ended meanwhile.
        AddressError: an address cannot be reached, or gives no right to it.
        StoreCorrupt: what is to be appended to is damaged.
        ExtraMissing: the format's library is not installed, or that of the address.
        UnknownName: no format has that name.
    """
    if overwrite and append:
        raise SettingsError("--append keeps what is there, --overwrite replaces it; give one")
    asked: dict[str, Any] = {
        "format": format,
        "layers": layers,
        "sites": sites,
        "position": None if position is None else parse_position(position),
        "label": label,
        "model": model,
        "tags": dict(tags) if tags else None,
    }
    place = place_of(out_dir)
    if append or isinstance(place.address, Address):
        return _in_parts(
            store_path,
            place,
            asked,
            append=append,
            overwrite=overwrite,
            part_bytes=part_bytes,
            progress=progress,
        )
    return _at_once(store_path, place, asked, overwrite=overwrite, progress=progress)


def _format(asked: Mapping[str, Any]) -> Format:
    chosen = FORMATS.get(asked["format"] or DEFAULT_FORMAT)
    require("export", *chosen.needs)
    return chosen


def _choose(store: Store, asked: Mapping[str, Any], there: There, progress: Progress) -> Choice:
    return choose(
        store,
        position=asked["position"],
        label=asked["label"],
        model=asked["model"],
        tags=asked["tags"] or {},
        known=there.known,
        progress=progress,
    )


def _plan(
    store: Store, chosen: Choice, asked: Mapping[str, Any], before: str | None = None
) -> Plan:
    return make_plan(
        store,
        chosen,
        layers=asked["layers"],
        sites=asked["sites"],
        position=asked["position"],
        before=before,
    )


def _at_once(
    store_path: Where,
    place: Place,
    asked: Mapping[str, Any],
    *,
    overwrite: bool,
    progress: Progress,
) -> ExportResult:
    """One part, whose folder is the export itself and appears when it is finished."""
    chosen, target = _format(asked), place.folder
    _refuse_existing(target, overwrite)
    with open_store(store_path) as store:
        plan = _plan(store, _choose(store, asked, There(), progress), asked)
        head = head_of(plan, chosen, asked["label"], asked["tags"] or {})
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        with locked_where_possible(partial, wait=False):
            try:
                part = write_part(plan, chosen, head, partial, progress)
                manifest = Manifest(head, [part], str(store.path), dict(plan.left_out))
                (partial / NAME).write_bytes(manifest.dump())
                partial.chmod(0o755)
                _refuse_existing(target, overwrite)  # which may have come meanwhile
                _move(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return _result(target, head, [part], plan.left_out)


def _in_parts(
    store_path: Where,
    place: Place,
    asked: Mapping[str, Any],
    *,
    append: bool,
    overwrite: bool,
    part_bytes: int,
    progress: Progress,
) -> ExportResult:
    there = look(place, append=append, overwrite=overwrite)
    if there.head is not None:
        asked = _as_before(asked, there.head)
    chosen = _format(asked)
    with open_store(store_path) as store:
        choice = _choose(store, asked, there, progress)
        new: list[Part] = []
        head = there.head
        if head is not None:
            choice.leave_out_without(head.shapes, head.num_layers)
        if choice.items or head is None:
            plan = _plan(store, choice, asked, None if head is None else head.dtype)
            made = head_of(plan, chosen, asked["label"], asked["tags"] or {})
            head = made if head is None else joined(head, made, place.address)
            sent = send_parts(
                place,
                plan,
                chosen,
                head,
                first=len(there.parts),
                part_bytes=part_bytes,
                progress=progress,
            )
            new.extend(sent)
        if choice.changed:
            number = len(there.parts) + len(new)
            new.append(send_changes(place, store, head, choice.changed, number))
        manifest = Manifest(head, [*there.parts, *new], str(store.path), dict(choice.left_out))
        publish(place, there, manifest)
    return _result(
        place.address, head, new, choice.left_out, there=choice.there, refreshed=len(choice.changed)
    )


def _as_before(asked: Mapping[str, Any], head: Head) -> dict[str, Any]:
    """What was asked for, and what was not as the export has it.

    Raises:
        DatasetError: the export has something else.
    """
    columns: list[int | str] = [layer for layer in head.layers if isinstance(layer, int)]
    others = [layer for layer in head.layers if isinstance(layer, str)]
    before = {
        **structs.asdict(head),
        # Layers and sites that are named are compared once "last" and ranges are resolved.
        "layers": columns if asked["layers"] is None and asked["sites"] is None else None,
        "sites": others if asked["layers"] is None and asked["sites"] is None else None,
    }
    for name in ("format", "position", "label", "tags"):
        if asked[name] is not None and asked[name] != before[name]:
            raise DatasetError(
                f"the export that is there has another {name} ({before[name]!r}, not "
                f"{asked[name]!r}); leave it out to go on as before, export to another place, or "
                "--overwrite it"
            )
    return {name: before[name] if given is None else given for name, given in asked.items()}


def _result(
    folder: Path | Address,
    head: Head,
    new: Sequence[Part],
    left_out: Mapping[str, int],
    **more: int,
) -> ExportResult:
    return ExportResult(
        folder=folder,
        format=head.format,
        entries=sum(part.entries for part in new),
        rows=sum(part.rows for part in new),
        layers=tuple(head.layers),
        dtype=head.dtype,
        bytes=sum(file.bytes for part in new for file in part.files.values()),
        left_out=left_out,
        **more,
    )


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputExists(f"{target} is a file; name a folder that is not there yet")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputExists(
            f"{target} is there already; choose another name, --overwrite it, or --append to it"
        )
    if not (target / NAME).is_file():
        raise OutputExists(f"{target} is not an export of this program; it is not overwritten")


def _remove_abandoned(target: Path) -> None:
    """Delete the unfinished folders of killed exports to this place; those that run hold a lock."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        with suppress(OSError), locked(left, wait=False):
            if any(left.iterdir()):  # an empty one is about to be locked
                shutil.rmtree(left)


def _move(partial: Path, target: Path) -> None:
    """Put the finished folder in its place; an earlier export goes last."""
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(partial.name + ".old")
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)
