"""What is generated in ``docs/``: measured numbers, lists of what is registered, all commands.

    python -m bench.docs            # write them
    python -m bench.docs --check    # say what differs instead; exit code 1 if anything does

A page holds a table between two comments, and what is between them is never edited by hand::

    <!-- measured: queries -->          or          <!-- registered: detectors -->
    | ... |
    <!-- end -->

``docs/measured/queries.json`` has the table's header and rows, the command that measured them, and
when. A program that takes ``--docs NAME`` writes the table that it prints there. What the package's
own commands write comes in by :mod:`.products`. The lists are those of the package's registries.

``docs/commands.md`` is what typer writes about the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.bench.machine import describe
from activation_logging.console import PlainConsole
from activation_logging.files import write_whole
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from activation_logging.detectors import Detector

DOCS = Path(__file__).parent.parent / "docs"
_TABLE = re.compile(
    r"^<!-- (?P<kind>measured|registered): (?P<name>[\w-]+) -->\n.*?^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
terminal = PlainConsole()


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Give a program the flag ``--docs NAME``, for :func:`record`."""
    parser.add_argument("--docs", metavar="NAME", help="write docs/measured/NAME.json as well")


def write_figures(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write figures as JSON, and the machine that they were measured on; without a path nothing."""
    if path is not None:
        path.write_text(dumps({**found, "machine": describe()}, indent=1) + "\n", encoding="utf-8")


def spread_text(found: Mapping[str, float]) -> str:
    """A ratio as tables show it: the median, and the least and the greatest."""
    return f"{found['median']:.3f} ({found['least']:.2f} to {found['greatest']:.2f})"


def interval_text(found: Mapping[str, float] | None) -> str:
    """A figure with its interval, as tables show it; nothing where there is none."""
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else ""


def record(name: str | None, table: Table) -> None:
    """Keep a table that was just printed as ``docs/measured/NAME.json``; without a name do nothing.

    Args:
        name: what ``--docs`` was given, and as the page names it.
        table: with text in each cell.
    """
    if name is not None:
        columns = [list(column.cells) for column in table.columns]
        rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
        record_rows(name, [str(column.header) for column in table.columns], rows)


def record_rows(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    command: str | None = None,
) -> Path:
    """As :func:`record`, of a table that is not one of rich's.

    Args:
        name: as the page names it.
        header: one text a column.
        rows: one text a column each.
        command: what measures it again; if not given, how this program was started.
    """
    found = {
        "command": command or _command(),
        "made": datetime.now(timezone.utc).date().isoformat(),
        "header": list(header),
        "rows": [list(row) for row in rows],
    }
    path = DOCS / "measured" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())
    return path


def registered(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the list of a registry."""
    from activation_logging.benchmarks.registry import BENCHMARKS
    from activation_logging.detectors.registry import DETECTORS
    from activation_logging.export.registry import FORMATS
    from activation_logging.judges.registry import JUDGES
    from activation_logging.replay.registry import QUANTITIES

    if name == "benchmarks":
        return ["name", "what it asks", "labels", "questions", "experiments"], [
            [
                f"`{each.name}`",
                each.description,
                f"`{each.evaluator}`",
                f"{each.default_n} for each {each.unit}",
                ", ".join(f"`{experiment}`" for experiment in each.experiments),
            ]
            for each in BENCHMARKS
        ]
    if name == "judges":
        return ["`--judge`", "identity in labels", "kinds of question"], [
            [f"`{judge}`", JUDGES.get(judge).identity, ", ".join(JUDGES.get(judge).kinds)]
            for judge in JUDGES.names()
        ]
    if name == "detectors":
        return ["name", "in the report", "reads", "role", "source"], [
            [f"`{each.name}`", each.title, each.needs, _role(each), each.source]
            for each in DETECTORS
        ]
    if name == "quantities":
        return ["`--kinds`", "what it is", "shape", "reads", "source"], [
            [f"`{each.name}`", each.title, f"`{each.shape}`", each.reads, each.source]
            for each in QUANTITIES
        ]
    return ["`--format`", "what is written", "packages"], [
        [f"`{each.name}`", each.description, ", ".join(each.needs)] for each in FORMATS
    ]


def _role(detector: Detector) -> str:
    """A signal may be a control besides."""
    both = detector.control and detector.role != "control"
    return f"{detector.role}, control" if both else detector.role


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    first, *others = ("|" + "".join(map(_cell, line)) for line in [header, *rows])
    return [first, "|" + "---|" * len(header), *others]


def _command() -> str:
    """How this program was started, but for ``--docs NAME``."""
    words = ["python", *sys.orig_argv[1:]]
    if "--docs" in words:
        at = words.index("--docs")
        del words[at : at + 2]
    return shlex.join(words)


def _cell(text: str) -> str:
    return f" {text} |" if text else " |"


def written(page: Path) -> str:
    """The page's text with each of its tables as it was recorded, or as the registry is.

    Raises:
        FileNotFoundError: a table was never recorded.
    """

    def replace(found: re.Match[str]) -> str:
        kind, name = found["kind"], found["name"]
        if kind == "measured":
            path = page.parent / "measured" / f"{name}.json"
            kept = json.loads(path.read_text(encoding="utf-8"))
            header, rows = kept["header"], kept["rows"]
        else:
            header, rows = registered(name)
        return "\n".join([f"<!-- {kind}: {name} -->", *markdown(header, rows), "<!-- end -->"])

    return _TABLE.sub(replace, page.read_text(encoding="utf-8"))


def measured(page: Path) -> list[str]:
    """The names of the measured tables that a page holds."""
    found = _TABLE.finditer(page.read_text(encoding="utf-8"))
    return [table["name"] for table in found if table["kind"] == "measured"]


def without_tables(page: Path) -> str:
    """The text of a page but for what is generated in it."""
    return _TABLE.sub("", page.read_text(encoding="utf-8"))


def commands() -> str:
    """The page of all commands and their options, by ``typer``."""
    typer = (sys.executable, "-m", "typer", "activation_logging.cli", "utils", "docs")
    done = subprocess.run(
        [*typer, "--name", "activation-logging"],
        check=True,
        capture_output=True,
        text=True,
        # Typer marks the text up for a terminal otherwise, and cuts it to its width.
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    note = "<!-- made by `python -m bench.docs` from the commands' own help; do not edit -->"
    return "\n".join([note, *lines]).rstrip() + "\n"


def main() -> int:
    """Write what is generated, or say what of it differs."""
    parser = argparse.ArgumentParser(description="Write what is generated in docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; say what differs")
    options = parser.parse_args()
    wanted = {page: written(page) for page in sorted(DOCS.glob("*.md"))}
    wanted[DOCS / "commands.md"] = commands()
    differ = [
        page for page, text in wanted.items() if not page.exists() or page.read_text() != text
    ]
    for page in differ:
        if not options.check:
            write_whole(page, wanted[page].encode())
        terminal.print(f"{page.name}: {'differs' if options.check else 'written'}")
    return 1 if options.check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
