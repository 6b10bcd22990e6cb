"""Real servers with the real default model, started once and shared."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from activation_logging.default_model import demo_model_path
from bench import docs
from tests.fixtures import tokenizers
from tests.fixtures.server import RunningServer, running
from tests.fixtures.tiny import make_model_with, make_tiny_model
from tests.server import live
from tests.server.reference import Fidelity, Reference, SiteTables, site_rows

LAYERS = {"smol": "1,15,last", "tiny": "1,2,last", "llama": "last"}
"""What is logged of each model."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/server" in str(item.path):
            item.add_marker(pytest.mark.server)


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
        command = [
            str(Path(sys.executable).parent / "vllm"),
            "serve",
            str(folder_of(model)),
            *("--served-model-name", model, "--host", "127.0.0.1"),
            *("--dtype", "float32", "--max-model-len", "2048"),
            *(("--enforce-eager",) if eager else ()),
            *flags,
        ]
        folder = tmp_path_factory.mktemp("server")
        logged = {"ACTIVATION_LAYERS": LAYERS[model]}
        if model in live.SHAPES:
            probes = live.make_probes(model, live.SHAPES[model])
            logged["ACTIVATION_PROBES"] = live.save(probes, folder / "probes")
        return running(command, folder, model=model, env={**logged, **(env or {})})

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


@pytest.fixture(scope="session")
def site_tables(request: pytest.FixtureRequest) -> Iterator[SiteTables]:
    """Worst errors by site; with ``--docs NAME`` the table ``T`` is written to ``NAME-T``."""
    found: SiteTables = defaultdict(dict)
    yield found
    if name := request.config.getoption("--docs"):
        for kind, table in found.items():
            docs.record_rows(f"{name}-{kind}", *site_rows(table))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for fidelity in _fidelity:
        terminalreporter.section("rows against Hugging Face, float32: worst relative error per row")
        for number, (header, rows) in enumerate(fidelity.tables(), 1):
            for line in docs.markdown(header, rows):
                terminalreporter.line(line)
            if name := config.getoption("--docs"):
                docs.record_rows(f"{name}-{number}", header, rows)
        told = ", ".join(f"{n} {what}" for what, n in fidelity.live.counts.items())
        terminalreporter.line(f"live scores and what the rows say later: {told}")
