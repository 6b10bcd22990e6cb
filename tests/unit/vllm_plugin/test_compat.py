"""The adapter asks a version of vLLM for what is listed for that version, and for nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from activation_logging.vllm_plugin import gate, symbols

PACKAGE = Path(gate.__file__).parent.parent
ADAPTER = PACKAGE / "vllm_plugin" / "compat.py"
CHAT = "vllm.entrypoints.openai.chat_completion.serving"
VERSIONS = list(gate.VERSIONS)
Version = tuple[int, int]
LoadedFor = Callable[[Version], ModuleType]


@pytest.fixture
def loaded_for(monkeypatch: pytest.MonkeyPatch) -> LoadedFor:
    """The adapter as it is in a process of another version."""

    def load(version: Version) -> ModuleType:
        monkeypatch.setattr("vllm.__version__", "{}.{}.0".format(*version))
        spec = spec_from_file_location("compat_of_another_version", ADAPTER)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        assert version == module.VERSION
        return module

    return load


@pytest.mark.parametrize("version", VERSIONS)
def test_modules_and_methods_by_name(loaded_for: LoadedFor, version: Version) -> None:
    compat, listed = loaded_for(version), symbols.symbols_of(version)
    assert any(name.startswith("OfflineInferenceMixin.") for name in listed[compat.OFFLINE])
    methods = {name.partition("(")[0] for name in listed[CHAT]}
    assert f"OpenAIServingChat.{compat.CHAT_METHOD}" in methods


@pytest.mark.parametrize("version", VERSIONS)
def test_imports(version: Version) -> None:
    """Of an ``if`` that asks for the version, those of the branch that this version takes."""
    listed = symbols.symbols_of(version)
    found = []
    for function in ast.parse(ADAPTER.read_text()).body:
        if isinstance(function, ast.FunctionDef):
            for node in _taken(function.body, version):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm."):
                    found += [(str(node.module), alias.name) for alias in node.names]
    assert len(found) >= 4
    for module, name in found:
        assert name in {one.partition("(")[0].partition(".")[0] for one in listed[module]}


def _taken(body: list[ast.stmt], version: Version) -> list[ast.stmt]:
    """The statements that run in a version."""
    taken: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and "VERSION" in ast.unparse(node.test):
            holds = eval(ast.unparse(node.test), {"VERSION": version})
            taken += _taken(node.body if holds else node.orelse, version)
        else:
            taken.append(node)
    return taken


def test_the_version_is_asked_for_here_alone() -> None:
    """Nobody else takes a version of vLLM apart, but the gate, which refuses some."""
    texts = {path: path.read_text() for path in ADAPTER.parent.glob("*.py")}
    asking = {path.name for path, text in texts.items() if re.search(r"\bminor_of\b", text)}
    assert asking == {"compat.py", "gate.py", "symbols.py"}
    assert not [path for path, text in texts.items() if "compat.VERSION" in text]
    assert not [path for path, text in texts.items() if "import VERSION" in text]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_step(loaded_for: LoadedFor, version: Version) -> None:
    step = loaded_for(version).empty_step(3)
    assert step.total_num_scheduled_tokens == 0
    assert step.num_common_prefix_blocks == ([0, 0, 0] if version < (0, 32) else [])
