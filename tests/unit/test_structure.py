"""Which part of the package may import which, what is public, and who may look inside whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "activation_logging"

GROUND = frozenset(
    {
        "arrays", "asgi", "console", "errors", "exposure", "extras", "files", "keep", "lazy",
        "locations", "memory", "moved", "placeholders", "printable", "probe_list", "progress",
        "records", "registry", "score_options", "settings", "sites", "strict_json", "tags", "text",
    }
)  # fmt: skip
"""What everybody may import; these import each other only."""

ARROWS: dict[str, set[str]] = {
    "store": set(),
    "judges": set(),
    "packages": set(),
    "gguf_model": {"packages"},
    "default_model": {"gguf_model"},
    "large_model": {"gguf_model", "packages"},
    "process": set(),
    "dataset": {"store"},
    "verify": {"store"},
    "replay": {"store", "verify"},
    "store_metrics": {"store"},
    "routes": {"store", "store_metrics"},
    "detectors": {"dataset", "store"},
    "export": {"dataset", "store"},
    "report": {"detectors", "dataset", "store"},
    "view": {"dataset", "detectors", "process", "report", "store"},
    "benchmarks": {"judges", "packages", "store"},
    "follow_up": {"benchmarks", "detectors", "store"},
    "vllm_plugin": {"detectors", "routes", "store", "store_metrics", "view"},
    "vllm_serve": {"vllm_plugin"},
    "server": {"routes", "view", "vllm_plugin"},
    "generate": {"store", "vllm_plugin"},
    "ray": {"dataset", "detectors", "generate", "store"},
    "bench": {"process", "store"},
    "test_lmdb_logging": {"store"},
    "cli": {
        "bench", "benchmarks", "default_model", "detectors", "export", "follow_up", "generate",
        "large_model", "packages", "ray", "replay", "report", "store", "verify", "view",
        "vllm_serve",
    },
    "demo": {"benchmarks", "cli", "default_model", "process", "report", "store", "verify"},
}  # fmt: skip
"""What each package or module of the first level may import besides the ground and itself."""

NAMED_EXCEPTIONS = {
    # `store.dataset(...)` and `store.read(..., position=...)` are promised to users of a store.
    (f"{PACKAGE}.store.store", f"{PACKAGE}.dataset"),
    (f"{PACKAGE}.store.reading", f"{PACKAGE}.dataset.positions"),
    # `open_store` opens an export like a store.
    (f"{PACKAGE}.store.open", f"{PACKAGE}.export.reading"),
}

ALLOWED_FOREIGN = {
    "lmdb": {"store"},
    "vllm": {"vllm_plugin", "vllm_serve", "server", "generate"},
    "torch": {"vllm_plugin", "dataset", "gguf_model", "replay"},
    "sklearn": {"detectors", "report"},
    "inspect_ai": {"benchmarks", "judges"},
    "typer": {"cli"},
    "ray": {"ray"},
    "fastapi": {"routes", "server", "view", "vllm_plugin"},
}
"""Libraries that only some parts may import."""


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports(name: str, *, types: bool = True) -> frozenset[str]:
    """Every module that one imports, inside functions too; ``types``: also for types alone."""
    found: set[str] = set()
    tree = modules()[name]
    for_types = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types and not types:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = names & modules().keys()
            found.update(ours)
            if len(ours) < len(names):
                found.add(node.module)
    return frozenset(found)


def part(name: str) -> str:
    """The package or module of the first level that a module belongs to; "" for the top itself."""
    return [*name.split("."), ""][1]


def ours(*, types: bool = True) -> list[tuple[str, str]]:
    """Each import of one of our modules by another, but for the exceptions."""
    return [
        (name, other)
        for name in modules()
        for other in sorted(imports(name, types=types))
        if other.split(".")[0] == PACKAGE and (name, other) not in NAMED_EXCEPTIONS
    ]


def test_every_part_is_known() -> None:
    assert {part(name) for name in modules()} - {""} == GROUND | ARROWS.keys()


def test_directions() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, other in ours()
        if part(other) not in {part(name), "", *GROUND, *ARROWS.get(part(name), ())}
        and name != PACKAGE
    ]
    assert not wrong


def test_exceptions_are_still_needed() -> None:
    assert all(other in imports(name) for name, other in NAMED_EXCEPTIONS)


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for name, other in ours(types=False):
        if other in graph and name != other:
            graph[name].add(other)
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("library", ALLOWED_FOREIGN)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = {part(n) for n in modules() if any(i.split(".")[0] == library for i in imports(n))}
    assert users <= ALLOWED_FOREIGN[library]


def test_public_names_exist() -> None:
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                module = importlib.import_module(name)
                missing = [n for n in ast.literal_eval(node.value) if not hasattr(module, n)]
                assert not missing, name


@pytest.mark.parametrize(
    "module", ["", ".store", ".cli", ".dataset", ".export", ".verify", ".replay.run", ".view.app"]
)
def test_a_light_import(module: str) -> None:
    heavy = {"torch", "vllm", "sklearn", "inspect_ai", "plotly", "transformers", "pyarrow"}
    code = f"import {PACKAGE}{module}, sys; print(*{heavy!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_old_names_warn_and_are_the_new_ones() -> None:
    from activation_logging.moved import MOVED

    for old, new in MOVED.items():
        sys.modules.pop(f"{PACKAGE}.{old}", None)
        with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{old} is now {PACKAGE}."):
            module = importlib.import_module(f"{PACKAGE}.{old}")
        for name in [new] if isinstance(new, str) else new:
            found = vars(importlib.import_module(f"{PACKAGE}.{name}"))
            public = [n for n in found if not n.startswith("_")]
            if not isinstance(new, str):  # what several import for themselves is any one's
                public = [n for n in public if getattr(found[n], "__module__", "").endswith(name)]
            assert public, old
            assert all(getattr(module, n) is found[n] for n in public), old


def test_size() -> None:
    """A module that needs more than 450 lines holds more than one thing."""
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / PACKAGE).rglob("*.py")
    }
    assert {path.name: n for path, n in lines.items() if n > 450} == {}
