"""The pages say what is there: commands, settings, files, and numbers as they were measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from activation_logging.cli import _app
from activation_logging.vllm_serve import make_parser
from bench import docs

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LONG = 40
"""A cell that begins with a number and goes on for longer is a sentence."""
SOURCES = list((ROOT / "activation_logging").rglob("*.py"))


def tables_outside(page: Path) -> list[list[list[str]]]:
    """The tables of a page that are not generated, as cells."""
    text = docs.without_tables(page)
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        found.append([row for row in rows if not set("".join(row)) <= set("-| ")])
    return found


def test_generated_pages_are_as_generated() -> None:
    """``python -m bench.docs`` writes them."""
    for page in PAGES:
        assert docs.written(page) == page.read_text(encoding="utf-8"), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_measured_tables_are_generated(page: Path) -> None:
    number = re.compile(r"[-+±]?\d[\d.,]*(e-?\d+)?( ?(%|ms|s|MB|us)|\b)")
    for header, *rows in tables_outside(page):
        for column in range(1, len(header)):
            cells = [row[column] for row in rows if len(row) > column and row[column].strip()]
            measured = [cell for cell in cells if number.match(cell) and len(cell) < LONG]
            assert len(cells) < 2 or len(measured) < len(cells), header


def test_every_record_is_used_and_names_its_program() -> None:
    used = {name for page in PAGES for name in docs.measured(page)}
    records = {path.stem: path for path in (ROOT / "docs" / "measured").glob("*.json")}
    assert used == records.keys()
    commands = set(get_command(_app).commands)  # type: ignore[attr-defined]
    for path in records.values():
        for part in json.loads(path.read_text(encoding="utf-8"))["command"].split(";"):
            first, *rest = shlex.split(part)
            if first == "activation-logging":
                assert rest[0] in commands
            elif first == "make":
                assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            elif rest[:2] == ["-m", "pytest"]:
                assert all((ROOT / word).exists() for word in rest[2:] if not word.startswith("-"))
            elif rest[0] == "-m":
                folder = ROOT / rest[1].replace(".", "/")
                assert folder.with_suffix(".py").exists() or (folder / "__main__.py").exists()
            else:
                assert (ROOT / rest[0]).exists(), part


def program(command: str) -> str:
    """What of a command says which program it is: ``bench.view``, ``activation-logging report``."""
    first, *rest = shlex.split(command)
    if first in {"activation-logging", "make"}:
        return f"{first} {rest[0]}"
    names = [word for word in rest if not word.startswith("-") and word != "pytest"]
    return names[0].removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_has_its_program_on_its_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("/", ".")
    for name in docs.measured(page):
        record = (ROOT / "docs" / "measured" / f"{name}.json").read_text(encoding="utf-8")
        for part in json.loads(record)["command"].split(";"):
            assert program(part) in text, name


def test_every_command_and_option_is_on_the_page_of_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in get_command(_app).commands.items():  # type: ignore[attr-defined]
        section = page.partition(f"## `activation-logging {name}`\n")[2].partition("\n## ")[0]
        assert section, name
        hidden = {"--help"}
        options = {
            text
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
            for text in parameter.opts
            if text.startswith("--")
        }
        shown = set(re.findall(r"--[\w-]+", section))
        assert options - hidden <= shown, name


def test_the_page_of_commands_says_what_each_option_is() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert not re.findall(r"^\* `[^`]+`$", page, re.MULTILINE)
    section = page.partition("## `activation-logging serve`\n")[2].partition("\n## ")[0]
    flags = set(re.findall(r"--[\w-]+", make_parser().format_usage()))
    assert flags <= set(re.findall(r"--[\w-]+", section))


def test_every_environment_variable_is_in_the_readme() -> None:
    ours = re.compile(r"\bACTIVATION_[A-Z_]+\b")
    read = {name for path in SOURCES for name in ours.findall(path.read_text(encoding="utf-8"))}
    said = set(ours.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {name.rstrip("_") for name in read} - said <= {"ACTIVATION"}
    assert said <= read


def test_the_tree_of_contributing_is_the_real_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(text.partition("## Where things are")[2].split("```")[1].split())
    package = ROOT / "activation_logging"
    parts = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    parts |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert parts <= named
    files = {name for name in named if name.endswith((".py", "/"))}
    assert not [name for name in files if not any((at / name).exists() for at in (ROOT, package))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    missing = {name for name in named if not (page.parent / name).exists()}
    everything = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.*")}
    for name in re.findall(r"[`\s(]((?:[\w.-]+/)*[\w-]+\.py)\b", text):
        if not any(path == name or path.endswith(f"/{name}") for path in everything):
            missing.add(name)
    assert not missing
