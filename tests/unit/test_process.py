"""Small real servers, started and stopped as the large ones are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from activation_logging.errors import ServerFailed
from activation_logging.process import free_port, running, stop, tail

Start = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]

# It starts a process of its own, as vLLM does, and answers 503 until it is asked a second time.
SERVER = """
import http.server, os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
print("cache", os.environ["VLLM_CPU_KVCACHE_SPACE"], flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Handler.asked += 1
        healthy = self.path == "/health" and Handler.asked > 1
        self.send_response(200 if healthy else 503)
        self.end_headers()

def leave(*_):
    child.kill()
    child.wait()
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else leave)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a program with a port as its first argument; ``tmp_path/log`` is its log."""

    def started(program: str, *arguments: str, port: int = 0, **options: Any) -> Any:
        port = port or free_port()
        options = {"env": os.environ, "start_s": 120, **options}
        return running(
            [sys.executable, "-c", program, str(port), *arguments],
            url=f"http://127.0.0.1:{port}",
            log=tmp_path / "log",
            **options,
        )

    return started


def word(log: Path, name: str) -> str:
    """What a server has written behind a name."""
    (line,) = (line for line in log.read_text().splitlines() if line.startswith(name))
    return line.split()[1]


def is_gone(pid: int) -> bool:
    """Whether a process has ended within a minute; nobody may have waited for it yet."""
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_it_is_healthy_and_then_stopped(start: Start, tmp_path: Path) -> None:
    port = free_port()
    with start(SERVER, port=port) as process:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.status == 200
        child = int(word(tmp_path / "log", "child"))
        assert psutil.pid_exists(child)
        assert os.getpgid(process.pid) == process.pid != os.getpgrp()
    assert process.returncode == 0
    assert is_gone(child)


def test_one_that_ignores_sigterm_is_killed_with_what_it_started(
    start: Start, tmp_path: Path
) -> None:
    with start(SERVER, "deaf", stop_s=0.5) as process:
        child = int(word(tmp_path / "log", "child"))
    assert process.returncode == -9
    assert is_gone(child)


def test_what_a_killed_one_leaves_is_killed_too(start: Start, tmp_path: Path) -> None:
    with start(SERVER) as process:
        child = int(word(tmp_path / "log", "child"))
        process.kill()
        process.wait()
        assert psutil.pid_exists(child)
    assert is_gone(child)


def test_it_is_stopped_when_the_block_fails(start: Start) -> None:
    with pytest.raises(ZeroDivisionError), start(SERVER) as process:
        1 / 0  # noqa: B018
    assert process.returncode == 0


def test_one_that_exits_early_shows_the_end_of_its_log(start: Start) -> None:
    program = "import sys\nfor n in range(99): print('line', n)\nsys.exit('no such model')"
    with pytest.raises(ServerFailed, match="exit code 1") as failed, start(program, name="it"):
        pass
    assert str(failed.value).startswith("it stopped")
    assert "line 98" in str(failed.value)
    assert "no such model" in str(failed.value)
    assert "line 1\n" not in str(failed.value)


def test_a_free_port_is_none_that_a_connection_may_get() -> None:
    taken = socket.create_server(("127.0.0.1", free_port()))
    with taken:
        assert 20_000 <= taken.getsockname()[1] < 32_768


def test_one_that_never_listens(start: Start) -> None:
    children = psutil.Process().children()
    program = "import time; time.sleep(600)"
    before = time.monotonic()
    with pytest.raises(ServerFailed, match="not ready within 1 s"), start(program, start_s=1):
        pass
    assert time.monotonic() - before < 60
    assert psutil.Process().children() == children


@pytest.mark.parametrize(("given", "cache"), [({}, "3"), ({"VLLM_CPU_KVCACHE_SPACE": "7"}, "7")])
def test_memory_for_the_cache(
    start: Start, tmp_path: Path, given: dict[str, str], cache: str
) -> None:
    env = {**os.environ}
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    with start(SERVER, env=env | given, kv_cache_gib=3):
        assert word(tmp_path / "log", "cache") == cache


def test_stop_twice(start: Start) -> None:
    with start(SERVER) as process:
        stop(process)
        stop(process)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\n\xff\n")
    assert tail(tmp_path / "log", 2) == "two\n\N{REPLACEMENT CHARACTER}"
