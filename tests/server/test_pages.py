"""The chat with a real server: from pages of another process, and from the server's own."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from activation_logging.view.addresses import key_of
from activation_logging.view.app import make_app
from activation_logging.view.server_link import ServerLink


@pytest.mark.parametrize("where", ["view", "server"])
def test_an_answer_comes_token_by_token_and_is_stored(server: Any, where: str) -> None:
    own = where == "server"
    client: Any = (
        httpx.Client(base_url=server.root_url, headers=server.headers, timeout=120)
        if own
        else TestClient(
            make_app(server.lmdb_path, server=ServerLink(server.base_url, server.key)),
            base_url="http://localhost",
        )
    )
    with client:
        assert client.get("/activations/chat/server").json()["models"] == [server.model]
        fields = {
            "form_token": client.cookies["activations_form"],
            "messages": json.dumps([{"role": "user", "content": f"Where is Rome? ({where})"}]),
            "max_tokens": "5",
            "temperature": "0",
            "logs": "1",
        }
        answer = client.post("/activations/chat/say", data=fields)
        told = [json.loads(line) for line in answer.text.splitlines()]
        tokens = [token for line in told for token in line.get("tokens", ())]
        entry = server.store()[key_of(told[-1]["stored"].rpartition("/")[2])]
        assert "".join(token["text"] for token in tokens) == entry.response
        assert [token["logprob"] for token in tokens] == pytest.approx(entry.logprobs, abs=1e-4)
        assert entry.tags == {"source": "chat"}
        refused = client.post("/activations/chat/say", data={**fields, "max_tokens": "100000"}).text
        assert "the server says (HTTP 400)" in json.loads(refused)["error"]
