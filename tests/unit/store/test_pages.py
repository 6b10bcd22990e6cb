"""What is said of the pages of a store: LMDB's own miscounts are none of its damage."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import lmdb
import pytest

from activation_logging import open_store
from activation_logging.store import StoreWriter, layout
from activation_logging.store.engine.pages import walk
from activation_logging.verify import verify
from tests.fixtures.answers import put_answer

lmdb_verify = pytest.importorskip("lmdb.verify", reason="lmdb before 3.0 has no verifier")

RECORD = struct.Struct("<IHHQQQQQ")
"""LMDB's record of a database: of its fields, 4 counts leaf pages, and 6 entries."""
LEAVES, ENTRIES = 4, 6


@pytest.fixture
def file(store_path: Path) -> Path:
    """Of a store from which the answers with one tag, whose list had pages, are deleted."""
    writer = StoreWriter(store_path, role="test")
    for number in range(400):
        put_answer(writer, f"r{number}", tags={"of": str(number % 2)})
    writer.close()
    with open_store(store_path, writable=True) as store:
        store.delete_all([entry.key for entry in store.entries() if entry.tags["of"] == "1"])
    return store_path / "data.mdb"


def raw(file: Path) -> list[str]:
    """What the verifier says, unfiltered."""
    with file.open("rb") as opened:
        return lmdb_verify._Verifier(opened, file.stat().st_size).verify()


def change(file: Path, name: bytes, field: int, to: int) -> None:
    """Set a number in the record of a database, wherever the file has it."""
    with (
        lmdb.open(str(file.parent), readonly=True, max_dbs=16, lib_version=0) as env,
        env.begin() as txn,
    ):
        record = bytes(txn.get(name))
    fields = list(RECORD.unpack(record))
    fields[field] = to
    content = file.read_bytes()
    assert record in content
    file.write_bytes(content.replace(record, RECORD.pack(*fields)))


def test_a_miscount_is_no_damage(file: Path) -> None:
    (said,) = raw(file)
    assert re.search(r"~index DB: .* with dup sub-trees\), record says", said)
    assert walk(file) == []
    with open_store(file.parent) as store:
        assert verify(store).ok


def test_nor_is_one_where_no_key_has_pages_of_its_own_any_more(store_path: Path) -> None:
    """As of a request with so many choices that their keys fill some, once it is deleted."""
    writer = StoreWriter(store_path, role="test")
    for number in range(120):
        put_answer(writer, f"r{number}", request_id="one" if number else "other")
    writer.close()
    with open_store(store_path, writable=True) as store:
        store.delete_all([entry.key for entry in store.for_request("one")])
    file = store_path / "data.mdb"
    assert [said for said in raw(file) if re.search(r"~requests DB: .* pages, record says", said)]
    assert walk(file) == []


@pytest.mark.parametrize(
    ("name", "field", "to", "said"),
    [
        (layout.INDEX, LEAVES, 0, "~index DB: walked .* leaf pages"),
        (layout.INDEX, ENTRIES, 7, "~index DB: walked .* entries"),
        (layout.LOG, LEAVES, 99, "~log DB: walked .* leaf pages"),
    ],
)
def test_other_counts_are(file: Path, name: bytes, field: int, to: int, said: str) -> None:
    change(file, name, field, to)
    (problem,) = walk(file) or [""]
    assert re.search(said, problem)


def test_lost_pages_are(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert walk(file)


def test_pages_that_are_something_else_are(file: Path) -> None:
    """Each page in use in turn gets another number, as one that was written to a wrong place."""
    content = file.read_bytes()
    found = 0
    for at in range(2 * 4096, len(content), 4096 * 7):
        bad = bytearray(content)
        bad[at] ^= 0x55
        file.write_bytes(bytes(bad))
        found += bool(walk(file))
    assert found > 3
