"""What is generated in ``docs/``: the tables of measured numbers, and the page of commands.

    python -m bench.docs            # write them
    python -m bench.docs --check    # say what differs instead; exit code 1 if anything does

A page holds a table between two comments, and what is between them is never edited by hand::

    <!-- measured: queries -->
    | ... |
    <!-- end -->

``docs/measured/queries.json`` has the table's header and rows, the command that measured them, and
when. A program calls :func:`record` with the table that it has just printed.

``docs/commands.md`` is what typer writes about the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from activation_logging.console import PlainConsole
from activation_logging.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

DOCS = Path(__file__).parent.parent / "docs"
_MEASURED = re.compile(
    r"^<!-- measured: (?P<name>[\w-]+) -->\n(?P<table>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL
)
terminal = PlainConsole()


def record(name: str, table: Table, *, command: str, docs: Path = DOCS) -> Path:
    """Keep a table that was just measured as ``docs/measured/NAME.json``.

    Args:
        name: as the page names it.
        table: with text in each cell.
        command: what measures it again.
        docs: the folder of the pages.
    """
    columns = [list(column.cells) for column in table.columns]
    return record_rows(
        name,
        header=[str(column.header) for column in table.columns],
        rows=[[str(cell) for cell in row] for row in zip(*columns, strict=True)],
        command=command,
        docs=docs,
    )


def record_rows(
    name: str,
    *,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    command: str,
    docs: Path = DOCS,
) -> Path:
    """As :func:`record`, of a table that is not one of rich's."""
    found = {
        "command": command,
        "made": datetime.now(timezone.utc).date().isoformat(),
        "header": list(header),
        "rows": [list(row) for row in rows],
    }
    path = docs / "measured" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())
    return path


def render(path: Path) -> str:
    """A recorded table in Markdown, each line ended."""
    found = json.loads(path.read_text(encoding="utf-8"))
    header, rows = found["header"], found["rows"]
    lines = [header, ["---"] * len(header), *rows]
    return "".join("|" + "".join(map(_cell, line)) + "\n" for line in lines)


def _cell(text: str) -> str:
    return "---|" if text == "---" else f" {text} |" if text else " |"


def written(page: Path) -> str:
    """The page's text with each of its tables as it was recorded.

    Raises:
        FileNotFoundError: a table was never recorded.
    """

    def replace(found: re.Match[str]) -> str:
        table = render(page.parent / "measured" / f"{found['name']}.json")
        return f"<!-- measured: {found['name']} -->\n{table}<!-- end -->"

    return _MEASURED.sub(replace, page.read_text(encoding="utf-8"))


def names(page: Path) -> list[str]:
    """The names of the tables that a page holds."""
    return [found["name"] for found in _MEASURED.finditer(page.read_text(encoding="utf-8"))]


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
