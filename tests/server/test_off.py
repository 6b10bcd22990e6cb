"""Logging switched off: vLLM as it is where this package is not, and what it then answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.fixtures.server import RunningServer

# A prompt that nobody has asked, alone: in a batch, or after a cached prefix, bfloat16 rounds
# otherwise. No streams: how many tokens a piece has depends on time.
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Rivers of the north are"}),
    ("/v1/completions", {"prompt": "Seven small birds were", "logprobs": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who was Ada Lovelace?"}]}),
    ("/v1/responses", {"input": "Hello"}),
]
_CHANGING = re.compile(
    rb'"(created|created_at|completed_at)":[\d.]+|"system_fingerprint":"[^"]*"'
    rb"|(msg|resp|rs|fc)_\w+"
)
"""Times, ids, and a hash of the engine's configuration, which names the worker's class."""


def answers(server: RunningServer) -> list[tuple[httpx.Headers, bytes]]:
    found = []
    for number, (path, body) in enumerate(BODIES):
        limit = "max_output_tokens" if "input" in body else "max_tokens"
        fixed = {"model": server.model, limit: 6, "temperature": 0, "request_id": f"same-{number}"}
        answer = server.post(path, {**fixed, **body})
        assert answer.status_code == 200, answer.text
        headers = {k: v for k, v in answer.headers.items() if k not in ("date", "content-length")}
        found.append((httpx.Headers(headers), _CHANGING.sub(b"", answer.content)))
    return found


def without_ids(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what differs between any two: its id, its time, its server's build."""
    left_out = ("id", "created", "system_fingerprint")
    return {name: value for name, value in answer.items() if name not in left_out}


@pytest.fixture(scope="module")
def plain(serve: Callable[..., Any]) -> Iterator[RunningServer]:
    with serve(env={"ACTIVATION_LOGGING": "0"}) as started:
        yield started


def test_who_does_not_ask_gets_the_same_bytes(server: RunningServer, plain: RunningServer) -> None:
    """Of a server with probes as of one without this package at work."""
    for (path, body), ours, theirs in zip(BODIES, answers(server), answers(plain), strict=True):
        assert ours == theirs, (path, body)


def test_it_leaves_vllm_as_it_was(server: RunningServer, plain: RunningServer) -> None:
    prompts = ["The sun is", "Once upon a time", "def add(a, b):", "Q: Who? A:"]
    options = {"max_tokens": 40, "logprobs": 3}
    for prompt in prompts:
        logged, expected = (one.complete(prompt, **options) for one in (server, plain))
        assert without_ids(logged) == without_ids(expected)
    logged, expected = (one.chat("Name a river.") for one in (server, plain))
    assert without_ids(logged) == without_ids(expected)
    assert plain.get("/v1/activations").status_code == 404
    assert not plain.lmdb_path.exists()
    assert "activation" not in plain.get("/metrics").text
