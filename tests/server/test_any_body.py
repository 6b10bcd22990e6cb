"""What a client sends breaks no reader: any JSON under every name, on every route."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from activation_logging import open_store
from tests.fixtures.readers import command, strict
from tests.fixtures.server import RunningServer
from tests.unit.test_any_json import ANYTHING, any_json

MESSAGES = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/chat/completions/batch": {"messages": [MESSAGES, MESSAGES], "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/inference/v1/generate": {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 2}},
    "/invocations": {"prompt": "Hi", "max_tokens": 2},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/activations/flush": {},
}
NAMES = (
    *(name for name in ANYTHING if name != "n"),  # which would make many answers, not odd ones
    *("prompt", "input", "model", "request_id", "user", "stop", "seed", "echo", "stream", "suffix"),
    *(
        "metadata",
        "instructions",
        "tools",
        "vllm_xargs",
        "auth_token",
        "activation_tags",
        "created",
    ),
    *("activation_logging", "capture", "key", "sequence", "tokens", "error", "details", "response"),
    *("prompt_token_ids", "response_token_ids", "id", "choices", "system", "priority", "writer"),
)
WRONG = (["a"], [None], [[]], {"a": 1}, "x", 5, True, [{"role": ["user"]}])
bodies = st.tuples(
    st.sampled_from(list(ROUTES)),
    st.dictionaries(st.sampled_from(NAMES), any_json, min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Any:
    with httpx.Client(base_url=server.root_url, timeout=60) as opened:
        yield opened


def send(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """POST a body that may hold what httpx would not write: NaN, and half characters."""
    kind = {"content-type": "application/json"}
    return client.post(path, content=json.dumps(body).encode(), headers=kind)


def test_any_body(server: RunningServer, client: httpx.Client, tmp_path: Path) -> None:
    before = {entry.key for entry in server.store().entries()}

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies)
    def sent(case: tuple[str, dict[str, Any]]) -> None:
        path, wrong = case
        send(client, path, {"model": server.model, **ROUTES[path], **wrong})

    sent()
    for name in ANYTHING[:9]:
        for number, value in enumerate(
            (["a"], [None], [[]], {"a": 1}, "x", 5, True, [{"role": ["user"]}])
        ):
            prompt = f"Hi {name} {number}"
            body = {"model": server.model, "prompt": prompt, "max_tokens": 2, name: value}
            send(client, "/v1/completions", body)
    assert client.get("/health").status_code == 200
    server.flush()

    store = server.store()
    ours = [entry for entry in store.entries() if entry.key not in before]
    assert len(ours) > 60, "most fields that a route does not know are no reason to refuse"
    requests = {entry.request_id for entry in ours}
    assert not any(entry.document.get("messages") == ["a"] for entry in ours)
    strict(command("ls", server.lmdb_path, "--json", "--limit", 10_000))
    command("ls", server.lmdb_path, "--limit", 10_000)
    strict(command("stats", server.lmdb_path, "--json"))
    command("stats", server.lmdb_path)
    problems = strict(command("verify", server.lmdb_path, "--json", codes=(0, 1)))["problems"]
    assert not {problem["key"] for problem in problems} & {entry.key for entry in ours}
    for request in requests:
        command("show", server.lmdb_path, request)
        strict(command("show", server.lmdb_path, request, "--json"))
        page = client.get("/v1/activations", params={"request_id": request})
        assert page.status_code == 200, page.text
        strict(page.content)
    for offset in range(0, len(store), 1000):
        page = client.get("/v1/activations", params={"limit": 1000, "offset": offset})
        assert page.status_code == 200, page.text
        strict(page.content)
    for entry in ours:
        where = f"/v1/activations/{entry.key.replace('#', '%23')}"
        for path in (where, f"{where}/tensor"):
            answer = client.get(path)
            assert answer.status_code == 200 or entry.status != "complete", answer.text
        strict(client.get(where).content)
    with open_store(server.lmdb_path, writable=True) as opened:
        for number, entry in enumerate(ours):
            label = "hallucinated" if number % 2 else "correct"
            opened.put_evaluation(entry.key, name="any", label=label)
    options = ("--label", "any", "--skip-broken", "--positions", "prompt_last")
    said = command(
        "report", server.lmdb_path, "-o", tmp_path / "r", *options, "--layers", "last", "--json"
    )
    assert strict(said)["page"]
    exported = ("export", server.lmdb_path, "-o", tmp_path / "e", "-f", "npy", "--label", "any")
    strict(command(*exported, "--layers", "last", "--json"))


def test_any_label(server: RunningServer, client: httpx.Client) -> None:
    (entry,) = server.entries_of(server.complete("A label"))
    where = f"/v1/activations/{entry.key.replace('#', '%23')}/evaluations"
    right = {"name": "judge", "label": "correct"}
    for wrong in (
        *(
            {"score": math.nan},
            {"score": -math.inf},
            {"score": True},
            {"score": "1"},
            {"score": []},
        ),
        *({"details": {"\ud800": math.nan}}, {"details": [1]}, {"name": "\ud800"}, {"name": "\0"}),
        *({"label": "wrong"}, {"label": 5}, {"judge": 5}, {"name": "x" * 200}, {"score": 10**400}),
    ):
        answer = send(client, where, {**right, **wrong})
        assert answer.status_code == 400, (wrong, answer.text)
        assert strict(answer.content)["error"]["message"]
    assert send(client, where, {**right, "score": 1}).status_code == 201
    assert entry.evaluations["judge"].score == 1.0
