"""Real servers with the real default model, started once and shared.

Health is polled, an early exit is noticed, and the end of the log is shown with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from activation_logging import Entry, Store, open_store
from activation_logging.demo_model import demo_model_path

START_S = 400
STOP_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/server" in str(item.path):
            item.add_marker(pytest.mark.server)


@dataclass
class RunningServer:
    """A server, where it answers and where it logs."""

    root_url: str
    model: str
    lmdb_path: Path
    log: Path
    process: subprocess.Popen[bytes]
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    def post(self, path: str, body: Mapping[str, Any], **kwargs: Any) -> httpx.Response:
        headers = {**self.headers, **kwargs.pop("headers", {})}
        return httpx.post(
            f"{self.root_url}{path}", json=body, timeout=300, headers=headers, **kwargs
        )

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.get(f"{self.root_url}{path}", timeout=60, headers=self.headers, **kwargs)

    def complete(self, prompt: Any, **options: Any) -> dict[str, Any]:
        """A greedy completion unless asked otherwise; the answer's body."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": 16,
            **options,
        }
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, content: str, **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 16}
        answer = self.post("/v1/chat/completions", {**body, **options})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def flush(self) -> None:
        answer = self.post("/v1/activations/flush", {})
        assert answer.status_code == 200, answer.text

    def store(self) -> Store:
        return open_store(self.lmdb_path)

    def entries_of(self, answer: Mapping[str, Any]) -> list[Entry]:
        """The entries of one answer, one per choice."""
        self.flush()
        return self.store().for_request(answer["id"])

    def metric(self, name: str) -> float:
        """Sum of one metric's samples."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    port: int,
    model: str,
    env: Mapping[str, str] | None = None,
    ready: str = "/health",
    key: str | None = None,
) -> Iterator[RunningServer]:
    """Start a server, wait until it answers, and stop it with SIGTERM at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    lmdb_path = folder / "activations.lmdb"
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "ACTIVATION_LMDB_PATH": str(lmdb_path),
        "VLLM_LOGGING_LEVEL": "INFO",
        "DO_NOT_TRACK": "1",
        **({"VLLM_API_KEY": key} if key else {}),
        **(env or {}),
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", model, lmdb_path, log, process, key)
    try:
        deadline = time.monotonic() + START_S
        while True:
            if process.poll() is not None:
                pytest.fail(f"the server exited with {process.returncode}:\n{tail(log)}")
            try:
                if server.get(ready).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                pytest.fail(f"the server was not ready within {START_S} s:\n{tail(log)}")
            time.sleep(0.5)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def model_path() -> Path:
    return demo_model_path()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Callable[..., Any]:
    """Start ``vllm serve`` with the default model in float32; flags and environment vary."""

    def start(*flags: str, env: Mapping[str, str] | None = None, eager: bool = True) -> Any:
        port = free_port()
        command = [
            str(Path(sys.executable).parent / "vllm"),
            "serve",
            str(model_path),
            *("--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--max-model-len", "2048"),
            *(("--enforce-eager",) if eager else ()),
            *flags,
        ]
        folder = tmp_path_factory.mktemp("server")
        layers = {"ACTIVATION_LAYERS": "1,15,last"}
        return running(command, folder, port=port, model="smol", env={**layers, **(env or {})})

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any]) -> Iterator[RunningServer]:
    """The shared one: eager, float32, layers 1, 15 and last of all tokens."""
    with serve() as started:
        yield started


@pytest.fixture(scope="session")
def reference(model_path: Path) -> Any:
    from tests.server.reference import Reference

    return Reference(model_path)


_fidelity: dict[str, dict[str, float]] = {}


@pytest.fixture(scope="session")
def fidelity() -> dict[str, dict[str, float]]:
    """Worst relative error by mode and layer, for the table at the end of the run."""
    return _fidelity


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _fidelity:
        return
    terminalreporter.section("rows against Hugging Face, float32: worst relative error per row")
    layers = sorted({layer for row in _fidelity.values() for layer in row if layer != "rows"})
    terminalreporter.line("| mode | rows | " + " | ".join(f"layer {x}" for x in layers) + " |")
    terminalreporter.line("|---|---|" + "---|" * len(layers))
    for mode, row in _fidelity.items():
        cells = " | ".join(f"{row[layer]:.1e}" for layer in layers)
        terminalreporter.line(f"| {mode} | {row['rows']:.0f} | {cells} |")
