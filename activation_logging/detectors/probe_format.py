"""The two files of a saved probe: ``NAME.safetensors`` with numbers, ``NAME.json`` with the rest.

Nothing is pickled and nothing in them is run. Version 2 holds any probe of answers or of tokens.
Version 1, which version 0.1 of the package wrote, holds a linear probe of one position; it is read.
"""

from __future__ import annotations

import json
import os
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from activation_logging.errors import OutputExists, ProbeError
from activation_logging.files import write_whole
from activation_logging.printable import printable
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Tensors = dict[str, npt.NDArray[Any]]

FORMAT, VERSION = "activation-logging probe", 2
_FIRST_FORMAT, _FIRST_VERSION = "activation-logging linear probe", 1

MAX_NOTES_BYTES = 16 << 20
MAX_WEIGHTS_BYTES = 1 << 30
MAX_SOURCES = 256
MAX_STEM_BYTES = 200
"""With the endings, and those of files that are being written, less than a file system's 255."""

Kind = Literal["answer", "token"]
_Source = int | Annotated[str, Meta(max_length=100)]
_Text = Annotated[str, Meta(max_length=10_000)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class _Notes(Struct, kw_only=True):
    """What the notes of all versions have."""

    threshold: float
    model: _Text
    num_layers: Annotated[int, Meta(ge=0, le=0xFFFF)]
    label: _Text
    positive: _Text
    negative: _Text
    provenance: dict[str, Any] = {}


class _First(_Notes, kw_only=True, forbid_unknown_fields=True):
    """The notes of version 1."""

    layer: _Source
    position: int | _Text


class _Calibration(Struct):
    a: float
    b: float


class _OperatingPoint(Struct):
    false_positive_rate: _Share
    threshold: float
    recall: dict[str, float | None]


class _Second(_Notes, kw_only=True):
    """The notes of version 2. What a later release adds is passed over."""

    kind: Kind
    form: Annotated[str, Meta(max_length=100)]
    sources: Annotated[list[_Source], Meta(min_length=1, max_length=MAX_SOURCES)]
    position: int | _Text | None
    calibration: _Calibration
    operating_points: Annotated[list[_OperatingPoint], Meta(max_length=100)]
    digest: Annotated[str, Meta(max_length=100)]
    data: dict[str, Any] = {}
    report: dict[str, Any] = {}


def paths_of(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The files of weights and notes of a probe, named by either of them or without an ending.

    Raises:
        ProbeError: it is not the path of a file.
    """
    stem = Path(path)
    if stem.suffix in {".safetensors", ".json"}:
        stem = stem.with_suffix("")
    if stem.name in {"", ".."} or "\0" in str(stem) or str(path).endswith(("/", os.sep)):
        raise ProbeError(f"{printable(str(path))!r} names no file; a probe is called FOLDER/NAME")
    if len(stem.name.encode("utf-8", "surrogatepass")) > MAX_STEM_BYTES:
        raise ProbeError(f"the name of a probe has {MAX_STEM_BYTES} bytes at most")
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def write_probe(
    path: str | os.PathLike[str], notes: Mapping[str, Any], tensors: Tensors
) -> tuple[Path, Path]:
    """Write a probe of version 2, each file whole or not at all; see :func:`paths_of`.

    Raises:
        OutputExists: a folder is in the way. ProbeError: the folder cannot be written to.
    """
    weights, text = paths_of(path)
    refuse_folders(path)
    packed, record = pack_probe(notes, tensors)
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        write_whole(weights, packed)
        # The notes come last: their digest says whether the weights are theirs.
        write_whole(text, record)
    except OSError as error:
        raise ProbeError(f"{path} cannot be written: {error.strerror}") from None
    return weights, text


def pack_probe(notes: Mapping[str, Any], tensors: Tensors) -> tuple[bytes, bytes]:
    """What the two files of a probe of version 2 hold: weights and notes."""
    from safetensors.numpy import save

    record = {"format": FORMAT, "version": VERSION, **notes}
    packed = save(tensors, metadata={"format": FORMAT, "version": str(VERSION)})
    return packed, (dumps(record, indent=2) + "\n").encode()


def refuse_folders(path: str | os.PathLike[str]) -> None:
    """Raise OutputExists where a folder is in the way of a probe."""
    for part in paths_of(path):
        if part.is_dir():
            raise OutputExists(f"{part} is a folder; choose another name for the probe")
    if Path(path).is_dir():
        raise OutputExists(f"{path} is a folder; name the probe in it: {Path(path) / 'NAME'}")


def read_probe(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any], Tensors]:
    """The version, the checked notes, and the tensors of a probe.

    Raises:
        ProbeError: a file is missing or too large, or does not describe a probe.
    """
    weights, text = paths_of(path)
    try:
        for part, most in ((weights, MAX_WEIGHTS_BYTES), (text, MAX_NOTES_BYTES)):
            if not part.is_file():
                raise ProbeError(f"there is no {part}; a probe is NAME.safetensors and NAME.json")
            if part.stat().st_size > most:
                raise ProbeError(f"{part} has more than {most} bytes, which no probe needs")
        told = text.read_bytes()
    except OSError as error:
        raise ProbeError(f"{text} cannot be read: {error.strerror}") from None
    version, notes = _notes(text, _record(text, told))
    try:
        packed = weights.read_bytes()
    except OSError as error:
        raise ProbeError(f"{weights} cannot be read: {error.strerror or error}") from None
    return version, notes, _tensors(weights, packed)


def unpack_probe(name: str, packed: bytes, told: bytes) -> tuple[int, dict[str, Any], Tensors]:
    """The same of what :func:`pack_probe` made.

    Raises:
        ProbeError: the bytes do not describe a probe; the text names it ``name``.
    """
    version, notes = _notes(name, _record(name, told))
    return version, notes, _tensors(name, packed)


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of what calls itself a probe in a folder, sorted.

    Raises:
        ProbeError: it is no folder, or cannot be looked into.
    """
    try:
        notes = sorted(path for path in Path(folder).iterdir() if path.suffix == ".json")
        return [path.stem for path in notes if path.is_file() and _is_named(path)]
    except OSError as error:
        raise ProbeError(f"{folder} cannot be looked into: {error.strerror}") from None


def _is_named(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1000)
    return any(f'"{name}"'.encode() in start for name in (FORMAT, _FIRST_FORMAT))


def _record(path: Path | str, told: bytes) -> Any:
    try:
        return json.loads(told, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} cannot be read: {error}") from None


def _notes(path: Path | str, record: Any) -> tuple[int, dict[str, Any]]:
    kind = record.pop("format", None) if isinstance(record, dict) else None
    if kind not in {FORMAT, _FIRST_FORMAT}:
        raise ProbeError(f"{path} does not describe a probe of this package")
    version = record.pop("version", None)
    known: dict[tuple[Any, Any], type[Struct]] = {
        (_FIRST_FORMAT, _FIRST_VERSION): _First,
        (FORMAT, VERSION): _Second,
    }
    if isinstance(version, bool) or (kind, version) not in known:
        raise ProbeError(
            f"{path} has version {printable(str(version)[:20])}, this package reads "
            f"{_FIRST_VERSION} and {VERSION}; a newer release of it may read this probe"
        )
    try:
        checked = convert(record, known[kind, version])
    except ValidationError as error:
        raise ProbeError(f"{path} is no probe: {error}") from None
    numbers = [checked.threshold]  # type: ignore[attr-defined]
    if isinstance(checked, _Second):
        numbers += [checked.calibration.a, checked.calibration.b]
        numbers += [point.threshold for point in checked.operating_points]
    if not all(map(isfinite, numbers)):
        raise ProbeError(f"{path} has a number that is not finite")
    return version, {name: getattr(checked, name) for name in checked.__struct_fields__}


def _tensors(path: Path | str, packed: bytes) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found: Tensors = load(packed)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        # What numpy has no type for is a KeyError (bfloat16) or an AttributeError (8-bit floats).
        raise ProbeError(f"{path} cannot be read: {printable(str(error))}") from None
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")
