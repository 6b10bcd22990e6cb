"""The probes that a server is started with, as ``ACTIVATION_PROBES`` lists them.

A list is ``made_up=probes/made_up,span=probes/span:shadow``: names, and the files of
:meth:`.SavedProbe.save` by either of their two paths or without an ending. A probe marked
``:shadow`` scores every answer, and what it says is stored, but no client gets it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import SettingsError
from activation_logging.locations import expanded
from activation_logging.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

ALL = "all"
"""What a request writes for all probes; so no probe is called that."""
MAX_NAME = 64
"""Limit for a probe's name, in characters."""

_SHADOW = ":shadow"
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")


class ProbeFile(NamedTuple):
    """One probe of a list: what it is called, where its files are, whether it is a shadow."""

    name: str
    path: str
    shadow: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.path}{_SHADOW if self.shadow else ''}"


def parse_probe(text: str) -> ProbeFile:
    """One part of a list, ``NAME=PATH`` or ``NAME=PATH:shadow``.

    Raises:
        SettingsError: it is something else.
    """
    name, equals, path = text.strip().partition("=")
    name, path = name.strip(), path.strip()
    shadow = path.endswith(_SHADOW)
    path = path.removesuffix(_SHADOW)
    if not (equals and path) or "," in path:
        raise SettingsError(
            f"{shown(text)} is not a probe: write NAME=PATH, or NAME=PATH{_SHADOW} for one whose "
            "scores no client gets; a path has no comma"
        )
    check_name(name)
    return ProbeFile(name, path, shadow)


def check_name(name: str) -> None:
    """Raise a SettingsError unless a probe of a server may be called that."""
    if not _NAME.fullmatch(name) or name == ALL:
        raise SettingsError(
            f"{shown(name)} is not the name of a probe: it has 1 to {MAX_NAME} letters, digits and "
            f"_.- in ASCII, and is not {ALL!r}"
        )


def parse_probes(text: str) -> tuple[ProbeFile, ...]:
    """A list of probes, in its order; none for an empty text.

    Raises:
        SettingsError: a part is invalid, or two have one name.
    """
    found = [parse_probe(part) for part in text.split(",")] if text.strip() else []
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two probes are called {name}; give each a name of its own")
    return tuple(found)


def absolute(files: Iterable[ProbeFile]) -> str:
    """The list as a process with another working directory reads it."""
    return ",".join(str(one._replace(path=str(expanded(one.path).absolute()))) for one in files)
