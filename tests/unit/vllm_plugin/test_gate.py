"""What of vLLM is used is listed, and a vLLM without it is noticed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from activation_logging.errors import UnsupportedEngineError
from activation_logging.vllm_plugin import gate, symbols

PACKAGE = Path(gate.__file__).parent.parent
OTHER = "VLLM_SOURCES"
"""Names the folder that another version's package ``vllm`` lies in, as an unpacked wheel."""


def listed() -> dict[str, set[str]]:
    """Every module of the list, and what of it, without members and parameters."""
    found: dict[str, set[str]] = {}
    for modules, names in symbols.SYMBOLS.items():
        for module in modules.split(" or "):
            tops = {name.partition("(")[0].partition(".")[0] for name in names}
            found.setdefault(module, set()).update(tops)
    return found


def imported(source: Path, *, guarded: bool = True) -> Iterator[tuple[str, str]]:
    """Each name of vLLM's that a module imports, for typing only or not, with its module.

    ``guarded`` ones stand in a ``try``.
    """
    tree = ast.parse(source.read_bytes())
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    left_out = {
        inner
        for node in ([] if guarded else tries)
        for inner in ast.walk(node)
        if any(getattr(handler.type, "id", "") == "ImportError" for handler in node.handlers)
    }
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm":
                    yield alias.name, ""
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                yield node.module or "", alias.name


class TestTheList:
    def test_has_every_import_of_the_package(self) -> None:
        known = listed()
        missing = {
            f"{path.relative_to(PACKAGE)}: from {module} import {name}"
            for path in PACKAGE.rglob("*.py")
            for module, name in imported(path)
            if name not in known.get(module, {}) and f"{module}.{name}".rstrip(".") not in known
        }
        assert not missing, "these imports are not in symbols.SYMBOLS"

    def test_has_what_is_imported_by_its_name(self) -> None:
        known = listed()
        for name in gate.WORKERS:
            module, _, worker = name.rpartition(".")
            assert worker in known[module]

    def test_is_what_this_vllm_has(self) -> None:
        assert gate.missing_symbols() == []
        gate.check_symbols()
        gate.check_modules()

    def test_is_what_another_version_has(self) -> None:
        folder = os.environ.get(OTHER)
        if folder is None:
            pytest.skip(f"{OTHER} names no folder with the sources of another vLLM")
        assert gate.missing_symbols(Path(folder)) == []
        sources = symbols._Sources(Path(folder))
        moved = {
            f"{path.relative_to(PACKAGE)}: from {module} import {name}"
            for path in PACKAGE.rglob("*.py")
            for module, name in imported(path, guarded=False)
            if name and not sources.has(f"{module}.{name}") and not sources.find(module, name)
        }
        assert not moved, "these imports fail there"

    def test_is_checked_quickly_and_imports_nothing(self) -> None:
        program = textwrap.dedent(
            """
            import sys
            from activation_logging.vllm_plugin import gate
            gate.check_symbols()
            print([name for name in sys.modules if name.split(".")[0] in ("vllm", "torch")])
            """
        )
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"
        assert time.monotonic() - started < 5


SOURCES = {
    "vllm/__init__.py": "from .version import __version__\n",
    "vllm/version.py": "__version__ = '1'\n",
    "vllm/base.py": """
        class Base:
            def run(self, step, *, quick=False): ...
        """,
    "vllm/engine.py": """
        from typing import NamedTuple
        from vllm.base import Base as Parent

        if True:
            class Engine(Parent):
                late: int

                def __init__(self, config):
                    self.config, self.state = config, None

                @property
                def errored(self): ...

                async def add(self, request, prompt, *, queue=None): ...

        class Fields(NamedTuple):
            rows: list
        """,
    "vllm/server/__init__.py": "from ..engine import Engine\n",
}
USED = {
    "vllm": ("__version__",),
    "vllm.engine": (
        "Engine.__init__(config)",
        "Engine.config",
        "Engine.late",
        "Engine.errored",
        "Engine.run(step, ...)",
        "Engine.add(request, prompt, queue)",
        "Fields.rows",
    ),
    "vllm.server": ("Engine.state",),
    "vllm.moved or vllm.base": ("Base",),
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small vLLM of real files, which has all that is used of it."""
    for name, text in SOURCES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.setattr(symbols, "SYMBOLS", USED)
    return tmp_path


class TestWhatIsMissing:
    def test_nothing(self, sources: Path) -> None:
        assert gate.missing_symbols(sources) == []

    @pytest.mark.parametrize(
        ("file", "changes", "missing"),
        [
            ("engine", {"add(": "add_request("}, ["engine.Engine.add(request, prompt, queue)"]),
            ("engine", {"queue=None": "sink=None"}, ["engine.Engine.add(request, prompt, queue)"]),
            (
                "engine",
                {"request, prompt": "prompt, request"},
                ["engine.Engine.add(request, prompt, queue)"],
            ),
            (
                "engine",
                {"prompt, *,": "prompt, index, *,"},
                ["engine.Engine.add(request, prompt, queue)"],
            ),
            ("engine", {"late": "later"}, ["engine.Engine.late"]),
            ("engine", {"rows": "states"}, ["engine.Fields.rows"]),
            ("engine", {"self.state": "self.condition"}, ["server.Engine.state"]),
            ("engine", {"def errored": "def failed"}, ["engine.Engine.errored"]),
            ("base", {"step": "batch"}, ["engine.Engine.run(step, ...)"]),
            ("base", {"run": "execute"}, ["engine.Engine.run(step, ...)"]),
            ("version", {"__version__": "version"}, ["__version__"]),
        ],
    )
    def test_a_symbol(
        self, sources: Path, file: str, changes: Mapping[str, str], missing: list[str]
    ) -> None:
        path = sources / "vllm" / f"{file}.py"
        text = path.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        assert gate.missing_symbols(sources) == [f"vllm.{name}" for name in missing]
        with pytest.raises(UnsupportedEngineError, match="this vLLM has no vllm") as refused:
            gate.check_symbols(sources)
        assert missing[0] in str(refused.value)

    def test_a_module(self, sources: Path) -> None:
        (sources / "vllm" / "server" / "__init__.py").unlink()
        assert gate.missing_symbols(sources) == ["vllm.server"]

    def test_a_module_in_both_of_its_places(self, sources: Path) -> None:
        base = sources / "vllm" / "base.py"
        base.rename(base.with_name("moved.py"))
        missing = gate.missing_symbols(sources)
        assert missing == ["vllm.engine.Engine.run(step, ...)"]
        base.with_name("moved.py").unlink()
        assert gate.missing_symbols(sources)[1:] == ["vllm.moved or vllm.base"]

    def test_all_of_it(self, tmp_path: Path) -> None:
        assert gate.missing_symbols(tmp_path) == list(symbols.SYMBOLS)
