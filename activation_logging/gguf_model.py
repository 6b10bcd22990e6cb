"""Models that come as a GGUF file in packages of a registry, and not from a model hub.

The weights are converted once to a folder of bf16 safetensors, which vLLM and transformers serve
like any other model, and kept in the user's cache::

    <cache>/activation-logging/models/NAME-<first digits of the weights' SHA-256>/

Conversion is deterministic, so the checksums of both the file read and the file written are pinned.
Torch and transformers are imported for the conversion alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from activation_logging.errors import DemoModelError
from activation_logging.files import sha256
from activation_logging.packages import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from activation_logging.progress import Progress

CONVERTERS = ("accelerate", "filelock", "gguf", "torch", "transformers")
"""What a conversion imports; the extra ``demo``."""
WEIGHTS_FILE = "model.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class GGUFModel:
    """What is known of a model before it is there.

    ``source`` says in the manifest where the file comes from. ``needs`` are names as imported, and
    ``remedy`` is the command that installs them.
    """

    name: str
    license: str
    source: Mapping[str, Any]
    gguf_sha256: str
    weights_sha256: str
    needs: tuple[str, ...]
    remedy: str

    @property
    def folder(self) -> Path:
        """Where the converted model is, or will be."""
        return models_folder() / f"{self.name}-{self.weights_sha256[:12]}"

    def prepare(self, fetch: Callable[[], Path], progress: Progress) -> Path:
        """Convert what ``fetch`` gives, unless that was done before, and return the folder.

        Every call compares the SHA-256 of each file with the manifest's; a folder that differs is
        made anew. Several processes may call this at once: one prepares, the others wait.

        Args:
            fetch: gives the GGUF file, whose SHA-256 it has compared with the pinned one.
            progress: told when the conversion begins.

        Raises:
            DemoModelError: a package is missing, the weights came out different from the pinned
                ones, or the cache cannot be written.
        """
        try:
            if not self._is_intact():
                self._prepare(fetch, progress)
        except OSError as error:
            raise DemoModelError(
                f"{self.name} cannot be kept in {models_folder()} ({error.strerror or error}):"
                " make room there, or set XDG_CACHE_HOME to a folder that can be written"
            ) from error
        return self.folder

    def _prepare(self, fetch: Callable[[], Path], progress: Progress) -> None:
        """Convert into a folder beside, then rename it: a kill leaves no half model."""
        missing = [name.replace("_", "-") for name in self.needs if find_spec(name) is None]
        if missing:
            raise DemoModelError(
                f"{self.name} needs {', '.join(missing)}, not installed here: {self.remedy}"
            )
        from filelock import FileLock

        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = folder.with_name(f".{folder.name}.tmp")
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if self._is_intact():  # another process has made it meanwhile
                return
            shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
            try:
                gguf = fetch()
                progress(f"converting {self.name}", 0, 0)
                self._convert(gguf, making)
                files = {file.name: {"sha256": sha256(file)} for file in sorted(making.iterdir())}
                manifest = {
                    "license": self.license,
                    "source": {**self.source, "sha256": self.gguf_sha256},
                    "converted_with": {name: version(name) for name in self.needs},
                    "files": files,
                }
                (making / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
                shutil.rmtree(folder, ignore_errors=True)  # damaged
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)

    def _convert(self, gguf: Path, target: Path) -> None:
        """Write ``gguf`` as a bf16 model folder, with its chat template and generation config."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),  # so the saved config names none
            )
            # One file, whose sum is pinned.
            model.save_pretrained(target, max_shard_size="50GB")
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from error
        finally:
            logging.enable_progress_bar()
        if sha256(target / WEIGHTS_FILE) != self.weights_sha256:
            raise DemoModelError(
                f"transformers {version('transformers')} with gguf {version('gguf')} converts"
                f" {self.name} to other weights than the pinned ones: install the versions of"
                " packaging/lock-cpu-py311.txt"
            )

    def _is_intact(self) -> bool:
        """Whether every file of the manifest is there with its checksum."""
        try:
            files = json.loads((self.folder / MANIFEST).read_text())["files"]
            return files[WEIGHTS_FILE]["sha256"] == self.weights_sha256 and all(
                sha256(self.folder / name) == noted["sha256"] for name, noted in files.items()
            )
        except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
            return False


def models_folder() -> Path:
    """Where prepared models are kept."""
    return cache_folder() / "models"
