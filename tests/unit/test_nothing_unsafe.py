"""No line of the package reads or writes what could run code when it is read."""

from __future__ import annotations

import ast
import io
import pickle
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file
    for folder in ("activation_logging", "bench", "examples", "packaging", "tasks")
    for file in (ROOT / folder).rglob("*.py")
)
EXCEPT = ROOT / "activation_logging" / "benchmarks" / "sources" / "drugs.py"
"""Reads a pickle that comes with another package, with an unpickler that knows no classes."""
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "os.system"}
OPTIONS = {"allow_pickle", "trust_remote_code", "shell"}
ASKED_FOR = "trust_remote_code"
"""May be handed on where a user asked for it. It is off by default."""


def is_off(value: ast.AST | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def found_in(tree: ast.AST) -> list[str]:
    """What is not allowed, as ``line: what``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            wrong = {name.split(".")[0] for name in names} & MODULES
        elif isinstance(node, ast.Call):
            wrong = {ast.unparse(node.func)} & CALLS
            wrong |= {
                word.arg
                for word in node.keywords
                if word.arg in OPTIONS
                and not is_off(word.value)
                and not (word.arg == ASKED_FOR and ASKED_FOR in ast.unparse(word.value))
            }
        elif isinstance(node, ast.FunctionDef):
            given = node.args
            last = given.args[len(given.args) - len(given.defaults) :]
            named = [
                *zip(last, given.defaults, strict=True),
                *zip(given.kwonlyargs, given.kw_defaults, strict=True),
            ]
            wrong = {arg.arg for arg, value in named if arg.arg in OPTIONS and not is_off(value)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            wrong = {node.target.id} & OPTIONS if not is_off(node.value) else set()
        else:
            continue
        found += [f"{node.lineno}: {what}" for what in sorted(wrong)]
    return found


@pytest.mark.parametrize(
    "file",
    [file for file in SOURCES if file != EXCEPT],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_nothing_runs_when_it_is_read(file):
    assert found_in(ast.parse(file.read_text(encoding="utf-8"))) == []


def test_the_one_pickle_is_read_without_classes():
    from activation_logging.benchmarks.sources.drugs import _PlainData

    assert _PlainData(io.BytesIO(pickle.dumps({"a": ["b", {1}]}))).load() == {"a": ["b", {1}]}
    with pytest.raises(pickle.UnpicklingError, match="no plain data"):
        _PlainData(io.BytesIO(pickle.dumps(print))).load()


def test_the_search_finds():
    text = "import pickle\nnumpy.load(f, allow_pickle=True)\nfrom joblib import dump\neval('1')"
    assert len(found_in(ast.parse(text))) == 4
    asked = "load(x, trust_remote_code={})\ndef f(*, trust_remote_code={}): ...\n"
    assert found_in(ast.parse(asked.format("options.trust_remote_code", False))) == []
    assert len(found_in(ast.parse(asked.format(True, True)))) == 2
    assert len(found_in(ast.parse("class A:\n    trust_remote_code: bool = True"))) == 1
