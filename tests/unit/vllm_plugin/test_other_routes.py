"""What is added to vLLM's application, and another plugin that answers under our prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin import middleware
from tests.fixtures.answers import put_answer


def test_it_is_named(our_log: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/v1/activations/{name}")
    def of_another(name: str) -> str:
        return name

    middleware.extend_app(app)
    (said,) = {record.getMessage() for record in our_log.records}
    assert f"/v1/activations/{{name}} is answered by {__name__}" in said
    with TestClient(app) as client:
        assert client.get("/v1/activations/x").json() == "x"


def test_alone_nothing_is_said(our_log: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.get("/v1/activations_of_another")(lambda: "x")
    middleware.extend_app(app)
    assert not our_log.records


def test_the_pages_are_added_behind_the_keys(
    store_path: Path, store_writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_answer(store_writer, "a", prompt="Who?")
    store_writer.flush()
    monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(store_path))
    app = FastAPI()
    middleware.extend_app(app, keys=["one", "two"])
    with TestClient(app, base_url="http://any.example") as client:
        assert client.get("/activations/").status_code == 401
        # Without the slash, too; and other methods go nowhere.
        there = client.get("/activations?q=a", follow_redirects=False)
        assert (there.status_code, there.headers["location"]) == (307, "/activations/?q=a")
        assert client.post("/activations").status_code == 405
        for key in ("one", "two"):
            headers = {"Authorization": f"Bearer {key}"}
            assert "activation-logging" in client.get("/activations/", headers=headers).text
        form = {"form_token": client.cookies["activations_form"], "key": "two"}
        # A form goes through the middleware that reads the bodies of requests.
        assert client.post("/activations/key", data=form).status_code == 200
        assert client.get("/activations/").status_code == 200
