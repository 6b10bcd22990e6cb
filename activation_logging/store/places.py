"""Which stores a path, a pattern or a list names, and what each of several is called."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from activation_logging.errors import NotAStore, SettingsError, StoreNotFound
from activation_logging.locations import Address, located
from activation_logging.store.engine.opening import file_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OnePlace: TypeAlias = "str | os.PathLike[str]"
Where: TypeAlias = "OnePlace | Iterable[OnePlace]"
"""A store's folder, a folder of stores, a pattern such as ``data/*.lmdb``, or a list of these."""

_OTHER_SIGNS = re.compile(r"[^\w.+~@=-]")
_ONLY_PATTERNS = frozenset("*?")
_SHOWN = 3
"""So many names of a list are a part of what the list is called."""


class Places(NamedTuple):
    """The folders of stores, absolute, each store once.

    ``title`` stands for all of them: the folder or pattern that names them, or for a list their
    common folder and their names in braces. ``several``: they are one logical store, which may
    have one part. Otherwise there is one folder, which may hold a store or not.
    """

    title: Path
    folders: tuple[Path, ...]
    several: bool

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each store, of what tells their paths apart: ``host-1`` or ``a.lmdb``.

        Names are of letters, digits and a few signs that a key and a web address can have.
        """
        return _names(self.folders)


def find_stores(where: Where) -> Places:
    """The stores that are meant.

    A folder without a store of its own stands for the stores in it, and in the folders in it; a
    pattern for all that match it. Hidden folders are passed over. A store that is named twice, also
    through a link, counts once. Whether a store can be opened is not looked at.

    Raises:
        SettingsError: the list is empty.
        StoreNotFound: a pattern matches no store.
        NotAStore: it is an address of something else than a folder.
    """
    given = [where] if isinstance(where, (str, os.PathLike)) else list(where)
    if not given:
        raise SettingsError("no store is named; give the folder of at least one")
    found = [_stores_at(place) for place in given]
    folders = tuple(_distinct(folder for place in found for folder in place.folders))
    if len(folders) == 1 and not any(place.several for place in found):
        return found[0]
    title = found[0].title if len(found) == 1 else _title(folders)
    return Places(title, folders, several=True)


def stores_beside(folder: Path) -> list[Path]:
    """The other stores in the folder that a store lies in."""
    resolved = folder.resolve()
    return [one for one in _stores_in(resolved.parent, 1) if one.resolve() != resolved]


def _stores_at(place: OnePlace) -> Places:
    text, where = os.fspath(place), located(place)
    if isinstance(where, Address):
        raise NotAStore(
            f"{where} is an address: an export there is read by itself, and each of several stores "
            "is a folder on this machine"
        )
    path = where.absolute()
    if _is_store(path):
        return Places(path, (path,), several=False)
    if _is_folder(path):
        inside = tuple(_stores_in(path, 2))
        return Places(path, inside or (path,), several=bool(inside))
    if glob.has_magic(text) and not _is_there(path):
        try:
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        except OSError as error:
            raise StoreNotFound(f"no store matches {text}: {error.strerror}") from None
        stores = [one for match in matches for one in _matching(match)]
        if stores:
            return Places(path, tuple(_distinct(stores)), several=True)
        if not _ONLY_PATTERNS.isdisjoint(text):  # brackets may be a part of a name
            raise StoreNotFound(f"no store matches {text}")
    return Places(path, (path,), several=False)


def _matching(path: Path) -> Iterable[Path]:
    return (path,) if _is_store(path) else _stores_in(path, 1)


def _is_store(path: Path) -> bool:
    return _is_there(path / "data.mdb")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # whoever opens it says why it cannot be looked at
        return False


def _is_folder(path: Path) -> bool:
    return _is_there(path) and path.is_dir()


def _stores_in(folder: Path, depth: int) -> Iterator[Path]:
    """The stores in a folder and, of more ``depth``, in the folders in it; sorted by path."""
    try:
        inside = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    except OSError:
        return
    for one in inside:
        if _is_store(one):
            yield one
        elif depth > 1 and _is_folder(one):
            yield from _stores_in(one, depth - 1)


def _distinct(folders: Iterable[Path]) -> Iterator[Path]:
    """Each store once, by the identity of its file; one that is missing by its path."""
    seen: set[object] = set()
    for folder in folders:
        identity = file_id(folder) or folder
        if identity not in seen:
            seen.add(identity)
            yield folder


def _title(folders: Sequence[Path]) -> Path:
    names = _names(folders)
    more = f",+{len(names) - _SHOWN}" if len(names) > _SHOWN else ""
    return _common(folders) / f"{{{','.join(names[:_SHOWN])}{more}}}"


def _common(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The last part of each path if that tells them apart, or the one before, or several."""
    top = len(_common(folders).parts)
    parts = [folder.parts[top:] for folder in folders]
    names = [tuple(map(_plain, own)) for own in parts]
    for each in ([own[-1] for own in names], [own[0] for own in names]):
        if len(set(each)) == len(each):
            return tuple(each)
    made: list[str] = []
    for own in names:
        name = "+".join(own)
        made.append(name if name not in made else f"{name}+{len(made)}")
    return tuple(made)


def _plain(name: str) -> str:
    return _OTHER_SIGNS.sub("_", name)
