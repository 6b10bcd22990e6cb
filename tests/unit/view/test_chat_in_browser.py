"""The chat in a real browser, and every page as those who cannot see it find it (axe)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from activation_logging import open_store
from activation_logging.view.addresses import address
from activation_logging.view.app import make_app
from activation_logging.view.server_link import ServerLink
from tests.fixtures.scored_server import ScoredServer, scored_server
from tests.unit.view.conftest import HOSTILE
from tests.unit.view.test_in_browser import CHROMIUM, WAIT_MS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
TOKENS = ["Ada", " was", f" {HOSTILE}", " and", " more"]
SCORES = [0.05, 0.95, 0.99, 0.5, 0.2]
AXE = "axe-core@4.14.1"
playwright.expect.set_options(timeout=WAIT_MS)


@pytest.fixture
def server(path):
    with scored_server(ScoredServer(TOKENS, SCORES, path)) as running:
        yield running


@pytest.fixture
def served(path, server):
    """The address of the pages, which chat with a server that writes to their store."""
    import threading

    import uvicorn

    app = make_app(path, server=ServerLink(server.base_url))
    app.state.view.index.build()
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", port=0))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.01)
    yield f"http://localhost:{running.servers[0].sockets[0].getsockname()[1]}/activations/"
    running.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser):
    """A page of the browser, which must say nothing of errors or of refused scripts."""
    said = []
    opened = browser.new_page(viewport={"width": 1440, "height": 900}, bypass_csp=False)
    opened.set_default_timeout(WAIT_MS)
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    assert opened.evaluate("window.taken") is None
    opened.close()
    assert said == []


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
    assert server.left.wait(30)
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


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The script of axe, which its licence allows to use here and not to keep here."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, which would download axe")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        [npm, "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"axe cannot be downloaded: {done.stderr.strip()[-200:]}")
    shutil.unpack_archive(folder / done.stdout.strip(), folder, filter="data")
    return (Path(folder) / "package" / "axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_no_serious_fault(browser, served, path, axe, scheme, width):
    with open_store(path) as store:
        key = address(next(e.key for e in store.entries() if e.request_id == "request-4"))
    # Our policy would refuse axe's script as any other.
    page = browser.new_page(
        viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True
    )
    page.set_default_timeout(WAIT_MS)
    found = []
    where = ("", "?q=nothing+of+this", f"entry/{key}", f"entry/{key}?colour=logprob", "label",
             f"label?by=ada&key={key}", "agreement", "studies", "chat", "entry/none")  # fmt: skip
    for one in where:
        page.goto(served + one)
        if one == "chat":
            playwright.expect(page.locator("#server-note")).to_contain_text("Its probes: known")
            page.get_by_label("Question").fill("Who?")
            page.keyboard.press("Enter")
            playwright.expect(page.get_by_role("link", name="open it")).to_be_visible()
        page.evaluate(axe)
        result = page.evaluate("axe.run({resultTypes: ['violations']})")
        for fault in result["violations"]:
            if fault["impact"] in ("serious", "critical"):
                parts = [node["html"][:160] for node in fault["nodes"]][:3]
                found.append((one, fault["id"], parts))
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, one
    page.close()
    assert found == []


def test_every_page_has_a_name_and_one_heading(browser, served):
    page = browser.new_page()
    names = set()
    for one in ("", "label", "agreement", "studies", "chat"):
        page.goto(served + one)
        names.add(page.title())
        assert page.locator("h1").count() == 1, one
        assert re.search(r"activation-logging", page.title())
        page.keyboard.press("Tab")
        assert (
            page.evaluate("document.activeElement.textContent") == "To the page itself"
            or one == "chat"
        )
    assert len(names) == 5
    page.close()
