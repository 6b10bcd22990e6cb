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
from functools import cache
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from activation_logging import Entry, Store, open_store
from activation_logging.default_model import demo_model_path
from tests import tokenizers
from tests.server.reference import Fidelity, Reference
from tests.server.tiny import make_model_with, make_tiny_model

START_S = 400
STOP_S = 60
V2_SITE = Path(__file__).with_name("v2_site")
LAYERS = {"smol": "1,15,last", "tiny": "1,2,last", "llama": "last"}
"""What is logged of each model."""


def as_on_gpu(runner: Literal["V1", "V2"]) -> dict[str, str]:
    """The environment in which vLLM schedules asynchronously on the CPU, or runs its V2 runner.

    vLLM tells of the asynchronous scheduling itself only while it debugs.
    """
    path = os.pathsep.join(filter(None, (str(V2_SITE), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    if runner == "V2":
        env |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
    return env


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

    @property
    def uses_v2_runner(self) -> bool:
        return "Using V2 Model Runner" in self.log.read_text()

    @property
    def schedules_asynchronously(self) -> bool:
        """Whether the engine schedules a step while another runs; for servers ``as_on_gpu``."""
        return "Batch queue is enabled with size 2" in self.log.read_text()

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
def folder_of(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Callable[[str], Path]:
    """The folder of a model by the name that it is served under.

    ``smol`` and ``tiny``, or the kind of a tokenizer that a tiny one is to have.
    """

    @cache
    def folder(name: str) -> Path:
        if name == "smol":
            return model_path
        if name in tokenizers.KINDS:
            return make_model_with(name, tmp_path_factory.mktemp(name))
        return make_tiny_model(model_path, tmp_path_factory.mktemp("tiny"))

    return folder


@pytest.fixture(scope="session")
def serve(
    tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], Path]
) -> Callable[..., Any]:
    """Start ``vllm serve`` with a model in float32; flags and environment vary."""

    def start(
        *flags: str,
        env: Mapping[str, str] | None = None,
        eager: bool = True,
        model: str = "smol",
    ) -> Any:
        port = free_port()
        command = [
            str(Path(sys.executable).parent / "vllm"),
            "serve",
            str(folder_of(model)),
            *("--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--max-model-len", "2048"),
            *(("--enforce-eager",) if eager else ()),
            *flags,
        ]
        folder = tmp_path_factory.mktemp("server")
        layers = {"ACTIVATION_LAYERS": LAYERS[model]}
        return running(command, folder, port=port, model=model, env={**layers, **(env or {})})

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any]) -> Iterator[RunningServer]:
    """The shared one: eager, float32, layers 1, 15 and last of all tokens."""
    with serve() as started:
        yield started


@pytest.fixture(scope="session")
def reference_of(folder_of: Callable[[str], Path]) -> Callable[[str], Reference]:
    """The reference of a model by the name that it is served under."""
    return cache(lambda name: Reference(folder_of(name)))


@pytest.fixture(scope="session")
def reference(reference_of: Callable[[str], Reference]) -> Reference:
    return reference_of("smol")


_fidelity: list[Fidelity] = []


@pytest.fixture(scope="session")
def check(reference_of: Callable[[str], Reference]) -> Fidelity:
    """Compares every row of every layer, and notes the worst error for the table."""
    _fidelity.append(Fidelity(reference_of))
    return _fidelity[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for fidelity in _fidelity:
        terminalreporter.section("rows against Hugging Face, float32: worst relative error per row")
        for line in fidelity.tables():
            terminalreporter.line(line)
