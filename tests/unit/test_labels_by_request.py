"""Labels over HTTP by the id of a request, as an application has it that shows an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from activation_logging import open_store
from tests.fixtures.planted import build
from tests.fixtures.readers import http

FEEDBACK = {"name": "feedback", "label": "hallucinated"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two requests of one choice, and one of two."""
    build(tmp_path / "s", n=2, label_of=lambda i: None)

    def choice(number: int, document: dict[str, object]) -> None:
        document |= {"request_id": "both", "choice": number}

    return build(tmp_path / "s", n=2, prefix="two ", label_of=lambda i: None, change=choice)


def test_of_one_choice(path: Path) -> None:
    with http(path) as client:
        answer = client.post("/v1/activations/req-1-0/evaluations", json=FEEDBACK)
        assert answer.status_code == 201
        shown = client.get("/v1/activations/req-1-0").json()
        assert client.get("/v1/activations/req-1-0/tensor").status_code == 200
    with open_store(path) as store:
        (entry,) = store.for_request("req-1-0")
        assert entry.key == answer.json()["key"] == shown["key"]
        assert entry.evaluations["feedback"].label == "hallucinated"


def test_several_choices_have_keys_of_their_own(path: Path) -> None:
    with http(path) as client:
        refused = client.post("/v1/activations/both/evaluations", json=FEEDBACK)
    with open_store(path) as store:
        keys = [entry.key for entry in store.for_request("both")]
        assert all(not store[key].evaluations for key in keys)
    assert refused.status_code == 400
    assert refused.json()["detail"].endswith(f"has 2 choices: name a key, {', '.join(keys)}")


@pytest.mark.parametrize("name", ["nobody", "%00", "x" * 5000, "%ED%A0%80"])
def test_none(path: Path, name: str) -> None:
    with http(path) as client:
        assert client.post(f"/v1/activations/{name}/evaluations", json=FEEDBACK).status_code == 404
