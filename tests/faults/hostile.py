"""Store files that were cut off, flipped or forged: an error of ours, or a sentence of verify's.

LMDB itself dies of some flipped pages. Each such file must be one that ``page_problems``,
which ``activation-logging verify`` asks first, has found fault with.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging import Derived
from activation_logging.cli.rendering import full, summary
from activation_logging.errors import ActivationLoggingError, EntryNotFound
from activation_logging.store import StoreWriter, open_store
from activation_logging.store.repair import page_problems
from activation_logging.store.statistics import statistics
from activation_logging.verify import verify
from tests.faults.answers import put
from tests.faults.children import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PAGE = 4096
WRONG = (None, True, -1, 2**70, 1.5, float("nan"), "", "x", "\0", [], [[]], {}, {"a": 1})


def make(path: Path) -> bytes:
    """The data file of a store with a bit of everything."""
    run(_fill, path)
    return (path / "data.mdb").read_bytes()


def _fill(path: Path) -> None:
    writer = StoreWriter(path, role="child")
    for number in range(60):
        put(writer, f"r{number}")
        if number % 10 == 0:
            writer.flush()
    writer.close()
    with open_store(path, writable=True) as store:
        keys = list(store)
        store.delete_all(keys[::7])
        for key in list(store)[::2]:
            store.put_evaluation(key, name="judge", label="correct")
            scores = np.zeros(len(store[key].positions), np.float32)
            store.put_derived([Derived(key, "score/probe", scores, {"digest": "0"})])


def flip(folder: Path, times: int, bits: int, seed: int = 0) -> Counter[str]:
    """Flip bits of a store, anywhere; read and write it; count what came of it."""
    chance = random.Random(seed)
    raw = make(folder / "whole.lmdb")
    found = Counter[str]()
    for number in range(times):
        data = bytearray(raw)
        for _ in range(bits):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        found += _try(folder / f"flip{number}", bytes(data))
    return found


def cut(folder: Path, times: int, seed: int = 0) -> Counter[str]:
    """Cut a store off, at page boundaries and elsewhere."""
    chance = random.Random(seed)
    raw = make(folder / "whole.lmdb")
    lengths = [0, 1, 16, 152, 4095, _PAGE, 2 * _PAGE - 1, 2 * _PAGE, 3 * _PAGE]
    lengths += [
        chance.randrange(len(raw)) // (_PAGE if n % 2 else 1) * (_PAGE if n % 2 else 1)
        for n in range(times)
    ]
    found = Counter[str]()
    for number, length in enumerate(lengths):
        found += _try(folder / f"cut{number}", raw[:length])
    return found


def _try(path: Path, data: bytes) -> Counter[str]:
    """Read and write a file, each in a process of its own, and count how they end."""
    path.mkdir()
    (path / "data.mdb").write_bytes(data)
    faults = page_problems(path)
    assert faults is not None
    found = Counter({"files": 1, "found by the walker": bool(faults)})
    for name, use in (("reading", _use), ("writing", _change)):
        (path / "data.mdb").write_bytes(data)
        outcome = run(use, path)
        if outcome.died_of is not None:
            assert faults, f"{name} dies of {outcome.died_of}, and nothing warns of it"
            found[f"{name} dies of {outcome.died_of}"] += 1
        else:
            assert outcome.value is not None, f"{name} ends with an error that is not ours"
            found[f"{name}: {outcome.value}"] += 1
    shutil.rmtree(path)
    return found


def _use(path: Path) -> str:
    """Everything that reads; errors of ours are an answer, others go through."""
    try:
        with open_store(path) as store:
            ok = verify(store).ok
            statistics(store)
            for key in store:
                _look_at(store, key)
            return "no fault seen" if ok else "named by verify"
    except ActivationLoggingError:
        return "an error of ours"


def _look_at(store: Any, key: str) -> None:
    try:
        entry = store[key]
        summary(entry)
        full(entry)
        for name in entry.derived_names:
            entry.derived(name)
        repr(entry)
        store.for_prompt(entry.prompt)
        store.for_request(entry.request_id)
    except EntryNotFound:
        return


def _change(path: Path) -> str:
    try:
        with open_store(path, writable=True) as store:
            store.delete_all(list(store)[:10])
            for key in list(store)[:1]:
                store.put_evaluation(key, name="x", label="correct")
                store.put_derived([Derived(key, "replay/x", np.zeros(2))])
    except ActivationLoggingError:
        return "an error of ours"
    return "done"


def forge(folder: Path, share: float = 1.0) -> Counter[str]:
    """Put wrong types, numbers and texts into every field of every kind of record, or some."""
    make(folder / "whole.lmdb")
    outcome = run(_forge, folder / "whole.lmdb", share, timeout=600)
    assert outcome.died_of is None, outcome.died_of
    found: Counter[str] = outcome.value
    return found


def _forge(path: Path, share: float) -> Counter[str]:
    found, chance = Counter[str](), random.Random(0)
    with open_store(path, writable=True) as store:
        env = store.environment
        for database, key, raw in _records(store):
            for forged in _forgeries(raw):
                if chance.random() >= share:
                    continue
                with env.write() as txn:
                    txn.put(key, forged, db=env.database(database))
                found[_use(path)] += 1
                found["records"] += 1
            with env.write() as txn:
                txn.put(key, raw, db=env.database(database))
        assert verify(store).ok
    return found


def _records(store: Any) -> Iterator[tuple[bytes, bytes, bytes]]:
    """One record of each kind, as it is; of the main database an entry with rows and a label."""
    key = next(key for key in store if store[key].evaluations)
    entry = store[key]
    snapshot = store.snapshot()
    chosen = [(b"", key.encode()), (b"~captures", entry.document["capture"].encode())]
    chosen += [
        (name, next(iter(snapshot.starting_with(name, b"")))[0])
        for name in (
            *(b"~evaluations", b"~writers", b"~segments", b"~repeats", b"~log", b"~rows"),
            b"~derived",
        )
    ]
    records = [(name, key, bytes(snapshot.get(name, key))) for name, key in chosen]
    del snapshot
    yield from records


def _forgeries(raw: bytes) -> Iterator[bytes]:
    yield from (b"", b"\0", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, raw[:-1])
    yield from (b"9" * 400, b"-1", b"\xff\xfe", b"cos\nsystem\n(S'false'\ntR.", raw + raw)
    # An array's header is a line of its own.
    line, mark, rest = raw.partition(b"\n")
    try:
        record = json.loads(line)
    except ValueError:
        return
    if isinstance(record, dict):
        for name in record:
            yield _dumped({k: v for k, v in record.items() if k != name}) + mark + rest
            for value in WRONG:
                yield _dumped({**record, name: value}) + mark + rest
        for value in WRONG:
            yield _dumped({**record, "slices": [["00", value, 1], [value, 0, 1]]}) + mark + rest


def _dumped(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
