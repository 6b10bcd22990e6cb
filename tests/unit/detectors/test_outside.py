"""Detectors that another package offers by entry points: one file, and they are in the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from tests.fixtures.outside import outside_package
from tests.fixtures.planted import build

MODULE = """
from sklearn.naive_bayes import GaussianNB

from activation_logging.detectors import Detector
from activation_logging.errors import InputMissing


def words(entry):
    return float(len(entry.response.split()))


def reasons(entry):
    raise InputMissing("no reasons; ask for them")


def spread(entry, samples):
    return float(len({other.response for other in samples.entries}))


PROBE = Detector("naive_bayes", "Naive Bayes", "here", "state", lambda seed: GaussianNB())
BEFORE = Detector(
    "bayes_before", "Before", "here", "state", lambda seed: GaussianNB(), where="before"
)
SIGNAL = Detector("words", "Words", "here", "answer", of_answer=words, role="signal")
MISSING = Detector("reasons", "Reasons", "here", "answer", of_answer=reasons, role="signal")
SAMPLED = Detector("spread", "Spread", "here", "samples", of_samples=spread, role="signal")
"""
POINTS = {
    "naive_bayes": "PROBE",
    "bayes_before": "BEFORE",
    "words": "SIGNAL",
    "reasons": "MISSING",
    "spread": "SAMPLED",
}


def report(tmp_path: Path, module: str, points: dict[str, str]) -> subprocess.CompletedProcess[str]:
    groups = {"activation_logging.detectors": points}
    env = outside_package(tmp_path / "site", module, groups, "elsewhere")
    build(tmp_path / "s", n=60, samples=2, signal=12.0)
    command = "from activation_logging.cli import app; app()"
    options = ["--layers", "2,last", "--draws", "100", "-o", str(tmp_path / "report")]
    return subprocess.run(
        [sys.executable, "-c", command, "report", str(tmp_path / "s"), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_they_are_rows_of_the_report(tmp_path):
    done = report(tmp_path, MODULE, POINTS)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = {row["name"]: row for row in document["detectors"]}
    # Ours first, the others by their names.
    assert list(rows)[-4:] == ["bayes_before", "naive_bayes", "spread", "words"]
    assert rows["naive_bayes"]["title"] == "Naive Bayes"
    assert rows["naive_bayes"]["auroc"]["value"] > 0.95
    assert rows["naive_bayes"]["layer"] == rows["linear_probe"]["layer"] == "2"
    # Nothing was planted before the answer.
    assert rows["bayes_before"]["position"] == "prompt_last"
    assert rows["bayes_before"]["auroc"]["value"] < 0.75
    assert rows["words"]["layer"] == ""
    assert rows["words"]["over_text"] is not None
    left_out = document["detectors_left_out"]
    assert left_out["Reasons"] == "120 of 120 answers have no reasons; ask for them"
    assert "naive_bayes" in document["curves"]


@pytest.mark.parametrize(
    ("module", "points", "says"),
    [
        ("import nothing_of_that_name", {"words": "SIGNAL"}, "cannot be loaded"),
        (MODULE, {"sentences": "SIGNAL"}, "calls itself 'words'"),
        (MODULE, {"length": "SIGNAL"}, "offered more than once"),
    ],
    ids=["broken", "of another name", "of a name that is taken"],
)
def test_what_cannot_be_used_is_named(tmp_path, module, points, says):
    done = report(tmp_path, module, points)
    assert done.returncode != 0
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
