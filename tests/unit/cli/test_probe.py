"""probe fit, eval, ls and show, and score, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.detectors import SavedProbe
from activation_logging.errors import ActivationLoggingError
from tests.fixtures.claims import Claims, build_claims
from tests.fixtures.planted import build
from tests.fixtures.readers import command, strict

FIT = ("--draws", 100, "--position", "response_last", "--layers", "2,4")


def refused(*arguments: object) -> str:
    """What the command line says of a wrong input."""
    done = CliRunner().invoke(_app, [str(part) for part in arguments])
    assert isinstance(done.exception, ActivationLoggingError), done.output
    return str(done.exception)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("probe") / "s", n=60, signal=6.0)


@pytest.fixture(scope="module")
def probe(path: Path) -> Path:
    command("probe", "fit", path, "-o", path.parent / "probes" / "made_up", *FIT)
    return path.parent / "probes" / "made_up"


def test_fit(path: Path, probe: Path, tmp_path: Path) -> None:
    said = strict(command("probe", "fit", path, "-o", tmp_path / "p.json", *FIT, "--json"))
    assert said["sources"] == [2]
    assert said["digest"] == SavedProbe.load(probe).digest
    assert [Path(file).name for file in said["files"]] == ["p.safetensors", "p.json"]
    shown = command("probe", "fit", path, "-o", tmp_path / "p", *FIT, "--overwrite")
    assert "text_only auroc" in shown


def test_show(probe: Path) -> None:
    told = strict(command("probe", "show", probe, "--json"))
    assert told == SavedProbe.load(probe).as_json()
    shown = command("probe", "show", probe)
    for part in (told["digest"], told["data"]["digest"], "response_last", "over_text", " 5%"):
        assert part in shown


def test_ls(probe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    SavedProbe.load(probe).save(folder / "[one]")
    (listed,) = strict(command("probe", "ls", folder, "--json"))["probes"]
    assert listed["name"] == "[one]"
    assert "[one]" in command("probe", "ls", folder)
    (folder / "[one].safetensors").unlink()
    told = strict(command("probe", "ls", folder, "--json", codes=(1,)))
    assert told["probes"] == []
    assert "there is no" in told["broken"]["[one]"]
    command("probe", "ls", folder, codes=(1,))
    assert "has no probes" in command("probe", "ls", tmp_path)


def test_eval(probe: Path, tmp_path: Path) -> None:
    def ask(number: int, document: dict[str, Any]) -> None:
        document["prompt"] = f"another question, number {number}"
        document["tags"]["entity"] = f"another thing {number}"

    path = build(tmp_path / "s", n=60, signal=6.0, change=ask)
    arguments = ("probe", "eval", path, "--probe", probe, "--draws", 100)
    told = strict(command(*arguments, "--json"))
    assert told["levels"]["answer"]["auroc"]["value"] > 0.9
    shown = command(*arguments)
    assert "answer: chosen for" in shown
    assert "answer: without states, fitted here" in shown
    best = told["levels"]["answer"]["best_control"]
    assert f"answer: the probe less {best}: " in shown


def test_score(path: Path, probe: Path) -> None:
    arguments = ("score", path, "--probe", probe)
    assert strict(command(*arguments, "--dry-run", "--json"))["scores"]
    with open_store(path) as store:
        assert not any(entry.scores for entry in store.entries())
    command(*arguments, "--name", "other")
    command(*arguments, "--write", "suspect")
    with open_store(path) as store:
        entry = next(store.entries())
        assert entry.scores.keys() == {"made_up", "other"}
        assert entry.evaluations.keys() == {"facts", "suspect"}
        assert "score/made_up" in command("show", path, entry.key)


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_claims(tmp_path_factory.mktemp("claims") / "s", Claims(wrong=(0.5, 0.4)))


@pytest.mark.parametrize("form", ["linear", "attention"])
def test_claims(claims: Path, tmp_path: Path, form: str) -> None:
    kind = "token" if form == "linear" else "answer"
    said = strict(
        command(
            *("probe", "fit", claims, "-o", tmp_path / form, "--kind", kind, "--form", form),
            *("--draws", 100, "--layers", "2", "--folds", 3, "--json"),
        )
    )
    assert (said["kind"], said["form"], said["position"]) == (kind, form, None)
    scored = strict(command("score", claims, "--probe", tmp_path / form, "--json"))["scores"]
    assert scored
    with open_store(claims) as store:
        found = SavedProbe.load(tmp_path / form)
        for row in scored[:3]:
            assert row["probability"] == found.score(store[row["key"]])
    if kind == "token":
        assert "was fitted on these" in refused("probe", "eval", claims, "--probe", tmp_path / form)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kind", "token"), "has spans"),
        (("--kind", "token", "--form", "attention"), "use --kind answer"),
        (("--kind", "token", "--position", "response_last"), "has no --position"),
        (("--form", "multimax", "--position", "-1"), "has no --position"),
        (("--form", "multimax", "--positive", "refused"), "leave --positive and --negative out"),
        (("--layers", "3"), "layer 3 is not there"),
        (("--layers", "heads@3"), "heads is not there|heads@3 is not there"),
        (("--position", "middle"), "position 'middle' is not one of"),
        (("--model", "other"), "no labelled answer is by 'other'"),
        (("--label", "nobody"), "nothing is labelled by 'nobody'"),
        (("--positive", "refused"), "refused"),
    ],
)
def test_what_cannot_be_fitted(
    path: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert re.search(said, refused("probe", "fit", path, "-o", tmp_path / "p", *options))
    assert not list(tmp_path.iterdir())


def test_outputs(path: Path, probe: Path, tmp_path: Path) -> None:
    fit = ("probe", "fit", path, *FIT, "-o")
    assert "exists already; --overwrite replaces it" in refused(*fit, probe)
    assert "is a folder; name the probe in it" in refused(*fit, tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(*fit, tmp_path / "file" / "p")
    assert "names no file" in refused(*fit, tmp_path / "..")


def test_other_bad_input(path: Path, probe: Path, tmp_path: Path) -> None:
    assert "there is no" in refused("probe", "show", tmp_path / "none")
    assert "cannot be looked into" in refused("probe", "ls", tmp_path / "none")
    assert "no store at" in refused("probe", "eval", tmp_path / "none", "--probe", probe)
    assert "was fitted on these" in refused("probe", "eval", path, "--probe", probe)
    score = ("score", path, "--probe", probe)
    assert "give one of them" in refused(*score, "--write", "x", "--dry-run")
    assert "not the name of an array" in refused(*score, "--name", "a\nb")


def test_a_forged_report_is_shown(probe: Path, tmp_path: Path) -> None:
    _, notes = SavedProbe.load(probe).save(tmp_path / "p")
    record = json.loads(notes.read_text())
    record["report"] = {"auroc": {"value": "x"}, "\x1b[31m": {"a": [{}]}, "n": {"value": 1}}
    record["report"]["auprc"] = {"value": 10**400}
    record["data"] = {"\x1b": [1]}
    record["provenance"] = {"a": {"b": None}, "\x1b[31m": 1}
    notes.write_text(json.dumps(record))
    for arguments in (("show", tmp_path / "p"), ("ls", tmp_path)):
        assert "\x1b" not in command("probe", *arguments)
