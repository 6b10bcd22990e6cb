"""The chat with a real server: from pages of another process, and from the server's own.

Also in a browser, with what the server's probes say, and a stop.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from activation_logging.view.addresses import key_of
from activation_logging.view.app import make_app
from activation_logging.view.server_link import ServerLink
from tests.fixtures.browser import chromium, opened_tab


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


def test_a_person_sees_the_scores_and_a_stop(server: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium() as browser, opened_tab(browser) as tab:
        tab.goto(f"{server.root_url}/activations")
        tab.get_by_role("link", name="Chat", exact=True).click()
        playwright.expect(tab.locator("#server-note")).to_contain_text("Its probes: token")
        tab.get_by_text("More", exact=True).click()
        tab.get_by_label("Longest answer").fill("5")

        def ask(question: str, number: int) -> Any:
            tab.get_by_label("Question").fill(question)
            tab.keyboard.press("Enter")
            answer = tab.locator("article.answer").nth(number)
            playwright.expect(answer.get_by_role("link", name="open it")).to_be_visible()
            link = answer.get_by_role("link", name="open it").get_attribute("href")
            return answer, server.store()[key_of(link.rpartition("/")[2])]

        tip = tab.locator("#tip")
        for number in range(3):
            answer, entry = ask("Where is the river Spree?", number)
            tokens = answer.locator(".token")
            tokens.nth(1).hover()
            if "probe token" in tip.inner_text():
                break  # on a busy machine scores may come too late to be shown
        assert tokens.all_text_contents() == entry.response_tokens[:5]
        # Above the answer: what the last token of the prompt says.
        above = answer.locator(".facts").first.inner_text()
        shown = re.search(r"before the first word:.*prompt (\d\.\d\d)", above, re.DOTALL)
        (first,) = entry.scores["prompt"][np.isfinite(entry.scores["prompt"])]
        assert shown is not None
        assert shown[1] == f"{first:.2f}"
        score = entry.scores["token"][entry.num_tokens[0] + 1]
        playwright.expect(tip).to_contain_text(f"probe token: {score:.3f}")

        # A probability is above 0.
        tab.get_by_label("End the answer").select_option("tokens")
        tab.get_by_label("Above").fill("0")
        tab.get_by_label("Tokens in a row").fill("3")
        answer, entry = ask("And the Havel?", number + 1)
        playwright.expect(answer).to_contain_text("ended by the probe token")
        assert (answer.locator(".token").count(), entry.stop_reason) == (3, "activation:token")
        tab.get_by_label("End the answer").select_option("prompt")
        tab.locator("[name=stop_probe]").select_option("prompt")
        answer, entry = ask("And the Panke?", number + 2)
        playwright.expect(answer).to_contain_text("ended by the probe prompt")
        assert (answer.locator(".token").count(), entry.response) == (0, "")
