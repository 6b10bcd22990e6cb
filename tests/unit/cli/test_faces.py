"""The command line and the routes say the same of an entry, and take the same filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from activation_logging import open_store
from activation_logging.cli import _app
from activation_logging.records import Evaluation
from activation_logging.store import StoreWriter
from activation_logging.store.query import Filter
from activation_logging.text import brief
from tests.fixtures.answers import put_answer
from tests.fixtures.damage import cut_off
from tests.fixtures.readers import command, http, strict

CHAT = [
    {"role": "user", "content": "the first question"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "the question"},
    {"role": "user", "content": ["not a text"]},
]


@pytest.fixture
def path(store_path: Path) -> Path:
    writer = StoreWriter(store_path, role="test")
    put_answer(writer, "chat", prompt="a template", messages=CHAT, tags={"split": "a=b"})
    put_answer(writer, "text", prompt="a text")
    writer.close()
    with open_store(store_path, writable=True) as store:
        (entry,) = store.for_prompt("a template")
        details = {"by": ["hand"]}
        store.put_evaluation(entry.key, name="e", label="correct", score=1, details=details)
    return store_path


def test_one_entry(path: Path) -> None:
    with open_store(path) as store, http(path) as client:
        (entry,) = store.for_request("chat")
        (listed,) = json.loads(command("ls", path, "--tag", "split=a=b", "--json"))
        query = {"tag": "split=a=b"}
        (sent,) = strict(client.get("/v1/activations", params=query).content)["data"]
        assert entry.summary().items() <= listed.items()
        assert entry.summary().items() <= sent.items()
        assert listed["labels"] == sent["evaluations"] == {"e": "correct"}
        shown = json.loads(command("show", path, entry.key, "--json"))
        whole = strict(client.get(f"/v1/activations/{entry.key}").content)
        label = entry.evaluations["e"]
        assert shown["evaluations"] == whole["evaluations"] == {"e": label.as_json()}
        assert Evaluation("e", **label.as_json()) == label


@pytest.mark.parametrize(("option", "value"), [("tag", "x"), ("label", "x"), ("status", "x")])
def test_an_invalid_filter(path: Path, option: str, value: str) -> None:
    done = CliRunner().invoke(_app, ["ls", str(path), f"--{option}", value])
    with http(path) as client:
        answer = client.get("/v1/activations", params={option: value})
    assert answer.status_code == 400
    assert str(done.exception) == answer.json()["detail"]
    assert str(done.exception).startswith(f"{option}: 'x' is not ")


def test_what_is_no_filter(path: Path) -> None:
    with open_store(path) as store, http(path) as client:
        key = next(iter(store))
        for where in ("", "/counters", f"/{key}", f"/{key}/tensor"):
            answer = client.get(f"/v1/activations{where}", params={"lable": "correct"})
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith("unknown parameter 'lable'; ")
        told = client.get("/v1/activations", params={"lable": "correct"}).json()["detail"]
        assert "known are limit, offset, request_id, prompt, key, model, status, label, " in told


def test_a_label_may_leave_fields_null(path: Path) -> None:
    body = {"name": "n", "label": "correct"}
    body |= dict.fromkeys(("score", "judge", "details", "spans"))
    with open_store(path) as store, http(path) as client:
        key = next(iter(store))
        answer = client.post(f"/v1/activations/{key}/evaluations", json=body)
        assert answer.status_code == 201, answer.text
        found = store[key].evaluations["n"]
        assert (found.score, found.judge, found.details, found.spans) == (None, None, {}, ())


PATHS_ALONE = ("ls", "stats", "verify", "repair", "prune", "compact", "upgrade", "view", "report")


@pytest.mark.parametrize("name", [*PATHS_ALONE, "show", "delete", "label", "merge", "score"])
def test_an_empty_path_is_no_folder(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    done = CliRunner().invoke(_app, [name, "", *(() if name in PATHS_ALONE else ["x"])])
    assert done.exit_code == 2
    assert "it is empty" in done.output


def test_a_filter_reads_its_label_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Filter(label="e=correct")
    monkeypatch.delattr("activation_logging.store.query.LabelFilter.parse")
    with open_store(path) as store:
        assert [wanted.matches(entry) for entry in store.entries()] == [True, False]


def test_the_question_is_the_users_last_text(path: Path) -> None:
    with open_store(path) as store:
        chat, text = store.entries()
        assert chat.question == "the question"
        assert text.question == "a text"


def test_brief() -> None:
    assert brief(ValueError("one\n\n  two ")) == "one two"
    assert brief("x" * 200) == "x" * 200
    assert brief("x" * 201) == "x" * 199 + "…"
    assert brief("one two", 5) == "one …"


@pytest.mark.parametrize("left", [20, 300])
def test_a_list_goes_on_behind_a_damaged_entry(path: Path, left: int) -> None:
    cut_off(path, 1, left=left)
    listed = CliRunner().invoke(_app, ["ls", str(path), "--json"], catch_exceptions=False)
    assert [entry["request_id"] for entry in json.loads(listed.stdout)] == ["chat"]
    assert "1 of them cannot be read" in listed.stderr
    with http(path) as client:
        data = strict(client.get("/v1/activations").content)["data"]
    assert [entry["request_id"] for entry in data] == ["chat"]
