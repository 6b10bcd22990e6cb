"""Every page as those find it who cannot see it, or have a small screen: axe, headings, widths."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from activation_logging import open_store
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address
from activation_logging.view.app import make_app
from activation_logging.view.server_link import ServerLink
from tests.fixtures.answers import put_answer
from tests.fixtures.browser import WAIT_MS, serving
from tests.fixtures.scored_server import ScoredServer, scored_server
from tests.unit.view.conftest import build

if TYPE_CHECKING:
    from collections.abc import Iterator

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
AXE = files("axe_playwright_python") / "axe.min.js"
WIDTHS = (390, 1440)
SCHEMES = ("light", "dark")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The address of the pages, with a chat, and what the page of a hostile answer ends with."""
    path = tmp_path_factory.mktemp("access") / "s.lmdb"
    build(path)
    long = [f" word{i}" for i in range(60)]
    writer = StoreWriter(path, role="test")
    put_answer(
        writer, "long", layers=(2, 4), prompt="Tell a tale", response="".join(long),
        response_tokens=long, response_ids=tuple(range(4, 64)), created=1.8e9,
    )  # fmt: skip
    writer.close()
    with scored_server(ScoredServer(["Ada", " was"], [0.05, 0.95], path)) as server:
        app = make_app(path, server=ServerLink(server.base_url))
        app.state.view.index.build()
        with serving(app) as found, open_store(path) as store:
            keys = {entry.request_id: address(entry.key) for entry in store.entries()}
            yield found, keys["request-4"]


@pytest.fixture
def page(browser):
    """A page in which axe may run: our policy would refuse its script as any other."""
    opened = browser.new_page(bypass_csp=True)
    opened.set_default_timeout(WAIT_MS)
    yield opened
    opened.close()


def faults(page, where: str) -> list[str]:
    """What axe finds in the page as it is, at every width and in every scheme."""
    found = []
    page.evaluate(AXE.read_text("utf-8"))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            only = "" if scheme == "light" else ", runOnly: ['color-contrast']"
            result = page.evaluate(f"axe.run({{resultTypes: ['violations']{only}}})")
            found += [
                f"{where} {width} {scheme}: {fault['id']}: {node['html'][:200]}"
                for fault in result["violations"]
                if fault["impact"] in SERIOUS
                for node in fault["nodes"][:3]
            ]
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            dark = sum(map(int, re.findall(r"\d+", paper))) < 300
            assert dark == (scheme == "dark"), where
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{where} is {wide} wide, and the screen {width}")
    return found


@pytest.mark.parametrize(
    "where",
    ["", "?q=nothing+of+this&low=0", "entry/{key}", "entry/{key}?colour=logprob", "request/long",
     "entry/none", "label", "label?by=ada&key={key}", "label?by=ada&q=nothing+of+this", "agreement",
     "studies"],
)  # fmt: skip
def test_axe_finds_no_serious_fault(page, served, where):
    base, key = served
    page.goto(base + where.format(key=key))
    if where.startswith(("entry/{key}", "request/long")):
        page.locator("table.heat").wait_for()
        page.locator("#near form").first.wait_for()
    if where == "entry/{key}":
        page.get_by_role("button", name="Find the nearest answers").click()
        page.locator("#near ol.answers").wait_for()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert faults(page, where) == []


def test_axe_of_a_chat_and_of_a_question(page, served):
    base, _ = served
    page.goto(f"{base}chat")
    playwright.expect(page.locator("#server-note")).to_contain_text("Its probes: known")
    before = faults(page, "empty chat")
    page.get_by_label("Question").fill("Who?")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("link", name="open it")).to_be_visible()
    page.get_by_label("End the answer").select_option("tokens")
    page.get_by_text("More").click()
    assert before + faults(page, "chat") == []
    page.goto(base)
    page.get_by_label("Select this answer").first.check()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("heading", name="Delete 1 answer?").wait_for()
    assert faults(page, "delete") == []


@pytest.mark.parametrize("kind", ["empty", "missing", "broken", "locked"])
def test_axe_of_what_has_no_answers(page, tmp_path, kind):
    path = tmp_path / "s.lmdb"
    if kind != "missing":
        open_store(path, writable=True).close()
    if kind == "broken":
        (path / "data.mdb").write_bytes(b"no store" * 2048)
    with serving(make_app(path, keys=("a",) if kind == "locked" else ())) as base:
        page.goto(base)
        playwright.expect(page.locator("h1")).to_be_visible()
        found = faults(page, kind)
        if kind == "empty":
            for one in ("label?by=ada", "agreement", "chat", "studies"):
                page.goto(base + one)
                found += faults(page, f"empty {one}")
    assert found == []


def test_every_page_has_a_name_and_one_heading_and_begins_with_a_way_past_the_links(page, served):
    base, key = served
    names = set()
    pages = ("", "label", "agreement", "studies", "chat", f"entry/{key}", f"label?by=ada&key={key}")
    for one in pages:
        page.goto(base + one, wait_until="networkidle")  # with the parts that come later
        names.add(page.title())
        assert page.locator("h1").count() == 1, one
        assert "activation-logging" in page.title()
        page.keyboard.press("Tab")
        if one != "chat":  # the question has the focus there
            assert page.evaluate("document.activeElement.textContent") == "To the page itself"
    assert len(names) == len(pages) - 1
