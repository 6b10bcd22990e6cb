"""Answers that ended before a row of theirs was kept: each command gets over them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.records import NEVER_RAN
from activation_logging.store import StoreWriter
from activation_logging.verify import verify
from tests.fixtures.answers import make_capture, make_document
from tests.fixtures.planted import MODEL, build


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty answers and two without rows: aborted in the middle of its prompt, and in the queue."""
    path = build(tmp_path_factory.mktemp("without") / "s", n=60)
    writer = StoreWriter(path, role="test")
    for name in ("prefilling", "queued"):
        fields = {"finish_reason": "abort", "response": "", "model": MODEL}
        document = make_document(name, prompt=name, response_ids=(), tokens="response", **fields)
        writer.put_entry(document)
        capture = make_capture(name, [], first=2, layers=(0, 2, 4))
        queued = name == "queued"
        writer.put_capture(replace(capture, dropped=NEVER_RAN) if queued else capture)
    writer.close()
    with open_store(path, writable=True) as store:
        (entry,) = store.for_prompt("prefilling")
        store.put_evaluation(entry.key, name="facts", label="hallucinated")
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_they_say(path: Path) -> None:
    with open_store(path) as store:
        (prefilling,), (queued,) = store.for_prompt("prefilling"), store.for_prompt("queued")
        assert (prefilling.status, prefilling.activations.shape) == ("complete", (0, 16))
        assert (queued.status, queued.status_reason) == ("dropped", NEVER_RAN)
        # Nothing is missing of either: a store with them is in order.
        report = verify(store)
        assert report.ok, report.problems
        assert report.statuses["dropped"] == 1
    assert writers(path) == 0


def writers(path: Path) -> int:
    with open_store(path) as store:
        return sum(record["dropped"] for record in store.writers().values())


def test_commands(path: Path) -> None:
    run("ls", path)
    run("stats", path)
    run("verify", path)
    for name in ("prefilling", "queued"):
        with open_store(path) as store:
            (entry,) = store.for_prompt(name)
        assert name in run("show", path, entry.key)


@pytest.mark.parametrize("kind", ["npy", "zarr", "safetensors", "parquet"])
@pytest.mark.parametrize("position", [None, "response_last"])
def test_export(path: Path, tmp_path: Path, kind: str, position: str | None) -> None:
    options = ["--position", position] if position else []
    said = run("export", path, "-o", tmp_path / kind, "--format", kind, *options)
    assert re.search(r"\b60\b", said), said


def test_report_and_score(path: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    run("report", path, "--label", "facts", "-o", tmp_path / "report", "--save-probe", probe)
    run("score", path, "--probe", probe)
