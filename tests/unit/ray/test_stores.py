"""The stores of a folder: each engine's own, and what all of them hold of a run."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from activation_logging import open_store
from activation_logging.errors import NotAStore, SettingsError, StoreReadOnly
from activation_logging.generate import LINE_TAG, RUN_TAG
from activation_logging.generate.engine import request_id_of
from activation_logging.ray.stores import Kept, answered, answers, checked_folder, claim
from activation_logging.store import StoreWriter
from tests.fixtures.answers import make_capture, make_document, make_segment

HOST = socket.gethostname()


def write(path: Path, line: str, *, rows: bool = True) -> None:
    name = request_id_of("mine", line)
    tags = {RUN_TAG: "mine", LINE_TAG: line}
    writer = StoreWriter(path, role="test")
    writer.put_entry(make_document(name, finish_reason="stop", tags=tags))
    if rows:
        writer.put_capture(make_capture(name, [make_segment(name, 4)]))
    writer.close()


def test_each_engine_has_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    first, second = claim(folder), claim(folder)
    assert [first.path.name, second.path.name] == [f"{HOST}-0.lmdb", f"{HOST}-1.lmdb"]
    assert len(open_store(first.path)) == 0
    # An engine that has ended leaves its store to the next.
    first.file.close()
    assert claim(folder).path == first.path
    second.file.close()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    open_store(tmp_path / "s", writable=True).close()
    with pytest.raises(SettingsError, match="is a store; on Ray each engine has its own"):
        checked_folder(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAStore, match=f"no folder on {HOST}"):
        claim(tmp_path / "file" / "stores")
    with pytest.raises(StoreReadOnly, match=f"/proc/stores cannot be written on {HOST}"):
        claim(Path("/proc/stores"))


def test_a_relative_folder_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_folder("stores") == tmp_path / "stores"


@pytest.mark.usefixtures("cluster")
def test_what_all_stores_hold(tmp_path: Path) -> None:
    write(tmp_path / "a.lmdb", "one")
    write(tmp_path / "b.lmdb", "two")
    write(tmp_path / "b.lmdb", "three", rows=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.mdb").write_bytes(b"no store" * 1000)
    found = answered(tmp_path, "mine")
    assert found.lines == {"one", "two"}
    assert found.stores == [f"{HOST}:{tmp_path / name}" for name in ("a.lmdb", "b.lmdb")]
    assert [str(tmp_path / "broken") in problem for problem in found.problems] == [True]
    name = request_id_of("mine", "two")
    assert answers(tmp_path, "mine", ["two", "three", "four"]) == {
        "two": Kept(name, f"answer {name}", "stop")
    }
    assert answered(tmp_path / "nothing", "mine").lines == set()
