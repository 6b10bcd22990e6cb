"""The stores under one folder, on every node: who writes which, and what they hold of a run."""

from __future__ import annotations

import fcntl
import socket
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from activation_logging.errors import NotAStore, SettingsError, StoreError, StoreReadOnly
from activation_logging.generate.engine import request_id_of
from activation_logging.generate.run import answered_lines, is_whole
from activation_logging.locations import expanded
from activation_logging.ray.cluster import on_every_node
from activation_logging.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from activation_logging.store import Store


class Kept(NamedTuple):
    """The answer to one line, in one of the stores."""

    request_id: str
    text: str
    finish_reason: str


class Found(NamedTuple):
    """What the stores of all nodes hold: ids of answered lines, ``HOST:PATH`` of each store."""

    lines: set[str]
    stores: list[str]
    problems: list[str]


class Claim(NamedTuple):
    """A store that no other engine writes while the file is open."""

    path: Path
    file: IO[str]


def checked_folder(path: str | Path) -> Path:
    """The folder of stores that a user names, absolute: an engine has another working directory.

    Raises:
        SettingsError: it is one store.
    """
    folder = expanded(path).absolute()
    if (folder / "data.mdb").exists():
        raise SettingsError(
            f"{folder} is a store; on Ray each engine has its own, so name a folder for them"
        )
    return folder


def claim(folder: Path) -> Claim:
    """Take the first store of this machine that no engine has, and make it if needed.

    Its name has the host's, so that no two machines write one file, be the folder shared or not.

    Raises:
        StoreError: the folder or the store cannot be made or written.
    """
    host = socket.gethostname()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count():
            file = (folder / f".{host}-{number}.lock").open("w", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            break
    except NotADirectoryError:
        raise NotAStore(f"{folder} is no folder on {host}") from None
    except OSError as error:
        raise StoreReadOnly(f"{folder} cannot be written on {host}: {error.strerror}") from None
    path = folder / f"{host}-{number}.lmdb"
    open_store(path, writable=True).close()
    return Claim(path, file)


def answered(folder: Path, run: str) -> Found:
    """What the stores on all living nodes hold of a run."""
    found, problems = on_every_node(_answered_here, str(folder), run)
    return Found(
        lines={line for here in found for line in here.lines},
        stores=sorted({store for here in found for store in here.stores}),
        problems=sorted({*problems, *(problem for here in found for problem in here.problems)}),
    )


def answers(folder: Path, run: str, lines: Iterable[str]) -> dict[str, Kept]:
    """The answers to some lines of a run that the stores on all living nodes hold, by line."""
    found, _ = on_every_node(_answers_here, str(folder), run, list(lines))
    return {line: kept for here in found for line, kept in here.items()}


def _answered_here(folder: str, run: str) -> Found:
    found = Found(set(), [], [])
    for store in _open_all(folder, found.problems):
        found.stores.append(f"{socket.gethostname()}:{store.path}")
        found.lines.update(answered_lines(store, run))
    return found


def _answers_here(folder: str, run: str, lines: list[str]) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    for store in _open_all(folder, []):
        for line in lines:
            for entry in store.for_request(request_id_of(run, line)):
                if is_whole(entry):
                    reason = str(entry.finish_reason)
                    found[line] = Kept(request_id_of(run, line), entry.response, reason)
    return found


def _open_all(folder: str, problems: list[str]) -> Iterator[Store]:
    """The stores of a folder on this machine, one after the other; broken ones are named."""
    for path in sorted(file.parent for file in Path(folder).glob("*/data.mdb")):
        try:
            with open_store(path) as store:
                yield store
        except StoreError as error:  # noqa: PERF203 - the others are read
            problems.append(f"{socket.gethostname()}: {error}")
