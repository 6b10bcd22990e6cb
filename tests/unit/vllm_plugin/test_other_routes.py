"""Another plugin that answers under our prefix is named when the server starts."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from activation_logging.vllm_plugin import middleware


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
