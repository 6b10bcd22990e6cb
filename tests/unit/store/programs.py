"""Small programs that the tests run as processes of their own: ``python -m ... NAME ARGS``."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from activation_logging.errors import StoreError
from activation_logging.store import StoreWriter, open_store, prune, upgrade
from activation_logging.store.compact import compact
from tests.fixtures.answers import (
    HIDDEN,
    make_capture,
    make_document,
    make_segment,
    put_answer,
)

ROOT = Path(__file__).parents[3]


def command(name: str, *arguments: object) -> list[str]:
    """The command line of one of the programs below, to be run in ``ROOT``."""
    return [sys.executable, "-m", "tests.unit.store.programs", name, *map(str, arguments)]


def write(path: str, prefix: str, count: str) -> None:
    """Write so many answers, and close."""
    writer = StoreWriter(path, role="child")
    for number in range(int(count)):
        put_answer(writer, f"{prefix}{number}", prompt=f"p{number}", prompt_ids=[1] * 20)
    writer.close()


def write_until_killed(path: str, prefix: str) -> None:
    """Write answers for ever, and print the number of each once it is flushed."""
    writer = StoreWriter(path, role="child")
    number = 0
    while True:
        put_answer(writer, f"{prefix}{number}", prompt=f"{prefix}{number}")
        writer.flush()
        print(number, flush=True)
        number += 1


LARGE = 100 * 40 * HIDDEN * 4
"""Bytes of rows of :func:`put_large`."""


def put_large(writer: StoreWriter, name: str, **fields: Any) -> None:
    """Queue an answer of a hundred rows of forty layers, in a segment of the writer's own."""
    layers = range(1, 41)
    segment = make_segment(name, 100, layers=layers, owner=writer)
    writer.put_capture(make_capture(name, [segment], layers=layers))
    writer.put_entry(make_document(name, prompt=name, prompt_ids=[1] * 99, **fields))


def write_below_until_killed(path: str, ceiling: str) -> None:
    """Write large answers below a ceiling for ever, and print a line after every thirty."""
    writer = StoreWriter(path, role="child", ceiling=int(ceiling))
    writer.share(list)
    number = 0
    while True:
        number += 1
        put_large(writer, f"{writer.id}-{number}")
        if number % 30 == 0:
            print(number, flush=True)


def prune_slowly(path: str) -> None:
    """Remove the rows of a few entries per commit, and print a line after each entry."""
    prune._PER_COMMIT = 3

    def told(_what: str, number: int, _total: int) -> None:
        print(number, flush=True)
        time.sleep(0.01)

    with open_store(path, writable=True) as store:
        keys = prune.plan_prune(store, before=time.time()).keys
        prune.prune(store, keys, "test", progress=told)


def hold(path: str) -> None:
    """Open a store, say so, and stay."""
    with open_store(path):
        print("open", flush=True)
        time.sleep(60)


def upgrade_slowly(path: str) -> None:
    """List a few entries per commit, and print the number after each."""
    upgrade._PER_COMMIT = 5

    def told(_what: str, number: int, _total: int) -> None:
        print(number, flush=True)
        time.sleep(0.02)

    print("started", flush=True)
    upgrade.upgrade(path, progress=told)


def half(path: str, which: str) -> None:
    """Write one half of an answer, and die."""
    writer = StoreWriter(path, role="child")
    if which == "entry":
        writer.put_entry(make_document("half"))
    else:
        writer.put_capture(make_capture("half", [make_segment("half", 4)]))
    writer.flush()
    os._exit(1)


def fill_the_disk(path: str) -> None:
    """Write more than may be written; then make room, and expect that nothing is lost."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = StoreWriter(path, role="child", queue_bytes=4 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    for number in range(100):
        put_answer(writer, f"r{number}", prompt_ids=[1] * 500)
    while not writer.stats.errors:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    writer.close()
    print(writer.stats.errors, writer.stats.lost, writer.stats.captures, flush=True)


def full_at_the_end(path: str) -> None:
    """Write more than may be written, and stop without room: it must end, and say what is lost."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = StoreWriter(path, role="child")
    put_answer(writer, "first", prompt_ids=[1] * 10)
    writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    for number in range(100):
        put_answer(writer, f"r{number}", prompt_ids=[1] * 500)
    writer.close(timeout=1.0)
    print(writer.stats.lost, flush=True)


def hold_open(path: str) -> None:
    """Keep a store open until the end of standard input."""
    with open_store(path):
        print("open", flush=True)
        sys.stdin.read()


def come_and_go(path: str, count: str) -> None:
    """Open a store so many times, and put a label each time."""
    for number in range(int(count)):
        with open_store(path, writable=True) as store:
            key = next(store.entries()).key
            store.put_evaluation(key, name=f"n{number}", label="correct")
        del store
        time.sleep(0.01)


def delete_and_die(path: str) -> None:
    """Write two answers, delete one, and die before its rows can be removed."""
    writer = StoreWriter(path, role="child")
    for name in ("one", "two"):
        writer.put_capture(make_capture(name, [make_segment(name, 4, owner=writer)]))
        writer.put_entry(make_document(name, prompt=name))
    writer.flush()
    with open_store(path, writable=True) as store:
        store.delete(store.for_prompt("one")[0].key)
    os._exit(1)


def compact_with_a_small_limit(path: str) -> None:
    """Try to compact where no file may become as large as the store."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, hard))
    try:
        compact(path)
    except StoreError as error:
        print(type(error).__name__)


def read_without_permission(path: str) -> None:
    """As a user who owns nothing here: read, and be told that writing is not possible."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with open_store(path) as store:
        entry = next(store.entries())
        print(len(store), entry.activations.shape, entry.derived_names)
    try:
        open_store(path, writable=True)
    except PermissionError as error:
        print(type(error).__name__)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
