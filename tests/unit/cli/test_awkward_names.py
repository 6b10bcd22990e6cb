"""Names with brackets, quotes, newlines and NUL: shown as they are, and kept in strict JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.benchmarks.journal import Journal, RunRecord
from activation_logging.cli import _app
from activation_logging.errors import LabelError
from activation_logging.judges import Answer, Verdict
from activation_logging.strict_json import dumps
from tests.fixtures.planted import build
from tests.fixtures.readers import command, http, strict

FOLDER = "run[v2] 'a' \"b\" [/x] [bold]\u05e9\u05dc\nnew :smile:"
MODEL = 'org/[red]m[/red] "q" :smile: \u05e9\u05dc\n\0\x1b[31m\ud800'
EVALUATOR = 'judge[v2] [/] "q" \u05e9\u05dc\n'
TAGS = {"[/tag]": "[link=x]v[/]", "k\n\0": "\x1b[31m\u05e9\u05dc\u202e\ud800", '"': "'"}
SHOWN = 'org/[red]m[/red] "q" :smile: \u05e9\u05dc\\n\\x00\\x1b[31m\\ud800'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty labelled answers, some without logprobs or rows, log-probabilities that are none."""

    def change(number: int, document: dict[str, Any]) -> None:
        document["model"] = MODEL
        document["response"] += f" {MODEL}" if number == 7 else ""
        if number % 20 == 0:
            document["logprobs"] = [math.nan, -math.inf] * 3
            document["top_logprobs"] = [{1: math.nan, 2: -math.inf}] * 6
        if number == 59:
            document["error"] = "the engine failed: [/x]\ud800"

    path = tmp_path_factory.mktemp("names") / FOLDER / "s"
    tags = {"tags_of": lambda i: {**TAGS, "gold": "Paris", "entity": f"[/] {i}"}}
    build(path, n=60, name=EVALUATOR, change=change, without_rows=frozenset({57, 58}), **tags)
    with open_store(path, writable=True) as store:
        for number in (57, 58, 59):
            (entry,) = store.for_request(f"req-{number}-0")
            store.put_evaluation(entry.key, name=EVALUATOR, label="invalid")
    return path


@pytest.fixture(scope="module")
def probe(path: Path) -> Path:
    """A probe fitted on the store."""
    folder = path.parent
    command("report", path, "-o", folder / "first", "--draws", 100, "--save-probe", folder / "[p]")
    return folder / "[p]"


def finished_run(folder: Path, path: Path) -> Path:
    """The folder of a run about two entries of the store."""
    record = RunRecord("r", "short_facts", "[e]", 1, 0, MODEL, 0.0, 8, 0.0)
    journal = Journal(folder, None)
    (folder / "run.json").write_text(dumps(asdict(record)))
    with open_store(path) as store:
        for number in (1, 2):
            (entry,) = store.for_request(f"req-{number}-0")
            fields = {"prompt": "[/p]", "name": "[/n]\ud800", "type": "t"}
            answer = Answer(f"[{number}]", generation=entry.response, **fields)
            answer = Answer(**{**asdict(answer), "request_id": entry.request_id})
            journal.add_answer(Answer(**{**asdict(answer), "finish_reason": "stop"}))
            journal.add_verdict(Verdict(answer.id, "correct", "rules", "[/w]", answer.digest))
    return folder


Case = Callable[[Path, Path, Path], list[object]]
JSON: dict[str, Case] = {
    "ls": lambda path, probe, out: [path],
    "show": lambda path, probe, out: [path, "req-0-0"],
    "stats": lambda path, probe, out: [path],
    "verify": lambda path, probe, out: [path],
    "delete": lambda path, probe, out: [path, "--where", "label=correct", "--dry-run"],
    "prune": lambda path, probe, out: [
        copy(path, out),
        "--older-than",
        "1h",
        "--keep",
        "tag:[/tag]=[link=x]v[/]",
    ],
    "merge": lambda path, probe, out: [path, "-o", out / "[merged]"],
    "compact": lambda path, probe, out: [copy(path, out)],
    "upgrade": lambda path, probe, out: [copy(path, out)],
    "export": lambda path, probe, out: [path, "-o", out / "[exported]", "-f", "npy"],
    "report": lambda path, probe, out: [path, "-o", out / "[report]", "--draws", 100],
    "score": lambda path, probe, out: [path, "--probe", probe],
    "probe fit": lambda path, probe, out: [path, "-o", out / "[p] 2", "--draws", 100],
    "probe eval": lambda path, probe, out: [others(out), "--probe", probe, "--draws", 100],
    "probe ls": lambda path, probe, out: [probe.parent],
    "probe show": lambda path, probe, out: [probe],
    "probe drift": lambda path, probe, out: [others(out), probe],
    "probe recalibrate": lambda path, probe, out: [
        *(probe, "--store", others(out), "-o", out / "[p] 3", "--draws", 100)
    ],
    "label": lambda path, probe, out: [copy(path, out), finished_run(out / "[run]", path)],
}
WITH_A_MODEL = {"eval", "generate", "bench", "follow-up", "replay"}
"""Tested with their servers, engines and models."""


def copy(path: Path, out: Path) -> Path:
    command("merge", path, "-o", out / "copy")
    return out / "copy"


def others(out: Path) -> Path:
    """The same model's answers to other prompts."""

    def ask(number: int, document: dict[str, Any]) -> None:
        document["model"] = MODEL
        document["prompt"] = f"[/other] {number}"
        document["tags"]["entity"] = f"[/thing] {number}"

    return build(out / "others", n=60, name=EVALUATOR, change=ask)


def all_commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from all_commands(found, f"{name} ")
        else:
            yield above + name, found


def test_all_commands_are_here() -> None:
    with_json = {
        name
        for name, found in all_commands(typer.main.get_command(_app))
        if any("--json" in option.opts for option in found.params)
    }
    assert with_json == JSON.keys() | WITH_A_MODEL


@pytest.mark.parametrize("name", JSON)
def test_json_is_strict(name: str, path: Path, probe: Path, tmp_path: Path) -> None:
    arguments = JSON[name](path, probe, tmp_path)
    said = strict(
        command(*name.split(), *arguments, "--json", codes=(0, 1) if name == "verify" else (0,))
    )
    assert said
    for file in (*tmp_path.rglob("*.json"), *probe.parent.glob("*.json")):
        strict(file.read_bytes())
    for file in tmp_path.rglob("*.jsonl"):
        for line in file.read_text("utf-8").split("\n")[:-1]:
            strict(line)


def test_json_loses_no_text(path: Path) -> None:
    first = strict(command("ls", path, "--json", "--limit", 60))
    assert {found["model"] for found in first} == {MODEL}
    assert TAGS.items() <= first[0]["tags"].items()
    assert {name for found in first for name in found["labels"]} == {EVALUATOR}
    found = strict(command("stats", path, "--json"))
    assert found["models"] == {MODEL: 60}
    assert found["labels"][EVALUATOR]["correct"] > 20
    assert {int(layer) for layer in found["layer_bytes"]} == {0, 2, 4}
    shown = strict(command("show", path, "req-0-0", "--json"))
    assert shown["logprobs"][:2] == [None, None]


def test_tables_show_names_as_they_are(path: Path, tmp_path: Path) -> None:
    assert f"model: {SHOWN}" in command("ls", path)
    shown = command("show", path, "req-7-0")
    assert SHOWN in shown
    for part in ("[/tag]=[link=x]v[/]", "k\\n\\x00=\\x1b[31m\u05e9\u05dc\\u202e\\ud800", "\"='"):
        assert part in shown
    assert 'judge[v2] [/] "q" \u05e9\u05dc\\n=hallucinated' in shown
    counts = command("stats", path)
    assert 'label of judge[v2] [/] "q" \u05e9\u05dc\\n' in counts
    assert SHOWN in counts
    exported = tmp_path / FOLDER
    assert str(exported) in command("export", path, "-o", exported, "-f", "npy")
    for text in (shown, counts):
        assert "\x1b" not in text
        assert "\0" not in text


@pytest.mark.parametrize(
    "name", ["run[v2]/a", "[/x]", "[bold]", ":smile:", "a\nb", "\u05e9\u05dc", "x" * 300]
)
def test_errors_show_paths_as_they_are(name: str, tmp_path: Path) -> None:
    (tmp_path / "[").mkdir()
    missing = tmp_path / "[" / name[:200]
    program = "from activation_logging.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "ls", str(missing)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: there is no store at {missing}\n"


def test_a_terminal_without_unicode(path: Path) -> None:
    for arguments in (["stats"], ["show", "req-7-0"], ["ls", "--json"]):
        program = "from activation_logging.cli import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", program, arguments[0], str(path), *arguments[1:]],
            check=False,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == 0, done.stderr
        assert b"\\u05e9" in done.stdout


AWKWARD = ["[/x]", "[bold]x", "\x1b[31m", "\u05e9\u05dc", "\ud800", "a'b\"c"]


@pytest.mark.parametrize("text", AWKWARD)
def test_what_is_wrongly_asked_for_is_shown(text: str, path: Path) -> None:
    for arguments in (("ls", path, f"--{text}"), ("ls", path, "--limit", text)):
        done = CliRunner().invoke(_app, [str(part) for part in arguments])
        assert done.exit_code == 2, done.output
        assert isinstance(done.exception, SystemExit)
    for arguments in (
        ("show", path, text),
        ("ls", path, "--tag", text),
        ("ls", path, "--status", text),
    ):
        done = CliRunner().invoke(_app, [str(part) for part in arguments])
        assert done.exit_code == 1
        assert repr(text)[1:-1] in str(done.exception)


class TestEvaluations:
    def test_numbers_and_texts_of_other_libraries(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        store_path = build(tmp_path / "s", n=1)
        with open_store(store_path, writable=True) as store:
            (key,) = store
            details = {
                "n": np.int64(3),
                np.str_("array"): np.arange(4).reshape(2, 2),
                "tensor": torch.ones(2, dtype=torch.bfloat16),
                "flag": np.bool_(True),
                "deep": [{"x": (np.float16(0.5), torch.tensor(2))}],
            }
            for score in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)):
                store.put_evaluation(
                    np.str_(key),
                    name=np.str_("judge"),
                    label=np.str_("correct"),
                    score=score,
                    judge=np.str_("rules"),
                    details=details,
                )
                found = store[key].evaluations["judge"]
                assert (found.label, found.score, found.judge) == ("correct", 0.5, "rules")
                assert found.details == {
                    "n": 3,
                    "array": [[0, 1], [2, 3]],
                    "tensor": [1.0, 1.0],
                    "flag": True,
                    "deep": [{"x": [0.5, 2]}],
                }
            store.put_evaluation(key, name="judge", label="correct", score=np.int32(1))
            assert store[key].evaluations["judge"].score == 1.0

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"score": math.nan}, "score is nan"),
            ({"score": np.float32("inf")}, "score is inf"),
            ({"score": 10**400}, "score is inf"),
            ({"score": True}, "score is a number, not a bool"),
            ({"score": "0.5"}, "score is a number, not a str"),
            ({"score": 1j}, "score is a number, not a complex"),
            ({"score": np.zeros(2)}, "score is a number, not a ndarray"),
            ({"details": {"a": [math.nan]}}, "details.a[0] is nan"),
            ({"details": {"a": np.array([1, math.inf])}}, "details.a[1] is inf"),
            ({"details": {"[/]\n": object()}}, "details.[/]\\n holds a object"),
            ({"details": [1]}, "details is a mapping"),
            ({"label": 5}, "label is text, not a int"),
            ({"label": "[/x]"}, "label '[/x]' is not one of"),
            ({"name": None}, "name is text, not a NoneType"),
            ({"name": "\ud800"}, "text that UTF-8 can hold"),
            ({"name": "a\0b"}, "no NUL"),
            ({"judge": 5}, "judge is text"),
        ],
    )
    def test_what_cannot_be_is_refused(self, wrong: Any, said: str, tmp_path: Path) -> None:
        with open_store(build(tmp_path / "s", n=1), writable=True) as store:
            (key,) = store
            given = {"name": "judge", "label": "correct", **wrong}
            with pytest.raises(LabelError, match=re.escape(said)):
                store.put_evaluation(key, **given)
            assert set(store[key].evaluations) == {"facts"}


class TestHTTP:
    def test_labels(self, tmp_path: Path) -> None:
        path = build(tmp_path / "s", n=1)
        with open_store(path) as store:
            (key,) = store
        where = f"/v1/activations/{key}/evaluations"
        with http(path) as client:
            right = {"name": "judge", "label": "correct", "score": 1, "details": {"a": [1]}}
            assert client.post(where, json=right).status_code == 201
            for wrong in (
                *({"score": True}, {"score": "0.5"}, {"details": [1]}, {"score": [1]}),
                *({"label": "x"}, {"name": "a\0"}),
                *({"name": "ä" * 100}, {"score": 10**400}),
            ):
                raw, header = json.dumps({**right, **wrong}), {"content-type": "application/json"}
                answer = client.post(where, content=raw, headers=header)
                assert answer.status_code in (400, 422), (wrong, answer.text)
        with open_store(path) as store:
            assert store[key].evaluations["judge"].score == 1.0

    def test_filters_combine(self, tmp_path: Path) -> None:
        path = build(tmp_path / "s", n=4, samples=2)
        with open_store(path) as store:
            prompt = next(iter(store.entries())).prompt
        with http(path) as client:

            def keys(**query: Any) -> list[str]:
                answer = client.get("/v1/activations", params=query)
                assert answer.status_code == 200, answer.text
                return [found["request_id"] for found in answer.json()["data"]]

            assert keys(prompt=prompt) == ["req-0-0", "req-0-1"]
            assert keys(prompt=prompt, tag="domain=a") == ["req-0-0", "req-0-1"]
            for nothing in (
                *({"tag": "domain=b"}, {"label": "hallucinated"}, {"status": "failed"}),
                *({"model": "other"}, {"label": "judge=correct"}, {"request_id": "req-1-0"}),
            ):
                assert keys(prompt=prompt, **nothing) == [], nothing
                if "request_id" not in nothing:
                    assert keys(request_id="req-0-0", **nothing) == [], nothing
            assert keys(request_id="req-1-0", label="facts=hallucinated") == ["req-1-0"]
            assert keys(prompt=prompt, limit=1, offset=1) == ["req-0-1"]
            for wrong in (
                *({"status": "x"}, {"label": "x"}, {"tag": "x"}, {"offset": 2**80}),
                {"offset": -1},
            ):
                query = {"prompt": prompt, **wrong}
                assert client.get("/v1/activations", params=query).status_code in (400, 422), wrong

    def test_before_there_is_a_store(self, tmp_path: Path) -> None:
        key = hashlib.sha256(b"").hexdigest()
        with http(tmp_path / "none") as client:
            assert client.post("/v1/activations/flush").json() == {"flushed": True, "entries": 0}
            assert client.get("/v1/activations").json()["data"] == []
            assert client.get("/v1/activations/counters").json()["totals"]["rows"] == 0
            assert client.get(f"/v1/activations/{key}").status_code == 404
            label = {"name": "a", "label": "correct"}
            answer = client.post(f"/v1/activations/{key}/evaluations", json=label)
            assert answer.status_code == 404
        assert not (tmp_path / "none").exists()
