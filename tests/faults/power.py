"""Power cuts, replayed: what the disk may hold when the machine stops at any one moment.

strace records every write to the data file, with its bytes, and every sync. A cut is then
played by building the file that a disk could be left with: all writes up to the last completed
sync, and of the later ones any subset of their 512-byte sectors, in any order. The file is opened,
checked page by page, and must hold every answer whose flush had returned.

Not simulated: a disk that says it has synced and has not, and what a file system does to its own
records (it is taken to keep the length of a file and its name as of the last sync).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.errors import ActivationLoggingError
from activation_logging.store import StoreWriter, open_store
from activation_logging.store.repair import page_problems
from activation_logging.verify import verify
from tests.faults.answers import is_right, put_somehow
from tests.faults.children import run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SECTOR = 512
_CALLS = "openat,lseek,pwrite64,pwritev,write,writev,fdatasync,fsync,ftruncate,msync"
_OPTIONS = ("-f", "-y", "-xx", "-s", "100000000")
_CALL = re.compile(r"(\d+)\s+(.*)")
_FINISHED = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<.*)?$")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Write(NamedTuple):
    """Bytes written to the data file; ``synced`` when the call itself waits for the disk."""

    offset: int
    data: bytes
    synced: bool


class Sync(NamedTuple):
    """All writes before this are on the disk."""


class Flushed(NamedTuple):
    """A flush has returned: these answers may be relied upon."""

    names: list[str]


def why_not() -> str | None:
    """Why this cannot be done here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return "strace may not trace here" if done.returncode else None


def cut_the_power(folder: Path, flushes: int, cuts: int, seed: int = 0) -> Counter[str]:
    """Record a writer, and check so many files that a cut could have left of its store."""
    chance = random.Random(seed)
    events = record(folder / "recorded", flushes)
    found = Counter(syncs=sum(isinstance(event, Sync) for event in events))
    # The first flush comes after the store was made; before that there is nothing to lose.
    first = next(n for n, event in enumerate(events) if isinstance(event, Flushed))
    for number in range(cuts):
        moment = chance.randrange(first + 1, len(events) + 1)
        names = [name for event in events[:moment] for name in getattr(event, "names", ())]
        for kind, trusting in (("lost", True), ("lost_without_sync", False)):
            image = bytes(_left_on_disk(events[:moment], chance, trusting=trusting))
            path = folder / f"{number}-{trusting}"
            path.mkdir()
            (path / "data.mdb").write_bytes(image)
            outcome = run(_check, path, names)
            found[kind] += outcome.value is not True
            shutil.rmtree(path)
        found["cuts"] += 1
        found["relied_upon"] += len(names)
    return found


def record(path: Path, flushes: int) -> list[Write | Sync | Flushed]:
    """What a writer does to the data file of a new store, in order."""
    trace = path.with_suffix(".trace")
    program = [sys.executable, "-m", __name__, str(path), str(flushes)]
    subprocess.run(
        ["strace", *_OPTIONS, "-e", f"trace={_CALLS}", "-o", trace, *program],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return list(_parse(trace, path / "data.mdb"))


def _parse(trace: Path, data: Path) -> Iterator[Write | Sync | Flushed]:
    named = "".join(f"\\x{byte:02x}" for byte in os.fsencode(data))
    synced: set[str] = set()
    positions: Counter[str] = Counter()
    for name, arguments, result in _calls(trace):
        if name == "write" and arguments.startswith("1<"):
            text = _payload(arguments).decode()
            if text.startswith("flushed "):
                yield Flushed(text.split()[1:])
            continue
        if named not in arguments:
            continue
        descriptor = arguments.partition("<")[0]
        if name == "openat":
            if "O_DSYNC" in arguments:
                synced.add(str(result))
        elif name == "lseek":
            positions[descriptor] = result
        elif name in ("fdatasync", "fsync"):
            yield Sync()
        elif name in ("pwrite64", "pwritev", "write", "writev"):
            body = _payload(arguments)
            assert len(body) == result
            if name.startswith("p"):
                offset = int(arguments.rpartition(", ")[2])
            else:
                offset = positions[descriptor]
                positions[descriptor] += result
            yield Write(offset, body, descriptor in synced)
        else:
            raise AssertionError(f"{name} changes the data file, which is not expected of LMDB")


def _calls(trace: Path) -> Iterator[tuple[str, str, int]]:
    """Name, arguments and result of each call, in order of their ends."""
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        found = _CALL.match(line)
        assert found is not None
        process, text = found.groups()
        if text.endswith("<unfinished ...>"):
            begun[process] = text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<..."):
            text = begun.pop(process) + text.partition("resumed>")[2]
        finished = _FINISHED.match(text)
        if finished is not None and int(finished[3]) >= 0:
            yield finished[1], finished[2], int(finished[3])


def _payload(arguments: str) -> bytes:
    """The bytes of a buffer or of several; the file's name stands in no quotes."""
    return b"".join(bytes.fromhex(found.replace("\\x", "")) for found in _BYTES.findall(arguments))


def _left_on_disk(
    events: list[Write | Sync | Flushed], chance: random.Random, *, trusting: bool
) -> bytearray:
    """One file that a cut after these events may leave.

    With ``trusting`` false no sync is taken to have worked, to see that this finds what it must.
    """
    disk = bytearray()
    waiting: list[Write] = []
    for event in events:
        if isinstance(event, Write):
            if event.synced and trusting:
                _apply(disk, event.offset, event.data)
            else:
                waiting.append(event)
        elif isinstance(event, Sync) and trusting:
            for write in waiting:
                _apply(disk, write.offset, write.data)
            waiting.clear()
    share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    for write in waiting:
        for start in range(0, len(write.data), SECTOR):
            if chance.random() < share:
                _apply(disk, write.offset + start, write.data[start : start + SECTOR])
    return disk


def _apply(disk: bytearray, offset: int, data: bytes) -> None:
    if len(disk) < offset:
        disk.extend(bytes(offset - len(disk)))
    disk[offset : offset + len(data)] = data


def _check(path: Path, names: list[str]) -> bool:
    """Whether a store that was cut off holds these answers, is sound, and can be written."""
    if page_problems(path):
        return False
    try:
        with open_store(path, writable=True) as store:
            whole = all(is_right(store.for_request(name)[0]) for name in names)
            worse = [p for p in verify(store).problems if "repair" not in p.what]
            store.put_evaluation(next(iter(store)), name="after", label="correct")
        return whole and not worse and page_problems(path) == []
    except (ActivationLoggingError, IndexError):
        return False


def write(path: str, flushes: str) -> None:
    """The program that is recorded; it deletes too, so that pages are used again."""
    chance = random.Random(0)
    writer = StoreWriter(path, role="child")
    with open_store(path, writable=True) as store:
        for number in range(int(flushes)):
            names = [f"{number}.{n}" for n in range(chance.randint(1, 5))]
            for name in names:
                put_somehow(writer, name, chance)
            writer.flush()
            os.write(1, f"flushed {' '.join(names[::2])}\n".encode())
            for name in names[::2]:
                store.put_evaluation(store.for_request(name)[0].key, name="n", label="correct")
            store.delete_all([store.for_request(name)[0].key for name in names[1::2]])


if __name__ == "__main__":
    write(*sys.argv[1:])
