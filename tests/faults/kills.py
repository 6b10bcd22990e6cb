"""Writing processes killed at random moments: what they had flushed is there, and right."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from activation_logging.store import StoreWriter, open_store
from activation_logging.store.compact import compact
from activation_logging.store.repair import (
    check_segments,
    find_unmatched,
    page_problems,
    remove_unmatched,
    remove_unreferenced,
)
from activation_logging.verify import verify
from tests.faults.answers import is_right, put, put_somehow
from tests.faults.children import CONTEXT, run

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

_WRITERS = 2
_LONGEST_S = 0.2
_KILLS_PER_STORE = 20


def kill_writers(folder: Path, times: int, seed: int = 0) -> Counter[str]:
    """Kill two writers of one store at a random moment, so many times, and check each time."""
    chance, found = random.Random(seed), Counter[str]()
    for turn in range(times):
        # All of a store is looked at each time: now and then a new one keeps that short.
        path = folder / f"{turn // _KILLS_PER_STORE}.lmdb"
        flushed = _write_and_kill(path, turn, chance)
        found += run(_check, path, flushed, timeout=300).value
        found["kills"] += _WRITERS
        found["flushed"] += len(flushed)
    return found


def _write_and_kill(path: Path, turn: int, chance: random.Random) -> list[str]:
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(_WRITERS)]
    writers = [
        CONTEXT.Process(target=_write_for_ever, args=(path, f"{turn}.{n}.", sending), daemon=True)
        for n, (_, sending) in enumerate(pipes)
    ]
    for process in writers:
        process.start()
    if chance.random() < 0.9:
        # Otherwise while they open the store, or make it.
        pipes[0][0].poll(120)
    time.sleep(chance.random() * _LONGEST_S)
    for process in writers:
        process.kill()
    for process in writers:
        process.join()
    flushed: list[str] = []
    for receiving, sending in pipes:
        sending.close()
        try:
            while True:
                flushed += receiving.recv()
        except EOFError:
            receiving.close()
    return flushed


def _write_for_ever(path: Path, prefix: str, sending: Connection) -> None:
    chance = random.Random(prefix)
    writer = StoreWriter(path, role="child")
    number = 0
    while True:
        names = [f"{prefix}{number + n}" for n in range(chance.randint(1, 4))]
        number += len(names)
        for name in names:
            put_somehow(writer, name, chance)
        writer.flush()
        sending.send(names)


def _check(path: Path, flushed: list[str]) -> Counter[str]:
    """Every flushed answer; then that repair takes away all that is not whole, and nothing else."""
    assert page_problems(path) == []
    with open_store(path, writable=True) as store:
        for name in flushed:
            (entry,) = store.for_request(name)
            assert is_right(entry), (name, entry.status)
        halves, left = list(find_unmatched(store)), check_segments(store).unreferenced
        assert all(half.final for half in halves)
        assert len(verify(store).problems) == len(halves) + len(left)
        assert remove_unmatched(store, halves) == len(halves)
        assert remove_unreferenced(store, [one.segment for one in left]) == len(left)
        report = verify(store)
        assert report.ok, report.problems
        assert all(map(is_right, store.entries()))
        return Counter(halves=len(halves), unused=len(left))


def kill_compaction(path: Path, times: int, seed: int = 0) -> Counter[str]:
    """Kill a process that compacts, at random moments; the store stays what it was."""
    chance, found = random.Random(seed), Counter[str]()
    before = run(_fill, path, 400).value
    for _ in range(times):
        process = CONTEXT.Process(target=_compact_for_ever, args=(path,), daemon=True)
        process.start()
        time.sleep(chance.random() * _LONGEST_S)
        process.kill()
        process.join()
        assert page_problems(path) == []
        assert run(_names, path).value == before
        found["kills"] += 1
    return found


def _fill(path: Path, count: int) -> list[str]:
    writer = StoreWriter(path, role="child")
    for number in range(count):
        put(writer, f"c{number}")
    writer.close()
    return _names(path)


def _compact_for_ever(path: Path) -> None:
    while True:
        compact(path)


def _names(path: Path) -> list[str]:
    with open_store(path, writable=True) as store:
        assert verify(store).ok
        assert all(map(is_right, store.entries()))
        return [entry.request_id for entry in store.entries()]
