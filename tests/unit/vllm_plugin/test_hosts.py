"""A front end and workers with stores of their own: what they tell each other, and what is refused.

The worker's part runs as it is; calls go to it directly, through JSON, in place of vLLM's engine.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.errors import UnsupportedEngineError
from activation_logging.records import NEVER_RAN
from activation_logging.settings import Settings
from activation_logging.store import StoreWriter
from activation_logging.store.repair import find_unmatched
from activation_logging.vllm_plugin import worker_store
from activation_logging.vllm_plugin.gate import check_absolute
from activation_logging.vllm_plugin.hosts import CLOCKS_S, Hosts, Met
from activation_logging.vllm_plugin.score_link import ScoreInbox, is_reachable
from activation_logging.vllm_plugin.worker_store import WorkerStore, check_variables
from tests.fixtures.answers import make_document
from tests.unit.vllm_plugin.test_collector import Machine

SETTINGS = Settings(layers="1,last")


@dataclass
class Engine:
    """Workers, each on a host, that answer a front end's calls."""

    workers: list[WorkerStore]
    said: Met

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "meet_activations":
            answers: list[Any] = [asdict(w.meet(self.said, *args[:2])) for w in self.workers]
        else:
            answers = [worker.locate(*args) for worker in self.workers]
        found: list[Any] = json.loads(json.dumps(answers))
        return found


class Server:
    """A front end whose store is at ``home``, and two engines that write to other folders."""

    def __init__(self, home: Path, *stores: Path, **settings: Any) -> None:
        self.machines = [Machine(path, **settings) for path in stores]
        workers = [
            WorkerStore(machine.writer, machine.captures, machine.collector)
            for machine in self.machines
        ]
        said = Met("b", 1, time.time(), SETTINGS.agreed, "")
        self.engine = Engine(workers, said)
        self.writer = StoreWriter(home, role="front end")
        self.hosts = Hosts(self.engine, self.writer, SETTINGS, "", None)

    def end(self, name: str, *, ran: bool = True) -> None:
        document = make_document(name, prompt=name, prompt_ids=[1, 2], response_ids=[3])
        self.writer.put_entry({**document, "capture": name})
        self.hosts.ended(name, ran=ran)

    def statuses(self) -> dict[str, tuple[str, str | None]]:
        """Flush as a server does, and return what the front end's store says of each prompt."""
        for machine in self.machines:
            machine.writer.flush()
        self.writer.flush()
        self.hosts.locate()
        self.writer.flush()
        with open_store(self.writer.path) as store:
            return {one.prompt: (one.status, one.status_reason) for one in store.entries()}

    def close(self) -> None:
        self.writer.close()
        for machine in self.machines:
            machine.collector.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Engine 0 shares the front end's store, engine 1 does not."""
    made = Server(tmp_path / "a.lmdb", tmp_path / "a.lmdb", tmp_path / "b.lmdb")
    made.hosts.meet()
    yield made
    made.close()


def test_every_entry_says_where_its_rows_are(server: Server, tmp_path: Path) -> None:
    here, away = server.machines
    for name, machine in (("here", here), ("away", away)):
        machine.new(name, [1, 2, 3], [3])
        machine.end([name])
        server.end(name)
    server.end("on its way")
    found = server.statuses()
    assert found["here"] == ("complete", None)
    where = f"b:{(tmp_path / 'b.lmdb').resolve()}"
    assert found["away"][0] == "elsewhere"
    assert where in (found["away"][1] or "")
    assert found["on its way"][0] == "pending"
    with open_store(tmp_path / "b.lmdb") as store:
        assert store.orphans() == ["away"]
        assert not list(find_unmatched(store))
    stores = [(one["path"], one["entries"]) for one in server.hosts.as_json()]
    assert stores == [(str(server.writer.path), True), (where.removeprefix("b:"), False)]


def test_one_that_ended_before_it_ran(server: Server) -> None:
    """No worker had it. One that a worker has is waited for."""
    server.machines[1].new("begun", [1, 2], [3])
    server.end("begun", ran=False)
    server.end("never", ran=False)
    assert server.statuses() == {"begun": ("pending", "the activations have not arrived"),
                                 "never": ("dropped", NEVER_RAN)}  # fmt: skip
    server.machines[1].end(["begun"])
    assert server.statuses()["begun"][0] == "elsewhere"


def test_one_store_needs_no_notes(tmp_path: Path) -> None:
    server = Server(tmp_path / "a.lmdb", tmp_path / "a.lmdb")
    server.hosts.meet()
    assert not server.hosts.away
    server.end("late")
    assert server.statuses()["late"][0] == "pending"
    assert [path.name for path in (tmp_path / "a.lmdb").iterdir() if "front" in path.name] == []
    server.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": Settings(layers="last").agreed}, "host b.*ACTIVATION_LAYERS=last.*1,last"),
        ({"probes": "another"}, "host b has other probes"),
        ({"reached": False}, "host b cannot reach this front end.*VLLM_HOST_IP"),
    ],
)
def test_a_worker_that_was_started_otherwise(
    server: Server, changes: dict[str, Any], sentence: str
) -> None:
    server.engine.said = replace(server.engine.said, **changes)
    with pytest.raises(UnsupportedEngineError, match=sentence):
        server.hosts.meet()


def test_two_hosts_on_one_store(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_store, "boot", lambda: "another start")
    with pytest.raises(UnsupportedEngineError, match=r"write to one store.*\{host\}"):
        server.hosts.meet()


def test_old_rows_cannot_make_room_where_no_entries_are(tmp_path: Path) -> None:
    server = Server(tmp_path / "a.lmdb", tmp_path / "b.lmdb", max_size="1GB")
    with pytest.raises(UnsupportedEngineError, match="unset ACTIVATION_MAX_SIZE"):
        server.hosts.meet()
    server.close()


@pytest.mark.parametrize("ahead", [-60.0, 60.0, CLOCKS_S / 4])
def test_clocks_that_differ(
    server: Server, our_log: pytest.LogCaptureFixture, ahead: float
) -> None:
    server.engine.said = replace(server.engine.said, clock=time.time() + ahead)
    server.hosts.meet()
    assert ("the clock of host b differs" in our_log.text) == (abs(ahead) > CLOCKS_S)


@pytest.mark.parametrize("path", [None, "data/activations.lmdb"])
def test_variables_that_did_not_arrive(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.delenv("ACTIVATION_LMDB_PATH", raising=False)
    if path is not None:
        monkeypatch.setenv("ACTIVATION_LMDB_PATH", path)
    with pytest.raises(UnsupportedEngineError, match="did not reach its worker on host"):
        check_variables()


def with_ray(executor: str, data_parallel: str) -> Any:
    """A configuration, as far as it says whether Ray starts the workers."""
    parallel = SimpleNamespace(
        distributed_executor_backend=executor, data_parallel_backend=data_parallel
    )
    return SimpleNamespace(parallel_config=parallel)


@pytest.mark.parametrize("backends", [("ray", "mp"), ("mp", "ray")])
def test_a_relative_path_under_ray(backends: tuple[str, str]) -> None:
    with pytest.raises(UnsupportedEngineError, match="give an absolute path"):
        check_absolute(Path("data/s.lmdb"), with_ray(*backends))
    check_absolute(Path("/data/{host}.lmdb"), with_ray(*backends))
    check_absolute(Path("data/s.lmdb"), with_ray("mp", "mp"))


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_whether_an_inbox_is_reached(host: str | None) -> None:
    inbox = ScoreInbox(host)
    assert is_reachable(inbox.address)
    inbox.close()
    assert not is_reachable(inbox.address)


def test_the_host_is_named(server: Server) -> None:
    assert server.hosts.as_json()[0]["host"] == socket.gethostname()
