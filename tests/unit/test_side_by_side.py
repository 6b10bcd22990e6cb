"""``python -m tests``: two runs of pytest at once; what fails is run once more, alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.__main__ import AGAIN, ROOT, environment, names_a_test, run, selections
from tests.conftest import SLOW

PASSES = "def test_it():\n    pass\n"
FAILS = "def test_it():\n    raise AssertionError('it is broken')\n"
STEADIES = """
from pathlib import Path

def test_it():
    noted = Path(__file__).with_suffix(".failed")
    failed_before = noted.exists()
    noted.touch()
    assert failed_before, "it is unsteady"
"""
EMPTY = ""
BROKEN = "1 / 0\n"


@pytest.mark.parametrize(
    ("contents", "code"),
    [
        ((PASSES, PASSES), 0),
        ((PASSES, FAILS), 1),
        ((STEADIES, PASSES), 0),
        ((STEADIES, FAILS), 1),
        ((FAILS, PASSES), 1),
        ((PASSES, EMPTY), 0),
        ((BROKEN, PASSES), 2),
    ],
)
def test_either_can_fail(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    contents: tuple[str, str],
    code: int,
) -> None:
    # Those that are installed take seconds to import, and none is needed.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    selections = {}
    for name, content in zip(("one", "two"), contents, strict=True):
        file = tmp_path / f"test_{name}.py"
        file.write_text(content)
        selections[name] = [str(file)]
    options = ["-q", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    assert run(selections, options, tmp_path / "logs", tmp_path / "cache") == code
    printed = capsys.readouterr().out
    assert printed.index("one.log") < printed.index("two.log")
    assert ("it is broken" in printed) == (FAILS in contents)
    assert ("it is unsteady" in printed) == (STEADIES in contents)
    alone = "FAILED beside the other run, passed alone: test_one.py::test_it"
    assert (alone in printed) == (STEADIES in contents)


def test_many_that_fail_are_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    file = tmp_path / "test_one.py"
    tests = [FAILS.replace("test_it", f"test_{number}") for number in range(AGAIN + 1)]
    file.write_text("".join(tests))
    options = ["-q", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    assert run({"one": [str(file)]}, options, tmp_path / "logs", tmp_path / "cache") == 1
    assert "again.log" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        (__file__, True),
        (f"{__file__}::test_either_can_fail", True),
        ("-k", False),
        ("store", False),
        ("--lf", False),
    ],
)
def test_an_argument_that_names_a_test_makes_it_one_run(argument: str, named: bool) -> None:
    assert names_a_test(argument) == named


def test_each_has_one_thread_and_keeps_what_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "3"}.items():
        monkeypatch.setenv(name, value)
    assert "PYTHONDONTWRITEBYTECODE" not in environment()
    assert environment()["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment()["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("gpu", [False, True])
def test_every_module_is_in_one_of_the_two(gpu: bool) -> None:
    in_run = []
    for selection in selections(gpu=gpu).values():
        ignored = {part.removeprefix("--ignore=") for part in selection if part.startswith("-")}
        for named in set(selection) - {f"--ignore={module}" for module in ignored}:
            assert (ROOT / named).exists(), named
            files = [ROOT / named] if named.endswith(".py") else (ROOT / named).rglob("test_*.py")
            found = {str(file.relative_to(ROOT)) for file in files}
            assert not ignored - found - {named}, "what is ignored is there"
            in_run += found - ignored
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(in_run) == sorted(modules)


def test_the_slow_modules_are_there() -> None:
    unit = {file.name for file in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert set(SLOW) <= unit
