"""``show`` marks the spans of an answer; the routes take them and give them back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from activation_logging import Span, open_store
from activation_logging.cli.spans import Judged, marked
from activation_logging.store import StoreWriter
from tests.fixtures.answers import put_answer
from tests.fixtures.readers import command, http, strict

RESPONSE = "Born in 1867\x1b in [Paris]."
SPANS = [
    Span(8, 12, "contradicted", claim="birth year", gold="18[68]", source="a list\x1b"),
    Span(0, 12, "supported"),
    Span(16, 23, "unverifiable"),
]


@pytest.fixture
def path(store_path: Path) -> Path:
    writer = StoreWriter(store_path, role="test")
    pieces = ["Born in", " 1867\x1b in", " [Paris].", ""]
    fields: dict[str, Any] = {"response": RESPONSE, "response_tokens": pieces}
    put_answer(writer, "one", response_ids=[1, 2, 3, 4], shared_characters=[], **fields)
    put_answer(writer, "two", prompt="no spans")
    writer.close()
    with open_store(store_path, writable=True) as store:
        (entry,) = store.for_request("one")
        store.put_evaluation(entry.key, name="a", label="correct", spans=SPANS[:2])
        store.put_evaluation(entry.key, name="b", label="correct", spans=SPANS[2:])
    return store_path


def test_marks_where_there_is_no_colour(path: Path) -> None:
    shown = command("show", path, "one")
    assert "[1>Born in [2>1867<2]<1]\\x1b in[3> [Paris<3]]." in shown
    (line,) = (line for line in shown.splitlines() if "birth year" in line)
    expected = ["2", "a", "8", "to", "12", "contradicted", "1867", "birth", "year", "18[68]"]
    assert line.split()[:10] == expected
    assert "a list\\x1b" in line
    assert "span of" not in command("show", path, "two")


def test_underlines_where_there_is_colour() -> None:
    spans = [Judged("a", span) for span in (SPANS[1], SPANS[0], SPANS[2])]
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    console.print(marked(RESPONSE, spans, styled=True))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("\x1b[4;32mBorn in \x1b[0m\x1b[4;31m1867\x1b[0m\\x1b in")


def test_spans_that_cannot_be_are_shown_as_far_as_they_go() -> None:
    shown = marked("ab", [Judged("a", Span(1, 99, "supported"))], styled=False)
    assert shown.plain.startswith("a[1>b")


def test_json(path: Path) -> None:
    shown = strict(command("show", path, "one", "--json"))
    first, second, third = shown["spans"]
    assert second == {
        "evaluator": "a",
        **SPANS[0].as_json(),
        "text": "1867",
        "tokens": [1],
    }
    assert (first["text"], first["tokens"]) == ("Born in 1867", [0, 1])
    assert (third["evaluator"], third["text"]) == ("b", " [Paris")
    assert shown["evaluations"]["b"]["spans"] == [SPANS[2].as_json()]
    assert strict(command("show", path, "two", "--json"))["spans"] == []
    counted = strict(command("stats", path, "--json"))["spans"]
    assert counted == {"a": {"contradicted": 1, "supported": 1}, "b": {"unverifiable": 1}}
    assert "span of a" in command("stats", path)


def test_over_http(path: Path) -> None:
    with open_store(path) as store:
        (entry,) = store.for_request("two")
    body = {
        "name": "c",
        "label": "correct",
        "spans": [{"start": 0, "end": 6, "label": "supported"}],
    }
    where = f"/v1/activations/{entry.key}"
    with http(path) as client:
        assert client.post(f"{where}/evaluations", json=body).status_code == 201
        assert strict(client.get(where).content)["evaluations"]["c"]["spans"] == body["spans"]
        listed = strict(client.get("/v1/activations").content)["data"]
    spans = {found["request_id"]: found["spans"] for found in listed}
    assert spans["two"] == {"c": body["spans"]}
    assert spans["one"]["b"] == [SPANS[2].as_json()]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"end": 99}, 400, "lies outside the response, which has 10 characters"),
        ({"end": 0}, 422, "spans"),
        ({"start": 5, "end": 3}, 422, "spans[0] starts at 5 and ends at 3"),
        ({"start": True}, 422, '"start"'),
        ({"start": 0.5}, 422, '"start"'),
        ({"start": "0"}, 422, '"start"'),
        ({"start": -1}, 422, '"start"'),
        ({"end": 10**30}, 422, '"end"'),
        ({"label": "true"}, 422, '"label"'),
        ({"claim": 5}, 422, '"claim"'),
        ({"claim": "x" * (1 << 20)}, 422, "longer than 1048576 bytes"),
        ({"other": 1}, 422, '"other"'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_http_names_what_is_wrong(
    path: Path, change: dict[str, Any], status: int, said: str
) -> None:
    with open_store(path) as store:
        (entry,) = store.for_request("two")
    span = {"start": 0, "end": 6, "label": "supported", **change}
    body = {"name": "c", "label": "correct", "spans": [span]}
    with http(path) as client:
        answer = client.post(f"/v1/activations/{entry.key}/evaluations", json=body)
    assert answer.status_code == status
    assert said in answer.text
    assert json.loads(answer.text)["detail"]
    with open_store(path) as store:
        assert store[entry.key].evaluations == {}


def test_too_many_over_http(path: Path) -> None:
    with open_store(path) as store:
        (entry,) = store.for_request("two")
    spans = [{"start": 0, "end": 1, "label": "supported", "claim": str(n)} for n in range(10_001)]
    body = {"name": "c", "label": "correct", "spans": spans}
    with http(path) as client:
        answer = client.post(f"/v1/activations/{entry.key}/evaluations", json=body)
    assert answer.status_code == 422
    assert "at most 10000" in answer.text
