"""The default model's folder: made once, whole, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from activation_logging import default_model
from activation_logging.default_model import MODEL
from activation_logging.errors import DemoModelError
from activation_logging.gguf_model import MANIFEST, WEIGHTS_FILE

PROGRAM = """
from activation_logging.default_model import demo_model_path
folder = demo_model_path()
print(folder, folder.stat().st_ino)
"""


def start(cache: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=env
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.002)


def test_killed_damaged_and_made_by_two_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing := [name for name in MODEL.needs if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    models = tmp_path / "activation-logging" / "models"
    folder = models / f"{MODEL.name}-{MODEL.weights_sha256[:12]}"
    making = models / f".{folder.name}.tmp"

    killed = start(tmp_path)
    wait_for(making / "config.json", killed)
    killed.kill()
    killed.communicate()
    assert making.exists()
    assert not folder.exists()

    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(b"damaged")
    files = {WEIGHTS_FILE: {"sha256": MODEL.weights_sha256}}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))

    pair = [start(tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=600)[0].strip() for process in pair]
    # Had both converted, the second folder would have replaced the first one's.
    assert said == [f"{folder} {folder.stat().st_ino}"] * 2
    assert sorted(path.name for path in models.iterdir() if path.suffix != ".lock") == [folder.name]

    noted = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(noted) | {MANIFEST} == {path.name for path in folder.iterdir()}
    for name, about in noted.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == about["sha256"]
    assert noted[WEIGHTS_FILE]["sha256"] == MODEL.weights_sha256

    # A copy, whose times differ, needs no conversion: none could write here.
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "activation-logging", copied / "activation-logging")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copied))
    monkeypatch.setattr(default_model, "MODEL", replace(MODEL, needs=("no_such_package",)))
    assert default_model.demo_model_path().parent == copied / "activation-logging" / "models"
    with (default_model.demo_model_path() / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DemoModelError, match="needs no-such-package"):
        default_model.demo_model_path()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "activation-logging").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DemoModelError, match=r"cannot be kept in|not installed here"):
        default_model.demo_model_path()
