"""Requests that make no sense, and processes that are killed: nothing else is disturbed."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error

from tests.faults import disks
from tests.faults.servers import GONE_S, examine, kill_under_load, pester, processes_of
from tests.fixtures.server import RunningServer


def test_the_routes_take_whatever_their_schema_allows(server: RunningServer) -> None:
    schema = schemathesis.openapi.from_url(f"{server.root_url}/openapi.json")
    tried = []
    for found in schema.include(path_regex="^/v1/activations").get_all_operations():
        operation = found.ok()
        tried.append(operation.label)

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error])

        check()
    assert len(tried) >= 6, tried


def test_malformed_requests(server: RunningServer) -> None:
    statuses, wrong = pester(server, 400)
    assert not wrong, wrong[:5]
    assert statuses[400] > 50, statuses
    # What they have left in the store keeps nobody from reading it.
    listed = server.get("/v1/activations", params={"limit": 1000}).json()
    assert len(listed["data"]) == len(server.store())


def test_the_disk_is_full(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "disk" / "a.lmdb"
    with ExitStack() as stack:
        try:
            stack.enter_context(disks.small_disk(tmp_path / "disk"))
        except disks.NotPermitted as reason:
            pytest.skip(f"a small disk cannot be mounted: {reason}")
        started = stack.enter_context(serve(env={"ACTIVATION_LMDB_PATH": str(path)}))
        server = dataclasses.replace(started, lmdb_path=path)
        ids = [server.complete("Before", max_tokens=2)["id"]]
        server.flush()
        with disks.no_room(tmp_path / "disk"):
            # Serving goes on, and whoever looks at the metrics sees that logging does not.
            ids += [server.complete(f"Meanwhile {n}", max_tokens=2)["id"] for n in range(8)]
            while not server.metric("activation_logging_errors_total"):
                time.sleep(0.2)
            assert server.store().for_request(ids[0])[0].status == "complete"
            assert not server.store().for_request(ids[-1])
        server.flush()
        statuses = {server.store().for_request(name)[0].status for name in ids}
        assert statuses == {"complete"}
        assert server.metric("activation_logging_lost_total") == 0


def test_the_engine_is_killed_during_a_flush(serve: Callable[..., Any]) -> None:
    with serve() as started, ThreadPoolExecutor(1) as pool:
        before = started.complete("Before")["id"]
        started.flush()
        processes = processes_of(started)
        # The worker does not answer, so the engine is killed while the flush waits for it.
        processes["worker"].suspend()
        answer = pool.submit(started.post, "/v1/activations/flush", {})
        time.sleep(1)
        processes["engine"].kill()
        processes["worker"].kill()
        assert answer.result(timeout=120).status_code == 503
        _, alive = psutil.wait_procs(processes.values(), GONE_S)
        assert not alive
        assert examine(started, [before]).entries == 1


# The engine's turn is in ``make torture``: each takes a server of its own.
@pytest.mark.parametrize("role", ["front end", "worker"])
def test_a_process_is_killed(serve: Callable[..., Any], role: str) -> None:
    with serve() as started:
        left = kill_under_load(started, role, after_s=random.Random(role).uniform(1, 3))
    assert left.acknowledged, "nothing had been written when it was killed"
