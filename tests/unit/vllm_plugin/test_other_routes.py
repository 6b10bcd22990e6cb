"""Another plugin that answers under our prefix is named when the server starts."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from activation_logging.vllm_plugin import middleware


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the middleware logs; vLLM's loggers hand nothing on."""
    logger = logging.getLogger("vllm.activation_logging")
    # Libraries that configure logging while they are imported disable those that are there.
    logger.disabled = False
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_it_is_named(warnings: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/v1/activations/{name}")
    def of_another(name: str) -> str:
        return name

    middleware.extend_app(app)
    (said,) = {record.getMessage() for record in warnings.records}
    assert f"/v1/activations/{{name}} is answered by {__name__}" in said
    with TestClient(app) as client:
        assert client.get("/v1/activations/x").json() == "x"


def test_alone_nothing_is_said(warnings: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.get("/v1/activations_of_another")(lambda: "x")
    middleware.extend_app(app)
    assert not warnings.records
