"""Which addresses strangers can reach, what asks for the key, and whose token an error shows."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import urllib.parse

import pytest

from activation_logging.asgi import KeyGuard
from activation_logging.exposure import (
    is_loopback,
    uvicorn_host,
    warn_if_open,
    without_token,
)

LOGGER = logging.getLogger("a server's")
KEY = "sk-aKeyThatOpens"
TOKEN = "hf_aTokenThatNobodyMaySee"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "PROPFIND")
PATHS = (
    "/", "", "/v1/models", "//v1/models", "/V1/models", "/v1", "/v1/../health", "/health/",
    "/health/x", "//health", "/Health", "/health\n", "/healthz", "/metrics/", "/metricsx", "/ping/",
    "/invocations", "/tokenize", "/anything", "/openapi.json", "/v1/activations", "/health?x",
)  # fmt: skip


def ask(scope, **options):
    """The status with which a guarded application answers; 200 is the application's own."""
    sent = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    whole = {"type": "http", "method": "GET", "root_path": "", "headers": [], **scope}
    asyncio.run(KeyGuard(application, ["another", KEY], **options)(whole, None, send))
    assert sent[0]["type"].endswith("http.response.start")
    return sent[0]["status"]


class TestKeyGuard:
    @pytest.mark.parametrize("path", PATHS)
    def test_everything_needs_the_key(self, path):
        for method in METHODS:
            assert ask({"method": method, "path": path}) == 401, method
            headers = [(b"authorization", f"Bearer {KEY}".encode())]
            assert ask({"method": method, "path": path, "headers": headers}) == 200, method

    @pytest.mark.parametrize("path", ["/health", "/ping", "/metrics"])
    def test_what_anybody_may_get(self, path):
        assert ask({"path": path}) == 200
        assert ask({"path": f"/below{path}", "root_path": "/below"}) == 200
        assert ask({"path": f"/below{path}"}) == 401
        assert ask({"path": f"/below{path}", "root_path": "/below/"}) == 401
        assert {ask({"path": path, "method": method}) for method in METHODS[1:]} == {401}

    def test_a_websocket_needs_it_too(self):
        scope = {"type": "websocket", "method": None, "path": "/v1/realtime"}
        assert ask(scope) == 401
        assert ask({**scope, "path": "/health"}) == 401
        assert ask({**scope, "headers": [(b"authorization", f"bearer {KEY}".encode())]}) == 200

    @pytest.mark.parametrize(
        "value",
        ["", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Bearer "],
    )
    def test_other_keys(self, value):
        assert ask({"path": "/x", "headers": [(b"authorization", value.encode())]}) == 401

    def test_a_browser_may_ask_what_it_may_ask(self):
        asks = [(b"origin", b"http://a"), (b"access-control-request-method", b"POST")]
        assert ask({"path": "/v1/models", "method": "OPTIONS", "headers": asks}) == 200
        assert ask({"path": "/v1/models", "method": "OPTIONS", "headers": asks[:1]}) == 401
        assert ask({"path": "/v1/models", "method": "POST", "headers": asks}) == 401

    def test_what_has_a_guard_of_its_own(self):
        for path, status in {
            "/activations/": 200,
            "/activations/entry/x": 200,
            "/activations": 200,
            "/activationsx/": 401,
            "//activations/": 401,
            "/Activations/": 401,
            "/v1/activations/": 401,
            "/v1/../activations/": 401,
            "/x/activations/": 401,
        }.items():
            assert ask({"path": path}, except_below="/activations") == status, path
        assert ask({"path": "/activations/"}) == 401
        scope = {"type": "websocket", "method": None, "path": "/activations/"}
        assert ask(scope, except_below="/activations") == 401


class TestToken:
    @pytest.mark.parametrize("token", [TOKEN, "a'b\"c\\d%41+/=&<e>f", "x" * 4096, "short"])
    def test_no_form_of_it_is_shown(self, token):
        encoded = [
            base64.b64encode(f"{name}:{token}".encode()).decode() for name in ("a", "me", "")
        ]
        for form in (
            token,
            f"Illegal header value {f'Bearer {token}'.encode()!r}",
            repr(repr(token)),
            json.dumps({"a": json.dumps(token)}),
            urllib.parse.quote(token, safe=""),
            urllib.parse.quote_plus(urllib.parse.quote(f"Bearer {token}", safe="")),
            f"it begins with {token[:12]}",
            f"it ends with ...{token[-12:]}",
            *(encoded if len(token) > 16 else ()),
        ):
            shown = without_token(f"403 for {form}, alas", token)
            assert "withheld" in shown, form
            assert token not in shown

    def test_other_texts_stay(self):
        text = "Repository not found: hf_other, hf_aTok"
        assert without_token(text, TOKEN) == text
        assert without_token(TOKEN, None) == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_only_this_machine(host, caplog):
    assert is_loopback(host)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        warn_if_open(host, has_key=False, logger=LOGGER)
    assert not caplog.records


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "10.1.2.3", "gpu.example.org"])
def test_everybody(host, caplog):
    assert not is_loopback(host)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        warn_if_open(host, has_key=True, logger=LOGGER)
        assert not caplog.records
        warn_if_open(host, has_key=False, logger=LOGGER)
    assert "VLLM_API_KEY" in caplog.text


@pytest.mark.parametrize(
    ("argv", "environment", "host"),
    [
        ([], {}, "127.0.0.1"),
        (["--host", "0.0.0.0"], {}, "0.0.0.0"),
        (["--host=::"], {"UVICORN_HOST": "127.0.0.1"}, "::"),
        ([], {"UVICORN_HOST": "0.0.0.0"}, "0.0.0.0"),
        (["--host", "0.0.0.0", "--uds", "/run/s"], {}, "127.0.0.1"),
        (["--host"], {}, ""),
    ],
)
def test_what_uvicorn_was_told(argv, environment, host):
    assert uvicorn_host(["app", *argv], environment) == host
