"""Kills, power cuts, full disks, crowds, forged files: a few of each. ``make torture`` has more."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import lmdb
import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.errors import NotAStore
from activation_logging.store import StoreWriter
from activation_logging.store.engine import environment
from activation_logging.store.engine.filesystem import network_type
from activation_logging.store.engine.liveness import birth, is_running
from activation_logging.store.engine.reader_watch import ReaderWatch
from activation_logging.store.repair import page_problems
from tests.faults import crowds, disks, hostile, kills, power
from tests.fixtures.answers import put_answer


@pytest.fixture(autouse=True)
def no_open_environments() -> None:
    """Children are forked; what another test has left open would only be in their way."""
    gc.collect()


class TestKills:
    def test_of_writers(self, tmp_path: Path) -> None:
        found = kills.kill_writers(tmp_path, 4)
        assert found["kills"] == 8
        assert found["flushed"] > 0

    def test_of_compactions(self, store_path: Path) -> None:
        assert kills.kill_compaction(store_path, 4)["kills"] == 4


def test_power_cuts(tmp_path: Path) -> None:
    reason = power.why_not()
    if reason is not None:
        pytest.skip(reason)
    found = power.cut_the_power(tmp_path, flushes=5, cuts=25)
    assert found["lost"] == 0
    assert found["relied_upon"] > 0
    assert found["lost_without_sync"] > 0, "cuts that ignore every sync must do harm"


class TestDisks:
    def do(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except disks.NotPermitted as reason:
            pytest.skip(f"a small disk cannot be mounted: {reason}")

    def test_full_with_the_policy_block(self, tmp_path: Path) -> None:
        found = self.do(disks.fill_the_disk, tmp_path / "disk", "block")
        assert found["errors"] > 0
        assert found["complete"] == 151

    def test_full_with_the_policy_drop(self, tmp_path: Path) -> None:
        found = self.do(disks.fill_the_disk, tmp_path / "disk", "drop")
        assert found["errors"] > 0
        assert found["dropped"] > 0
        assert found["complete"] + found["dropped"] == 151

    @pytest.mark.parametrize("policy", ["block", "drop"])
    def test_one_that_copies_on_write(self, tmp_path: Path, policy: Any) -> None:
        """It has no room for what is written again either, the table of readers among it."""
        found = self.do(disks.fill_the_disk, tmp_path / "disk", policy, disk=disks.copying_disk)
        assert found["errors"] > 0
        assert found["complete"] + found["dropped"] == 151
        assert bool(found["dropped"]) == (policy == "drop")

    def test_a_quota(self, tmp_path: Path) -> None:
        """The kernel may kill whoever has the store open; what was flushed is there."""
        assert self.do(disks.exhaust_a_quota, tmp_path / "disk").total() == 1

    @pytest.mark.parametrize("policy", ["block", "drop"])
    def test_a_limit_on_the_size_of_files(self, tmp_path: Path, policy: Any) -> None:
        found = disks.limit_file_size(tmp_path / "files", policy)
        assert found["errors"] > 0
        assert found["complete"] + found["dropped"] == 151
        assert bool(found["dropped"]) == (policy == "drop")

    def test_a_new_store_on_a_full_one(self, tmp_path: Path) -> None:
        """LMDB's table of readers is written through a map: without room it would be SIGBUS."""
        assert "No space left" in self.do(disks.open_on_a_full_disk, tmp_path / "disk")

    def test_read_only(self, tmp_path: Path) -> None:
        found = self.do(disks.read_only_disk, tmp_path / "disk")
        assert found == {"read": 10, "refused": 3}


class TestCrowds:
    def test_sixteen_readers_and_two_writers(self, store_path: Path) -> None:
        found = crowds.crowd(store_path, readers=16, writers=2, answers=150)
        assert found["entries"] == 300
        assert found["reads"] > 0

    def test_a_dead_reader_is_cleared_away(self, store_path: Path) -> None:
        assert crowds.dead_reader(store_path) == (1, 0)

    def test_readers_that_lmdb_does_not_tell(
        self, store_path: Path, our_log: pytest.LogCaptureFixture
    ) -> None:
        env = environment.acquire(store_path, create=True)
        env._env.close()
        ReaderWatch(env).look()
        assert "its readers cannot be checked: Attempt to operate on closed" in our_log.text

    def test_a_reader_that_stays(self, store_path: Path, our_log: pytest.LogCaptureFixture) -> None:
        sizes = crowds.lasting_reader(store_path, turns=30)
        assert "until it ends" in our_log.text
        # Under the view every commit takes new room; after it, there is more than enough.
        assert sizes.start < sizes.held == sizes.released


class TestHostileFiles:
    def test_flipped(self, tmp_path: Path) -> None:
        found = hostile.flip(tmp_path, times=25, bits=50)
        assert found["files"] == 25
        assert found["found by the walker"] > 0

    def test_verify_names_the_fault_without_opening_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.lmdb"
        data = bytearray(hostile.make(path))
        data[10 * 4096 : 20 * 4096] = bytes(range(256)) * 160
        (path / "data.mdb").write_bytes(data)
        (path / "lock.mdb").unlink()
        found = CliRunner().invoke(_app, ["verify", str(path), "--json"])
        assert found.exit_code == 1
        problems = json.loads(found.stdout)["problems"]
        assert any("page" in problem["what"] for problem in problems)
        assert not (path / "lock.mdb").exists(), "LMDB has not been near it"

    def test_cut_off(self, tmp_path: Path) -> None:
        found = hostile.cut(tmp_path, times=15)
        assert found["reading: an error of ours"] >= 15
        assert not any("dies" in what for what in found)

    def test_forged(self, tmp_path: Path) -> None:
        found = hostile.forge(tmp_path, share=0.1)
        assert found["an error of ours"] > 0

    @pytest.mark.skipif(int(lmdb.__version__.split(".")[0]) < 3, reason="lmdb has one engine only")
    def test_of_another_engine(self, tmp_path: Path) -> None:
        with (
            lmdb.open(str(tmp_path / "x"), lib_version=1, max_dbs=2) as env,
            env.begin(write=True) as txn,
        ):
            txn.put(b"key", b"value")
        for writable in (False, True):
            with pytest.raises(NotAStore):
                open_store(tmp_path / "x", writable=writable)

    def test_a_sound_store_is_found_sound_while_it_is_written(
        self, store_path: Path, store_writer: StoreWriter
    ) -> None:
        for number in range(300):
            put_answer(store_writer, f"r{number}", prompt=f"p{number}")
            if number % 20 == 0:
                assert page_problems(store_path) == []


class TestWhoStillWrites:
    def test_a_number_that_another_process_has_now(
        self, store_path: Path, store_writer: StoreWriter
    ) -> None:
        put_answer(store_writer, "r")
        store_writer.flush()
        with open_store(store_path) as store:
            (record,) = store.writers().values()
        assert record["born"] == birth(record["pid"])
        assert is_running(record)
        assert not is_running({**record, "born": f"{record['born']}0"})
        assert not is_running({**record, "stopped": 1.0})
        assert is_running({**record, "host": "another"})


class TestNetworkFileSystems:
    MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
//server/my\\040share /mnt/my\\040share cifs rw 0 0
user@host: /mnt/ssh fuse.sshfs rw 0 0
tmpfs /mnt/ssh tmpfs rw 0 0
"""

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/data/a.lmdb", None),
            ("/home/me/a.lmdb", "nfs4"),
            ("/homework/a.lmdb", None),
            ("/home/local/a.lmdb", None),
            ("/mnt/my share/a.lmdb", "cifs"),
            ("/mnt/ssh/a.lmdb", None),
        ],
    )
    def test_are_told_by_the_list_of_mounts(
        self, path: str, kind: str | None, tmp_path: Path
    ) -> None:
        (tmp_path / "mounts").write_text(self.MOUNTS)
        assert network_type(Path(path), tmp_path / "mounts") == kind
        assert network_type(Path(path), tmp_path / "none") is None

    def test_are_warned_of(
        self,
        store_path: Path,
        tmp_path: Path,
        our_log: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "mounts").write_text("server:/ / nfs rw 0 0\n")
        monkeypatch.setattr(
            "activation_logging.store.engine.filesystem._MOUNTS", tmp_path / "mounts"
        )
        StoreWriter(store_path, role="test").close()
        assert "network file system (nfs)" in our_log.text
