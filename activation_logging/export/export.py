"""Writing a store in another format, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging import __version__
from activation_logging.dataset.positions import parse_position
from activation_logging.errors import OutputExists
from activation_logging.export.plan import Plan, make_plan
from activation_logging.export.registry import FORMATS, Format
from activation_logging.extras import require
from activation_logging.progress import Progress, silent
from activation_logging.store import open_store
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from activation_logging.store.places import Where


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how many entries were left out, by reason."""

    folder: Path
    format: str
    entries: int
    rows: int
    layers: tuple[int | str, ...]
    dtype: str
    bytes: int
    left_out: Mapping[str, int]


def export_store(
    store_path: Where,
    out_dir: str | os.PathLike[str],
    *,
    format: str = "parquet",  # noqa: A002 - what everybody calls it
    layers: Sequence[int | str] | None = None,
    sites: Sequence[str] | None = None,
    position: str | int | None = None,
    label: str | None = None,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ExportResult:
    """Write the complete entries of a store in another format.

    The folder appears when all is written, under its own name: a broken run leaves nothing behind.

    Args:
        store_path: the store's folder, or several, see :func:`.open_store`.
        out_dir: the folder to make.
        format: a name in :data:`FORMATS`.
        layers: which layers of the residual stream.
        sites: which other sites, such as ``heads@15``. Without both, all layers and sites, which
            every entry must then have.
        position: one row per entry, see :mod:`activation_logging.dataset.positions`; else all rows.
        label: only entries that this evaluator has judged.
        model: only this model's entries.
        tags: only entries that carry all of these tags.
        overwrite: replace an earlier export at ``out_dir``.
        progress: told how far it is.

    Raises:
        DatasetError: nothing to export, or the entries do not go together; says what to do.
        OutputExists: ``out_dir`` is there already.
        ExtraMissing: the format's library is not installed.
        UnknownName: no format has that name.
    """
    chosen = FORMATS.get(format)
    require("export", *chosen.needs)
    target = Path(out_dir)
    _refuse_existing(target, overwrite)
    place = None if position is None else parse_position(position)
    with open_store(store_path) as store:
        plan = make_plan(
            store,
            layers=layers,
            sites=sites,
            position=place,
            label=label,
            model=model,
            tags=tags or {},
            progress=progress,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            chosen.write(plan, partial, progress)
            _describe(plan, partial, chosen)
            size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
            partial.chmod(0o755)
            _move(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ExportResult(
        folder=target,
        format=format,
        entries=len(plan.items),
        rows=plan.total_rows,
        layers=tuple(column.layer for column in plan.columns),
        dtype=_dtype(plan, chosen),
        bytes=size,
        left_out=plan.left_out,
    )


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputExists(f"{target} is a file; name a folder that is not there yet")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputExists(f"{target} is there already; choose another name, or --overwrite it")
    if not (target / "export.json").is_file():
        raise OutputExists(f"{target} is not an export of this program; it is not overwritten")


def _move(partial: Path, target: Path) -> None:
    """Put the finished folder in its place; an earlier export goes last."""
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(partial.name + ".old")
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)


def _dtype(plan: Plan, chosen: Format) -> str:
    return "as stored" if chosen.as_stored else plan.dtype


def _describe(plan: Plan, folder: Path, chosen: Format) -> None:
    record = {
        "made_by": f"activation-logging {__version__}",
        "format": chosen.name,
        "store": str(plan.store.path),
        "entries": len(plan.items),
        "rows": plan.total_rows,
        "layers": [column.layer for column in plan.columns],
        "sites": {column.name: list(column.shape) for column in plan.columns if column.is_site},
        "num_layers": plan.num_layers,
        "hidden_size": plan.hidden_size,
        "dtype": _dtype(plan, chosen),
        "position": plan.position,
        "left_out": dict(plan.left_out),
    }
    (folder / "export.json").write_text(dumps(record, indent=2) + "\n", encoding="utf-8")
