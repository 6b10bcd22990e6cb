"""Another version of vLLM under the tests, on a machine without a GPU.

    python -m bench.versions 0.33.0 [--wheel vllm-0.33.0-....whl] [--folder output/versions]

A version may come without a build for CPUs. This takes its Python code from the ordinary wheel and
the compiled kernels from the CPU build that is installed, puts both into a folder with what else
the version needs and is not here, and runs the core of the tests with that folder in front: rows
against Hugging Face, and preemption with clients that leave, with both model runners. Kernels of
one version under the Python of another work only while the versions are neighbours. Before that it
looks for everything of vLLM's that the plugin uses. What comes after ``--`` goes to pytest, such as
``-- -k V2``.

Exits with 1 if anything of vLLM's is missing, or a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from activation_logging.console import PlainConsole
from activation_logging.vllm_plugin.symbols import missing_symbols

TESTS = ("tests/server/test_fidelity.py", "tests/server/test_preemption.py")
FOR_GPUS = (
    *("fastsafetensors", "flashinfer", "humming", "instanttensor", "nv", "pynv", "quack"),
    *("tilelang", "tokenspeed", "torch"),
)
"""How the names of packages begin that vLLM asks for, and needs on GPUs or for pictures alone."""
TRY = """
from importlib.metadata import version
from vllm import platforms
platforms.current_platform.import_kernels()
print(version("vllm"), platforms.__file__)
"""
terminal = PlainConsole(width=120)


class VersionError(Exception):
    """The environment cannot be made; the message says what to do."""


def download(version: str, folder: Path) -> Path:
    """Have pip fetch the wheel, without what it depends on."""
    terminal.print(f"downloading vLLM {version} (about 350 MB) ...")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"vllm=={version}"]
    if subprocess.run(command, check=False).returncode:
        raise VersionError(f"pip could not download vLLM {version}: give its wheel with --wheel")
    return next(folder.glob("vllm-*.whl"))


def unpack(wheel: Path, version: str, target: Path) -> None:
    """Unpack a wheel without its compiled parts, under a version that says "cpu".

    vLLM looks for these letters in the version of the distribution to tell what it was built for.
    """
    terminal.print(f"unpacking {wheel.name} ...")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [n for n in archive.namelist() if not n.endswith(".so")])
    except (OSError, zipfile.BadZipFile) as error:
        raise VersionError(f"{wheel} cannot be unpacked ({error}): give another --wheel") from error
    named = target / f"vllm-{version}.dist-info"
    if not named.is_dir():
        raise VersionError(f"{wheel} is not a wheel of vLLM {version}: give that with --wheel")
    metadata = named / "METADATA"
    text = metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    metadata.write_text(text)
    named.rename(target / f"vllm-{version}+cpu.dist-info")


def link_kernels(target: Path) -> None:
    """Put the installed CPU build's compiled parts beside the Python code."""
    spec = find_spec("vllm")
    kernels = list(Path(spec.origin).parent.glob("*.so")) if spec and spec.origin else []
    if not kernels:
        raise VersionError("there is no CPU build of vLLM here: run `make setup ACCELERATOR=cpu`")
    for kernel in kernels:
        link = target / "vllm" / kernel.name
        link.unlink(missing_ok=True)
        link.symlink_to(kernel)


def install_what_is_missing(target: Path) -> None:
    """Put what the version asks for, and is not installed at all, beside it.

    Of what is installed in another version, that of the present build is good enough. What only
    GPUs need is left out.
    """
    (metadata,) = target.glob("vllm-*.dist-info/METADATA")
    asked = [
        Requirement(line.partition(":")[2].strip())
        for line in metadata.read_text().partition("\n\n")[0].splitlines()
        if line.startswith("Requires-Dist:")
    ]
    missing = [
        str(one).partition(";")[0].strip()
        for one in asked
        if (one.marker is None or one.marker.evaluate({"extra": ""}))
        and not _is_installed(one.name)
        and not one.name.lower().startswith(FOR_GPUS)
    ]
    if missing:
        terminal.print(f"installing {', '.join(missing)} ...")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--target", str(target), *missing]
        if subprocess.run(command, check=False).returncode:
            raise VersionError(f"pip could not install {', '.join(missing)}")


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def environment_of(version: str, wheel: Path | None, folder: Path) -> dict[str, str]:
    """Make the folder of a version, unless it is there; the environment that it comes first in."""
    target = folder.resolve() / version
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as making:
            made = Path(making) / version
            unpack(wheel or download(version, Path(making)), version, made)
            install_what_is_missing(made)
            made.rename(target)
    link_kernels(target)
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path}
    asked = subprocess.run(
        [sys.executable, "-c", TRY], env=env, capture_output=True, text=True, check=False
    )
    if asked.returncode or f"{version}+cpu" not in asked.stdout or str(target) not in asked.stdout:
        said = "\n".join((asked.stdout + asked.stderr).splitlines()[-5:])
        raise VersionError(
            f"{said}\nvLLM {version} does not start on these kernels: remove {target} and try "
            "again, or install the CPU build of a version nearer to it"
        )
    terminal.print(f"vLLM {version} lies in {target}")
    return env


def main() -> None:
    """Make the environment, look for symbols, run the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="such as 0.33.0")
    parser.add_argument("--wheel", type=Path, help="its wheel; otherwise pip downloads it")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("output/versions"),
        help="where environments are kept (default: %(default)s)",
    )
    parser.add_argument("pytest", nargs="*", help="after --: arguments for pytest")
    args = parser.parse_intermixed_args()
    if not re.fullmatch(r"\d+\.\d+\.\d+\w*", args.version):
        parser.error(f"{args.version!r} is not a version of vLLM such as 0.33.0")
    try:
        env = environment_of(args.version, args.wheel, args.folder)
    except VersionError as error:
        sys.exit(f"{parser.prog}: {error}")
    missing = missing_symbols(args.folder.resolve() / args.version)
    terminal.print(f"missing of what the plugin uses: {', '.join(missing) or 'nothing'}")
    command = [sys.executable, "-m", "pytest", *TESTS, "-m", "core", *args.pytest]
    sys.exit(bool(subprocess.run(command, env=env, check=False).returncode or missing))


if __name__ == "__main__":
    main()
