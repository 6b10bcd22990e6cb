"""Torchvision on a machine without a GPU, as far as transformers' image processors need it.

The wheel that registries have is built for CUDA. Its compiled part does not load beside a CPU build
of torch, and then its Python refuses to be imported: it describes operators that are not there.
Here these operators are declared, and never called. Imported before vLLM, this module makes
``import torchvision`` work, from the folder that :data:`VARIABLE` names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "BENCH_TORCHVISION"
"""Environment variable with the folder that torchvision lies in."""
VERSIONS = {"2.11": "0.26.0", "2.12": "0.27.1", "2.13": "0.28.0"}
"""The torchvision that goes with a torch."""

_library = torch.library.Library("torchvision", "FRAGMENT")


def install(folder: Path) -> Path | None:
    """Download torchvision without what it depends on (8 MB), if it is not there.

    Returns:
        the folder, or None if there is no need of it, or no torchvision for this torch.
    """
    if find_spec("torchvision"):
        return None
    version = VERSIONS.get(".".join(torch.__version__.split(".")[:2]))
    if version is None:
        return None
    if not (folder / "torchvision").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        pip += ["--only-binary", ":all:", "--target", str(folder), f"torchvision=={version}"]
        subprocess.run(pip, check=True)
    return folder


if os.environ.get(VARIABLE):
    sys.path.insert(0, os.environ[VARIABLE])
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
