"""Many processes at one store: writers, readers, a map that grows, a reader that stays."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.store import StoreWriter, open_store
from activation_logging.store.engine import environment
from activation_logging.store.engine.reader_watch import ReaderWatch
from activation_logging.store.repair import page_problems
from activation_logging.verify import verify
from tests.faults.answers import is_right, put
from tests.faults.children import CONTEXT, run

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess
    from multiprocessing.synchronize import Event
    from pathlib import Path

SMALL_MAP = 1 << 20


def crowd(path: Path, *, readers: int, writers: int, answers: int) -> Counter[str]:
    """Let so many processes read and so many write at once, from a map of one MiB on."""
    assert run(_make_small, path).value == SMALL_MAP
    stop = CONTEXT.Event()
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(readers)]
    reading = [
        CONTEXT.Process(target=_read, args=(path, stop, sending), daemon=True)
        for _, sending in pipes
    ]
    writing = [
        CONTEXT.Process(target=_write, args=(path, f"w{number}.", answers), daemon=True)
        for number in range(writers)
    ]
    for process in (*reading, *writing):
        process.start()
    for process in writing:
        process.join()
    stop.set()
    found = Counter[str]()
    for receiving, sending in pipes:
        sending.close()
        found += receiving.recv()
    for process in reading:
        process.join()
    assert [process.exitcode for process in (*reading, *writing)] == [0] * (readers + writers)
    found += run(_count, path, timeout=300).value
    assert found["entries"] == writers * answers
    assert found["map"] > SMALL_MAP
    return found


def _make_small(path: Path) -> int:
    return environment.acquire(path, create=True, map_size=SMALL_MAP).map_size


def _write(path: Path, prefix: str, answers: int) -> None:
    writer = StoreWriter(path, role="child")
    for number in range(answers):
        put(writer, f"{prefix}{number}")
        if number % 20 == 0:
            writer.flush()
    writer.close()


def _read(path: Path, stop: Event, sending: Connection) -> None:
    """Look at the newest answers and some others, over and over."""
    found, chance = Counter[str](), random.Random(0)
    with open_store(path) as store:
        while not stop.is_set():
            keys = list(store)
            for key in chance.sample(keys, min(len(keys), 20)):
                entry = store[key]
                # Its other half may be in the next commit.
                if entry.status == "complete":
                    assert is_right(entry), key
                    found["reads"] += 1
            time.sleep(0.005)
    sending.send(found)


def _count(path: Path) -> Counter[str]:
    assert page_problems(path) == []
    with open_store(path) as store:
        report = verify(store)
        assert report.ok, report.problems
        assert all(map(is_right, store.entries()))
        map_size = environment.acquire(path, create=False).map_size
        return Counter(entries=len(store), map=map_size)


def dead_reader(path: Path) -> tuple[int, int]:
    """Kill a process while it holds a view; how many places are taken, before and after a look."""
    run(_turn_over, path, 1)
    # Opened before, for opening a store frees such places too.
    env = environment.acquire(path, create=False)
    holder, _ = _hold_a_view(path)
    holder.kill()
    holder.join()
    before = len(env.readers())
    ReaderWatch(env).look()
    return before, len(env.readers())


class Sizes(NamedTuple):
    """Of the data file, bytes: at first, after writing under a view, after writing without."""

    start: int
    held: int
    released: int


def lasting_reader(path: Path, turns: int) -> Sizes:
    """Write and delete while a process keeps a view; the log names it. Then after it let go."""
    run(_turn_over, path, 10)
    start = _size(path)
    holder, release = _hold_a_view(path)
    run(_turn_over, path, turns)
    with open_store(path) as store:
        (reader,) = store.readers()
        assert reader["pid"] == holder.pid
        assert reader["commits_behind"] >= turns
    ReaderWatch(environment.acquire(path, create=False), patience_s=0).look()
    held = _size(path)
    release.send(None)
    holder.join()
    run(_turn_over, path, turns)
    return Sizes(start, held, _size(path))


def _hold_a_view(path: Path) -> tuple[ForkProcess, Connection]:
    """A process that holds a view of a store until something is sent to it."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_hold, args=(path, there), daemon=True)
    process.start()
    assert here.recv() == "holding"
    return process, here


def _hold(path: Path, there: Connection) -> None:
    view = open_store(path).snapshot()
    there.send("holding")
    there.recv()
    del view


def _turn_over(path: Path, turns: int) -> None:
    """Write an answer and delete it, so many times; the very first stays."""
    writer = StoreWriter(path, role="child")
    with open_store(path, writable=True) as store:
        for turn in range(turns):
            put(writer, f"turn{turn}")
            writer.flush()
            store.delete_all(list(store)[1:])
    writer.close()


def _size(path: Path) -> int:
    return (path / "data.mdb").stat().st_size
