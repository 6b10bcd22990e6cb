"""probe drift and probe recalibrate, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging.detectors import SavedProbe
from tests.fixtures.planted import build
from tests.fixtures.readers import command, strict
from tests.unit.cli.test_probe import FIT, refused
from tests.unit.detectors.test_probe_fitting import other_prompts


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upkeep")
    build(folder / "s", n=100, signal=3.0)
    command("probe", "fit", folder / "s", "-o", folder / "made_up", *FIT)
    return folder / "made_up"


@pytest.fixture(scope="module")
def elsewhere(probe: Path) -> Path:
    """The same model's answers to other questions, half as clear."""
    return build(probe.parent / "others", n=100, signal=1.5, seed=0, change=other_prompts)


def test_drift(probe: Path, elsewhere: Path) -> None:
    told = strict(command("probe", "drift", elsewhere, probe, "--json"))
    assert told["digest"] == SavedProbe.load(probe).digest
    assert told["number"] == told["now"]["answers"] == told["before"]["answers"] == 100
    assert set(told["now"]["quantiles"]) == {"0.05", "0.25", "0.5", "0.75", "0.95", "0.99"}
    shown = command("probe", "drift", elsewhere, probe, "--since", "7d")
    for part in (
        "population stability index",
        "Kolmogorov",
        "flagged",
        f"drift: {told['verdict']}",
    ):
        assert part in shown


def test_scores_beside_entries_are_taken_by_name(probe: Path, elsewhere: Path) -> None:
    command("score", elsewhere, "--probe", probe, "--name", "mine")
    plain = strict(command("probe", "drift", elsewhere, probe, "--json"))
    named = strict(command("probe", "drift", elsewhere, probe, "--scores", "mine", "--json"))
    assert named["psi"] == plain["psi"]


def test_recalibrate(probe: Path, elsewhere: Path, tmp_path: Path) -> None:
    out = tmp_path / "p" / "new"
    arguments = ("probe", "recalibrate", probe, "--store", elsewhere, "--draws", 100)
    told = strict(command(*arguments, "-o", out, "--false-positives", 0.1, "--json"))
    new = SavedProbe.load(out)
    assert told["probe"] == new.as_json()
    assert told["at"] == "0.1 of the negatives above it"
    assert new.provenance["recalibrated"]["from"] == SavedProbe.load(probe).digest
    shown = command(*arguments, "-o", tmp_path / "another")
    for part in ("Brier score", "calibration error", "for the best F1", "50 hallucinated"):
        assert part in shown
    assert "another.safetensors exists already" in refused(*arguments, "-o", tmp_path / "another")


def test_bad_input(probe: Path, elsewhere: Path, tmp_path: Path) -> None:
    assert "there is no" in refused("probe", "drift", elsewhere, tmp_path / "none")
    assert "no store at" in refused("probe", "drift", tmp_path / "none", probe)
    assert "0 answers have a score" in refused("probe", "drift", elsewhere, probe, "--since", "0s")
    assert "is neither a date" in refused("probe", "drift", elsewhere, probe, "--since", "soon")
    arguments = ("probe", "recalibrate", probe, "-o", tmp_path / "x", "--store")
    assert "no store at" in refused(*arguments, tmp_path / "none")
    assert "nothing is labelled by 'b'" in refused(*arguments, elsewhere, "--label", "b")
    assert "folds" in refused(*arguments, elsewhere, "--folds", 60)
    assert not (tmp_path / "x.json").exists()
