"""Other versions of vLLM under the tests, on a machine without a GPU.

    python -m bench.versions 0.30.0 0.31.0 0.32.0 0.33.0 [--docs versions]

Makes an environment for each (:mod:`.environments`), looks for all that the plugin uses of that
version, and runs there the core of the tests (rows against Hugging Face with both model runners,
preemption with clients that leave, every site of a layer) and the bench of schedulers. What comes
after ``--`` goes to pytest, such as ``-- -k V2``.

Exits with 1 if anything of vLLM's is missing, or a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.default_model import demo_model_path
from activation_logging.vllm_plugin.symbols import minor_of, missing_symbols
from bench import docs
from bench.environments import ROOT, Environment, VersionError, environment_of, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = "tests/server"
HEADER = (
    *("vLLM", "kernels", "missing symbols", "core of the tests", "worst row"),
    *("requests through its schedulers", "rows compared", "wrong"),
)


class Outcome(NamedTuple):
    """What a version was found to do. Texts, as the table shows them."""

    version: str
    kernels: str
    missing: str
    tests: str = "not run"
    worst: str = ""
    requests: str = ""
    rows: str = ""
    wrong: str = "not run"

    @property
    def is_good(self) -> bool:
        passed = re.fullmatch(r"[1-9]\d* passed", self.tests) is not None
        return self.missing == self.wrong == "0" and passed


def try_version(version: str, args: argparse.Namespace, pytest: Sequence[str]) -> Outcome:
    """Make the environment of a version, and run everything in it."""
    try:
        environment = environment_of(version, wheel_of(version, args.wheel), args.folder)
    except VersionError as error:
        terminal.print(f"{version}: {error}")
        return Outcome(version, "does not start", "")
    terminal.print(f"vLLM {version} lies in {environment.folder}")
    missing = missing_symbols(minor_of(version), environment.packages)
    terminal.print(f"missing of what the plugin uses: {', '.join(missing) or 'nothing'}")
    kernels = "its own" if environment.kernels == version else f"of {environment.kernels}"
    found = Outcome(version, kernels, str(len(missing)))
    said = run_in(environment, "pytest", TESTS, "-m", "core", *pytest)
    found = found._replace(tests=summary(said), worst=worst_row(said))
    said = run_in(environment, "tests.schedules", "--requests", str(args.requests))
    return found._replace(**schedules(said))


def run_in(environment: Environment, module: str, *arguments: str) -> str:
    """Run a module with an environment's Python, and show what it says; that as one text."""
    command = [str(environment.python), "-m", module, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said = b""
    with subprocess.Popen(command, cwd=ROOT, env=environment.variables, **pipes) as running:
        assert running.stdout is not None
        # Not line by line: pytest makes a line of many tests.
        while part := os.read(running.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            said += part
    return said.decode(errors="replace")


def summary(said: str) -> str:
    """Pytest's last line, without the time: "46 passed", or "1 failed, 45 passed"."""
    last = said.rstrip().rpartition("\n")[2]
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed|xpassed)\b", last)
    return ", ".join(counts) or "not run"


def worst_row(said: str) -> str:
    """The largest error in the tables below pytest's summary; "" without one."""
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    errors = re.findall(r"\b\d\.\de-\d\d\b", "\n".join(lines))
    return max(errors, key=float, default="")


def schedules(said: str) -> dict[str, str]:
    """The last line of the table of ``tests.schedules``, which is the sum of all settings."""
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| all")]
    if not rows:
        return {}
    _, requests, _, _, compared, _, _, wrong = rows[-1]
    return {"requests": requests, "rows": compared, "wrong": wrong}


def record(name: str, outcomes: Sequence[Outcome]) -> None:
    """Write the table of the docs. What it holds of other versions stays."""
    path = docs.DOCS / "measured" / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row[0]: row for row in [*kept, *map(list, outcomes)]}
    versions = sorted(rows, key=lambda version: [int(n) for n in re.findall(r"\d+", version)])
    command = f"python -m bench.versions {' '.join(versions)}"
    docs.record_rows(name, HEADER, [rows[version] for version in versions], command=command)


def wheel_of(version: str, wheels: Sequence[Path]) -> Path | None:
    """The wheel of a version among those given."""
    return next((one for one in wheels if one.name.split("-")[1:2] == [version]), None)


def main() -> int:
    """Make the environments, look for symbols, run the tests."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    ours, theirs = sys.argv[1:at], sys.argv[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m bench.versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 0.31.0")
    parser.add_argument(
        "--wheel",
        type=Path,
        action="append",
        default=[],
        help="a wheel of one of them; otherwise pip downloads it",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("output/versions"),
        help="where environments are kept (default: %(default)s)",
    )
    parser.add_argument("--requests", type=int, default=10_000, help="through each's schedulers")
    docs.add_flag(parser)
    args = parser.parse_args(ours)
    for version in args.versions:
        if not re.fullmatch(r"\d+\.\d+\.\d+\w*", version):
            parser.error(f"{version!r} is not a version of vLLM such as 0.31.0")
    if args.docs and theirs:
        parser.error("--docs is for all of the tests: leave out what comes after --")
    demo_model_path()  # an older transformers could not make it
    outcomes = [try_version(version, args, theirs) for version in args.versions]
    terminal.print("\n".join(docs.markdown(HEADER, [list(one) for one in outcomes])))
    if args.docs:
        record(args.docs, outcomes)
    return 0 if all(one.is_good for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
