"""``server:app`` behind a key: who gets in, and who may change which model is served."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from activation_logging import open_store
from tests.fixtures.server import STORE, UVICORN, RunningServer, running
from tests.server.test_launchers import FAST, KEY, OPEN, SECRET, check_guarded

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ROUTED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize")
"""Where a request may name a model."""
WITHOUT_A_NAME = (
    ("POST", "/invocations"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/v1/chat/completions/render"),
    ("POST", "/v1/responses/x/cancel"),
    ("POST", "/scale_elastic_ep"),
    ("GET", "/load"),
    ("GET", "/v1/responses/x"),
)
"""What vLLM has a route for, whose schema has no model."""
UNROUTED = (
    ("POST", "/anything", 404),
    ("POST", "/", 404),
    ("POST", "//v1/completions", 404),
    ("POST", "/V1/completions", 404),
    ("POST", "/v1/completions/", 404),
    ("POST", "/v1/completions/x", 404),
    ("POST", "/v1/%2e%2e/v1/completions", 404),
    ("POST", "/x/../v1/completions", 404),
    ("POST", "/v1%2Fcompletions%2F", 404),
    ("POST", "/v1/embeddings", 404),
    ("POST", "/v1/audio/transcriptions", 404),
    ("POST", "/v1/activations/x/y/z", 404),
    ("PUT", "/v1/completions", 405),
    ("GET", "/v1/completions", 405),
    ("POST", "/v1/models", 405),
    ("POST", "/health", 405),
    ("OPTIONS", "/v1/completions", 405),
)
KEYED = {"Authorization": f"Bearer {KEY}"}
STRANGERS = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY})


class Answer(NamedTuple):
    status: int
    text: str

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)["error"]
        return found


def ask(
    server: RunningServer,
    method: str,
    target: str,
    body: Mapping[str, Any] | bytes = b"",
    headers: Mapping[str, str] = KEYED,
) -> Answer:
    """One request whose target goes over the wire as it is written here."""
    connection = http.client.HTTPConnection(server.root_url.removeprefix("http://"), timeout=300)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", "content-length": len(content), **headers}
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    finally:
        connection.close()


def loads(server: RunningServer) -> list[str]:
    """The lines of the log that say that a model comes or goes."""
    lines = server.log.read_text().splitlines()
    prefix = "INFO:"
    return [
        line.removeprefix(prefix).strip()
        for line in lines
        if line.removeprefix(prefix).strip().startswith(("loading /", "unloading /"))
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """Another model that may be loaded: the same one by another name."""
    path = tmp_path_factory.mktemp("models") / "other"
    path.symlink_to(model_path)
    return path


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, other: Path
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("guarded")
    # What was logged before can be read before a model is loaded.
    open_store(folder / STORE, writable=True).close()
    env = {"ACTIVATION_VLLM_ARGS": FAST, "ACTIVATION_LAYERS": "all"}
    with running(
        [*UVICORN, "--host", "0.0.0.0"],
        folder,
        model=str(model_path),
        env={**env, "ACTIVATION_ALLOWED_MODELS": f"{model_path},{other}"},
        key=KEY,
    ) as started:
        yield started


def no_stranger_gets_in(server: RunningServer, other: Path) -> None:
    before = loads(server)
    body = {"model": str(other), "prompt": "x", "max_tokens": 1, "auth_token": SECRET}
    targets = {target for _, target, _ in UNROUTED} | {target for _, target in WITHOUT_A_NAME}
    targets |= {*ROUTED, "/v1/models", "/v1/activations", "/openapi.json", "/docs", "/version"}
    targets |= {"/metrics/", "/metrics/x", "/health/", "//health", "/health%0a", "/ping%00"}
    for number, target in enumerate(sorted(targets)):
        for method in METHODS:
            headers = STRANGERS[number % len(STRANGERS)]
            answer = ask(server, method, target, body, headers)
            if (method, target) != ("GET", "/health"):
                assert answer.status == 401, (method, target)
    for path in ("/health", "/ping", "/metrics"):
        assert ask(server, "GET", path, headers={}).status == 200
        assert ask(server, "POST", path, body, headers={}).status == 401
    for path in ("/v1/realtime", "//v1/realtime", "/health", "/anything"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws{server.root_url.removeprefix('http')}{path}").close()
        assert refused.value.response.status_code == 401
    assert loads(server) == before


def no_path_without_a_route_loads(server: RunningServer, other: Path) -> None:
    before = loads(server)
    body = {"model": str(other), "prompt": "x", "max_tokens": 1}
    for method, target, status in UNROUTED:
        answer = ask(server, method, target, body)
        assert answer.status == status, (method, target, answer.text)
        assert answer.error["code"] == status
        assert answer.error["message"]
    for method, target in WITHOUT_A_NAME:
        ask(server, method, target, body)
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"ws{server.root_url.removeprefix('http')}/v1/realtime?model={other}",
            additional_headers=KEYED,
        ).close()
    assert refused.value.response.status_code == 403
    assert loads(server) == before


class TestBeforeAModelIsLoaded:
    def test_what_was_logged_is_guarded(self, guarded: RunningServer) -> None:
        check_guarded(guarded)
        # It listens on all addresses, and asks for a key.
        assert OPEN not in guarded.log.read_text()
        assert KEY not in guarded.log.read_text()

    def test_no_stranger_gets_in(self, guarded: RunningServer, other: Path) -> None:
        no_stranger_gets_in(guarded, other)
        assert loads(guarded) == []

    def test_no_path_without_a_route_loads(self, guarded: RunningServer, other: Path) -> None:
        no_path_without_a_route_loads(guarded, other)
        assert loads(guarded) == []

    def test_what_needs_a_model_says_so(self, guarded: RunningServer, other: Path) -> None:
        for method, target in WITHOUT_A_NAME:
            answer = ask(guarded, method, target, {"model": str(other)})
            assert answer.status == 503, target
            assert "no model is loaded" in answer.error["message"]
        for body in (b"", b"{", b"[]", b'{"model": 1' + b"0" * 5000 + b"}", b"\xff"):
            assert ask(guarded, "POST", "/v1/completions", body).status == 503, body
        assert ask(guarded, "POST", "/v1/completions", b'{"model": ' + b"[" * 200_000).status == 400
        assert loads(guarded) == []

    @pytest.mark.parametrize("model", [0, False, [], {"a": 1}, 1.5])
    def test_a_model_that_is_no_name(self, guarded: RunningServer, model: Any) -> None:
        answer = ask(guarded, "POST", "/v1/completions", {"model": model, "prompt": "x"})
        assert answer.status == 400
        assert answer.error["param"] == "model"

    @pytest.mark.parametrize("model", ["\ud800", "\0", "a\nb", "x" * 100_000, "s3://x", "/etc"])
    def test_a_model_that_is_not_allowed(self, guarded: RunningServer, model: str) -> None:
        answer = ask(guarded, "POST", "/v1/completions", {"model": model, "prompt": "x"})
        assert answer.status == 404
        assert answer.error["param"] == "model"
        assert len(answer.text) < 2000

    def test_what_needs_no_model_is_answered(self, guarded: RunningServer, other: Path) -> None:
        models = json.loads(ask(guarded, "GET", "/v1/models").text)["data"]
        assert str(other) in [model["id"] for model in models]
        assert ask(guarded, "GET", "/version").status == 200
        assert "/v1/completions" in json.loads(ask(guarded, "GET", "/openapi.json").text)["paths"]


class TestToken:
    """``auth_token`` is refused before anything is done with it, and shown by nothing."""

    @pytest.mark.parametrize(
        "token",
        [
            f"{SECRET}\n", f"{SECRET}\r\nX-Y: z", f"{SECRET} ", f" {SECRET}", f"{SECRET}\0",
            f"{SECRET}é", f"{SECRET}\ud800", SECRET * 1000, "", [SECRET], {SECRET: SECRET}, 7, True,
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ROUTED)
    def test_refused_by_name(self, guarded: RunningServer, token: Any, path: str) -> None:
        body = {"model": guarded.model, "prompt": "x", "auth_token": token}
        answer = ask(guarded, "POST", path, body)
        assert answer.status == 400
        assert answer.error["param"] == "auth_token"
        assert SECRET not in answer.text
        assert SECRET not in guarded.log.read_text()
        assert loads(guarded) == []

    @pytest.mark.parametrize("token", [SECRET, SECRET + "'\"\\%41+/=<&>", "x", "y" * 4096])
    def test_a_model_by_its_name_is_not_repeated(self, guarded: RunningServer, token: str) -> None:
        for model in (token, f"/{token}", f"no/{token}", f"{'a' * 180}{token}"):
            body = {"model": model, "prompt": "x", "auth_token": token}
            answer = ask(guarded, "POST", "/v1/completions", body)
            assert answer.status == 404
            assert "withheld" in answer.error["message"]
        assert SECRET not in guarded.log.read_text()


class TestWithAModel:
    @pytest.fixture(autouse=True)
    def _loaded(self, guarded: RunningServer) -> None:
        guarded.complete("Loaded?", max_tokens=1)

    def test_no_stranger_gets_in(self, guarded: RunningServer, other: Path) -> None:
        no_stranger_gets_in(guarded, other)
        assert len(loads(guarded)) == 1

    def test_no_path_without_a_route_loads(self, guarded: RunningServer, other: Path) -> None:
        no_path_without_a_route_loads(guarded, other)
        assert len(loads(guarded)) == 1

    def test_a_layer_that_is_none(self, guarded: RunningServer) -> None:
        body = {"model": guarded.model, "prompt": "x", "max_tokens": 1}
        for asked in ("999", 31, "0-31", ["last", "40"]):
            options = {"vllm_xargs": {"activation_layers": asked}}
            answer = ask(guarded, "POST", "/v1/completions", {**body, **options})
            assert answer.status == 400
            assert answer.error["param"] == "activation_layers"
            assert "layers 0 to 30" in answer.error["message"]
        answered = guarded.complete("A few.", vllm_xargs={"activation_layers": "0-2,last"})
        (entry,) = guarded.entries_of(answered)
        assert entry.layers == (0, 1, 2, 30)

    def test_a_request_that_names_another_still_swaps(
        self, guarded: RunningServer, other: Path
    ) -> None:
        assert guarded.complete("Swap.", model=str(other), max_tokens=1)["model"] == str(other)
        assert [line.split()[0] for line in loads(guarded)] == ["loading", "unloading", "loading"]
        assert guarded.complete("Which?", model=None, max_tokens=1)["model"] == str(other)
        secrets = (KEY, SECRET)
        assert not [each for each in secrets if each in guarded.log.read_text()]
