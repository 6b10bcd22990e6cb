"""The chat in a real browser, with a server that says what a test wants it to say."""

from __future__ import annotations

import pytest

from activation_logging.view.addresses import address
from activation_logging.view.app import make_app
from activation_logging.view.server_link import ServerLink
from tests.fixtures.browser import serving
from tests.fixtures.scored_server import ScoredServer, scored_server
from tests.unit.view.conftest import HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
TOKENS = ["Ada", " was", f" {HOSTILE}", " and", " more"]
SCORES = [0.05, 0.95, 0.99, 0.5, 0.2]


@pytest.fixture
def server(path):
    with scored_server(ScoredServer(TOKENS, SCORES, path)) as running:
        yield running


@pytest.fixture
def served(path, server):
    """The address of the pages, which chat with a server that writes to their store."""
    app = make_app(path, server=ServerLink(server.base_url))
    app.state.view.index.build()
    with serving(app) as address:
        yield address


def ask(tab, served, text="Who?"):
    tab.goto(f"{served}chat")
    playwright.expect(tab.locator("#server-note")).to_contain_text("Its probes: known")
    tab.get_by_label("Question").fill(text)
    tab.keyboard.press("Enter")
    return tab.locator("article.answer")


def test_tokens_are_coloured_and_the_entry_is_a_click_away(tab, served):
    answer = ask(tab, served)
    tokens, tip = answer.locator(".token"), tab.locator("#tip")
    playwright.expect(tokens).to_have_count(5)
    playwright.expect(tokens.nth(0)).to_have_class("token negative level-18")
    playwright.expect(tokens.nth(1)).to_have_class("token positive level-18")
    assert tokens.nth(2).text_content() == TOKENS[2]
    playwright.expect(answer).to_contain_text("before the first word:known 0.88")
    playwright.expect(answer).to_contain_text("claims 0.99")
    playwright.expect(answer).to_have_attribute("aria-busy", "false")
    tokens.nth(0).focus()
    tab.keyboard.press("ArrowRight")
    playwright.expect(tip).to_contain_text("probe claims: 0.950")
    playwright.expect(tip).to_contain_text("instead: 'else' 13.5%")
    tab.get_by_label("Colour tokens by").select_option("logprob")
    playwright.expect(tokens.nth(0)).to_have_class("token unlikely level-4")
    answer.get_by_role("link", name="open it in the store").click()
    tab.wait_for_url("**/entry/*")
    playwright.expect(tab.locator("#answer .said")).to_contain_text("and more")


def test_a_probe_ends_the_answer(tab, served, server):
    tab.goto(f"{served}chat")
    playwright.expect(tab.locator("#server-note")).to_contain_text("Its probes: known")
    tab.get_by_label("End the answer").select_option("tokens")
    tab.get_by_label("Above").fill("0.9")
    tab.get_by_label("Tokens in a row").fill("2")
    tab.get_by_label("Question").fill("Who?")
    tab.get_by_role("button", name="Ask").click()
    answer = tab.locator("article.answer")
    playwright.expect(answer).to_contain_text("ended by the probe claims")
    stop = server.asked[0]["vllm_xargs"]["activation_stop"]
    assert stop == {"probe": "claims", "above": 0.9, "tokens": 2}
    # The next question carries the conversation.
    tab.get_by_label("Question").fill("And then?")
    tab.keyboard.press("Enter")
    playwright.expect(answer).to_have_count(2)
    playwright.expect(answer.nth(1)).to_have_attribute("aria-busy", "false")
    assert [one["content"] for one in server.asked[1]["messages"]] == [
        "Who?", "Ada was", "And then?",
    ]  # fmt: skip


def test_escape_ends_the_answer(tab, served, server):
    server.tokens, server.scores, server.pause_s = ["x "] * 500, [0.5] * 500, 0.05
    answer = ask(tab, served)
    playwright.expect(answer.locator(".token").nth(3)).to_be_visible()
    tab.keyboard.press("Escape")
    playwright.expect(tab.locator("#said-status")).to_have_text("You have ended the answer.")
    assert server.left.wait(120)
    playwright.expect(tab.get_by_label("Question")).to_be_editable()


def test_an_error_keeps_the_question(tab, served, server):
    from starlette.responses import JSONResponse

    server.refuse = JSONResponse({"error": {"message": f"no {HOSTILE}"}}, 400)
    answer = ask(tab, served, "Is this kept?")
    playwright.expect(answer.get_by_role("alert")).to_contain_text("the server says (HTTP 400): no")
    playwright.expect(tab.get_by_label("Question")).to_have_value("Is this kept?")


def test_a_server_without_probes_colours_by_log_probability(tab, served, server):
    server.probes = False
    tab.goto(f"{served}chat")
    playwright.expect(tab.locator("#server-note")).to_contain_text("The server has no probes")
    tab.get_by_label("Question").fill("Who?")
    tab.keyboard.press("Enter")
    token = tab.locator("article.answer .token").first
    playwright.expect(token).to_have_class("token unlikely level-4")
    assert "activation_scores" not in server.asked[0].get("vllm_xargs", {})


def test_a_conversation_outlives_a_reload(tab, served, server):
    answer = ask(tab, served)
    playwright.expect(answer.get_by_role("link", name="open it")).to_be_visible()
    said = answer.inner_text()
    tab.get_by_label("End the answer").select_option("tokens")
    tab.get_by_label("Above").fill("0.7")
    tab.get_by_label("Question").fill("half a quest")
    tab.reload()
    playwright.expect(answer).to_have_count(1)
    assert answer.inner_text() == said
    assert answer.locator(".token").nth(2).text_content() == TOKENS[2]
    playwright.expect(answer.locator(".token").nth(1)).to_have_class("token positive level-18")
    playwright.expect(tab.locator("article.asked")).to_have_text("Who?")
    playwright.expect(tab.locator("#said-status")).to_contain_text("One answer of this tab")
    playwright.expect(tab.get_by_label("Above")).to_have_value("0.7")
    playwright.expect(tab.locator("[name=stop_probe]")).to_have_value("claims")
    playwright.expect(tab.get_by_label("Question")).to_have_value("half a quest")
    # From another page, too; and it goes on where it was.
    tab.get_by_role("link", name="Answers", exact=True).click()
    tab.get_by_role("link", name="Chat", exact=True).click()
    tab.get_by_label("Question").fill("And then?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    playwright.expect(answer).to_have_count(2)
    playwright.expect(answer.nth(1)).to_have_attribute("aria-busy", "false")
    contents = [one["content"] for one in server.asked[1]["messages"]]
    assert contents == ["Who?", "".join(TOKENS), "And then?"]
    tab.get_by_role("button", name="New conversation").click()
    tab.reload()
    playwright.expect(tab.locator("#first")).to_be_visible()
    playwright.expect(answer).to_have_count(0)


def test_a_reload_ends_an_answer_and_keeps_what_came(tab, served, server):
    server.tokens, server.scores, server.pause_s = [HOSTILE] * 500, [0.5] * 500, 0.05
    answer = ask(tab, served)
    playwright.expect(answer.locator(".token").nth(3)).to_be_visible()
    tab.reload()
    playwright.expect(answer.locator(".token").nth(3)).to_have_text(HOSTILE)
    playwright.expect(answer).to_contain_text("ended by you")
    playwright.expect(answer).to_have_attribute("aria-busy", "false")
    assert server.left.wait(120)


def test_an_entry_is_asked_again_and_a_reload_goes_on(tab, served, entries):
    tab.goto(f"{served}chat?like={address(entries['request-3'].key)}")
    playwright.expect(tab.get_by_label("Question")).to_have_value(HOSTILE)
    answer = ask(tab, served)
    answer.get_by_role("link", name="open it in the store").click()
    tab.get_by_role("link", name="Ask again").click()
    playwright.expect(tab.get_by_label("Question")).to_have_value("a chat")
    playwright.expect(answer).to_have_count(0)
    playwright.expect(tab.locator("#server-note")).to_contain_text("Its probes: known")
    tab.get_by_role("button", name="Ask", exact=True).click()
    playwright.expect(answer.get_by_role("link", name="open it")).to_be_visible()
    tab.reload()
    playwright.expect(answer).to_have_count(1)
    playwright.expect(tab.get_by_label("Question")).to_have_value("")
