"""Folders on this machine, and folders on object storage, which fsspec reaches.

An *address* is a text such as ``s3://bucket/folder``, ``gs://...`` or ``memory://...``. A
:class:`Place` is a folder at a path or an address; its files are named relative to it, with
slashes. Who may read or write there is the environment's business (for S3 the variables, files and
roles that boto reads): an address with a password in it is refused, so that none is ever written
down.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from activation_logging.errors import AddressError, SettingsError
from activation_logging.extras import require
from activation_logging.files import locked_where_possible, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Address(str):
    """An address, with what is asked of paths where either will do."""

    __slots__ = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that slashes separate."""
        return tuple(part for part in self.split("/") if part)

    @property
    def name(self) -> str:
        """The last of them."""
        return self.parts[-1]

    def absolute(self) -> Address:
        """Itself: an address depends on no folder."""
        return self

    def expanduser(self) -> Address:
        """Itself."""
        return self

    def resolve(self) -> Address:
        """Itself."""
        return self

    def within(self, name: str) -> Address:
        """The address of a file or folder below."""
        return Address(f"{self}/{name}")


def located(path: str | os.PathLike[str]) -> Path | Address:
    """What a user gave as a path: an address if it has ``://`` in it, else a path.

    ``file://`` is a path, too. ``s3:/bucket`` is an address that has been through :class:`Path`.

    Raises:
        AddressError: the address has a password in it, or no folder.
        SettingsError: it is empty, as a variable that is not set; or it begins with the home of a
            user whom nobody knows.
    """
    text = os.fspath(path)
    if not text:
        raise SettingsError("a path is empty; give a folder, and '.' for this one")
    if isinstance(path, Path) and ":/" in text and not path.is_absolute():
        scheme, _, rest = text.partition(":/")
        slashes = "///" if scheme == "file" else "//"
        text = f"{scheme}:{slashes}{rest}" if scheme.isalnum() else text
    if "://" not in text:
        return expanded(text)
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise AddressError(
            f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}: an address with a name or "
            "password in it is not taken, because it would be written down; give those in the "
            "environment (AWS_ACCESS_KEY_ID and so on)"
        )
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if not parts.netloc + parts.path.strip("/"):
        raise AddressError(f"{text} names no folder; write {text.rstrip('/')}//FOLDER")
    return Address(text.rstrip("/"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` and ``~name`` filled in.

    Raises:
        SettingsError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{path} begins with the home of a user who is not known here; write the whole path"
        ) from None


NO_STORE_THERE = (
    "LMDB maps its file into memory; log to a local folder, and take it there with "
    "`activation-logging export`"
)


def refuse_address(path: str | os.PathLike[str], what: str, why: str = NO_STORE_THERE) -> None:
    """Raise AddressError if a path is an address where only this machine's disk will do.

    Args:
        path: what was given.
        what: the beginning of the sentence, such as ``"a store"``.
        why: its end: the reason, and what to do.
    """
    where = located(path)
    if isinstance(where, Address):
        raise AddressError(f"{what} lies on a disk of this machine, not at {where}: {why}")


class Place:
    """A folder on this machine.

    Args:
        folder: where it is; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.address: Path | Address = folder
        self.folder = folder

    def sizes(self) -> dict[str, int]:
        """Names and bytes of all files, in all folders below.

        Raises:
            AddressError: the place cannot be read, as for every method.
        """
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}

    def read(self, name: str) -> bytes | None:
        """What a file holds; None if it is not there."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file: nobody ever sees a part of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        """Write a file that holds ``before`` (None: that is not there), or return False.

        Of several processes that do so in the same moment, one succeeds: of those on this machine,
        and on an S3 server that knows conditional writes. Elsewhere the last one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_where_possible(self.folder, wait=True):
            if self.read(name) != before:
                return False
            self.write(name, content)
        return True

    def put(self, name: str, source: Path) -> None:
        """Copy a file there."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)

    def local(self, name: str, cache: Path) -> Path:  # noqa: ARG002 - for places elsewhere
        """Where a file can be read on this machine; it is fetched into ``cache`` if need be.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, and the folders that become empty."""
        for name in names:
            path = self.folder / name
            path.unlink(missing_ok=True)
            for above in path.relative_to(self.folder).parents:
                folder = self.folder / above
                if above == Path() or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()

    def within(self, name: str) -> Path | Address:
        """The path or address of a file, for messages."""
        return below(self.address, name)


class RemotePlace(Place):
    """A folder at an address.

    Raises:
        ExtraMissing: the package that reaches such addresses is not installed.
        AddressError: fsspec knows no such addresses.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        require("s3", "fsspec")
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        scheme = address.partition("://")[0]
        if scheme == "s3":
            require("s3", "s3fs")
        try:
            # Not one that an earlier call made: the environment may have changed since.
            self.fs, self._root = url_to_fs(str(address), skip_instance_cache=True)
        except ImportError as error:
            raise AddressError(
                f"{address}: fsspec needs another package for {scheme}:// ({error})"
            ) from None
        except (OSError, ValueError) as error:  # such as zip://, which opens a file at once
            raise AddressError(f"{address}: {error}") from None

    def sizes(self) -> dict[str, int]:
        with self._speaking():
            self.fs.invalidate_cache()
            root = self._root.rstrip("/") + "/"
            found = self.fs.find(self._root, detail=True)
        return {
            path.removeprefix(root): about["size"]
            for path, about in sorted(found.items())
            if path.startswith(root)
        }

    def read(self, name: str) -> bytes | None:
        with self._speaking():
            try:
                found: bytes = self.fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return found

    def write(self, name: str, content: bytes) -> None:
        with self._speaking():
            self.fs.pipe_file(self._path(name), content)

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        condition: dict[str, str] = {}
        if str(self.address).startswith("s3://"):
            condition["IfNoneMatch"] = "*"
            if before is not None:
                # The tag is older than what is read next: whatever comes later has another one.
                with self._speaking():
                    self.fs.invalidate_cache()
                    try:
                        condition = {"IfMatch": self.fs.info(self._path(name))["ETag"]}
                    except FileNotFoundError:
                        return False
        if self.read(name) != before:
            return False
        with self._speaking():
            try:
                self.fs.pipe_file(self._path(name), content, **condition)
            except OSError as error:
                if _code(error) == "NotImplemented":
                    self.fs.pipe_file(self._path(name), content)
                elif _code(error) not in _OVERTAKEN:
                    raise
        return self.read(name) == content

    def put(self, name: str, source: Path) -> None:
        with self._speaking():
            self.fs.put_file(str(source), self._path(name))

    def local(self, name: str, cache: Path) -> Path:
        path = cache / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            with self._speaking(missing=False):
                self.fs.get_file(self._path(name), str(partial))
            partial.replace(path)
        return path

    def delete(self, names: Iterable[str]) -> None:
        paths = [self._path(name) for name in names]
        if paths:
            with self._speaking():
                self.fs.rm(paths)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _speaking(self, *, missing: bool = True) -> Iterator[None]:
        """Whatever the other side or its package says, in a sentence.

        ``missing``: a file that is not there is an error of the address, such as no bucket.
        """
        try:
            yield
        except FileNotFoundError as error:
            if not missing:
                raise
            raise AddressError(f"{self.address}: there is no such bucket or folder") from error
        except PermissionError as error:
            raise AddressError(
                f"{self.address} refuses: {_words(error)}; the environment's credentials have no "
                "right to it (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
                "the machine's role)"
            ) from None
        except (OSError, ValueError) as error:
            raise AddressError(f"{self.address} cannot be reached: {_words(error)}") from None
        except Exception as error:
            # Each storage has errors of its own; those of botocore have no common builtin base.
            if type(error).__module__.partition(".")[0] not in _OTHERS:
                raise
            raise AddressError(f"{self.address}: {_words(error)}") from None


_OTHERS = frozenset(
    {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "azure", "adlfs", "fsspec"}
)
"""Packages whose exceptions speak of the storage, not of a fault of this program."""


_OVERTAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"})
"""What S3 says where a condition of a write is not met."""


def _code(error: OSError) -> str:
    """What S3 calls an error that s3fs has put into words; empty if it did not come from there."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def place_of(path: str | os.PathLike[str]) -> Place:
    """The place at a path or an address; nothing is looked at yet."""
    where = located(path)
    return RemotePlace(where) if isinstance(where, Address) else Place(where)


def below(where: Path | Address, name: str) -> Path | Address:
    """The path or address of a file in a folder."""
    return where.within(name) if isinstance(where, Address) else where / name


@contextmanager
def folder_for(path: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A folder to write files into: the path itself or, of an address, one that is sent there.

    Args:
        path: where the files shall be.
        last: the name of the file that is sent last, because it refers to the others.
    """
    where = located(path)
    if isinstance(where, Path):
        yield where
        return
    place = RemotePlace(where)
    place.read(last)  # Find out now whether it can be reached, not after an hour's work.
    with tempfile.TemporaryDirectory(prefix="activation-logging-") as folder:
        yield Path(folder)
        written = [path for path in Path(folder).rglob("*") if path.is_file()]
        for file in sorted(written, key=lambda file: file == Path(folder) / last):
            place.put(file.relative_to(folder).as_posix(), file)
