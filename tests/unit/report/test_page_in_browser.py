"""The report in a real browser: charts drawn, tokens coloured, nothing asked of a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging.report import build_report
from tests.fixtures.planted import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("page") / "s", n=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_every_chart_and_token(store, tmp_path):
    result = build_report(store, tmp_path / "report", label="facts", draws=200)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
        *("--virtual-time-budget=30000", result.page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    # Scripts hold the same words as what they draw.
    page = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    asked = re.findall(r'<[^>]*data-chart="[^"]+"[^>]*>', page)
    assert len(asked) >= 6
    assert all('data-drawn="yes"' in element for element in asked)
    assert page.count("main-svg") >= len(asked)
    assert len(re.findall(r'<[^>]*data-score="[\d.]+"[^>]*style="[^"]+"', page)) > 20


def test_the_example_does_the_whole_study(store):
    script = ROOT / "examples" / "study.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, script, store], capture_output=True, text=True, timeout=300, check=True
    )
    *table, words = done.stdout.splitlines()
    by_layer = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in table[1:]}
    # The signal was planted in layer 2, from the first token of the answer on.
    assert by_layer["2"][3] > 0.97
    assert by_layer["0"][3] < 0.7
    assert words.startswith("words alone")
