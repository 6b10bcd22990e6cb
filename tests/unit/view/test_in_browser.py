"""The pages in a real browser, used as a person would: typing, clicking, keys, the mouse."""

from __future__ import annotations

import re

import pytest

from activation_logging import open_store
from activation_logging.view.addresses import address
from activation_logging.view.app import make_app
from tests.fixtures.browser import held, opened_tab, serving
from tests.unit.view.conftest import HOSTILE, NUMBER

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def press(tab, key):
    """Press a key that a script of the page waits for, once it does."""
    tab.wait_for_load_state()
    tab.keyboard.press(key)


def test_search_narrow_down_and_open(tab, served, entries):
    tab.goto(served)
    cards = tab.locator(".card.row")
    assert cards.count() == NUMBER
    tab.get_by_label("Search prompts and answers").fill("answer:9")
    tab.wait_for_url("**/activations/?q=answer%3A9&score=score%2Fmade_up")
    playwright.expect(cards).to_have_count(1)
    # A press takes time, and what is typed must not replace the link meanwhile.
    tab.get_by_role("link", name="show all").click(delay=500)
    playwright.expect(cards).to_have_count(NUMBER)
    tab.get_by_role("link", name="even").click()
    playwright.expect(cards).to_have_count(NUMBER // 2)
    tab.get_by_label("Sort").select_option("lowest")
    playwright.expect(cards.first).to_contain_text("number 0")
    assert "tag=dataset%3Deven" in tab.url
    tab.go_back()
    playwright.expect(cards.first).to_contain_text("number 10")
    cards.first.get_by_role("link").click()
    tab.wait_for_url(f"**/entry/{address(entries['request-10'].key)}")


def test_a_key_that_is_typed_leads_to_its_answer(tab, served, entries):
    for text in (entries["request-9"].key, "request-9", entries["request-10"].key):
        tab.goto(served)
        tab.get_by_label("Search prompts and answers").fill(text)
        playwright.expect(tab.locator("#answer")).to_contain_text("It is number")
        assert "/entry/" in tab.url


def test_from_the_search_to_the_answers_by_keys(tab, served):
    tab.goto(served)
    tab.get_by_label("Search prompts and answers").focus()
    way = tab.get_by_role("link", name="To the answers")
    for _ in range(6):
        tab.keyboard.press("Tab")
        if way.evaluate("e => e === document.activeElement"):
            break
    playwright.expect(way).to_be_in_viewport()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    playwright.expect(tab.get_by_label("Select this answer").first).to_be_focused()


def test_a_part_that_cannot_be_shown_says_why(browser, served, entries, path):
    with opened_tab(browser, refused=True) as tab:
        tab.goto(f"{served}entry/{address(entries['request-2'].key)}")
        map_ = tab.locator("#map")
        playwright.expect(map_.locator("table")).to_be_visible()
        with open_store(path, writable=True) as store:
            store.delete(entries["request-2"].key)
        map_.get_by_label("Show").select_option(index=0)
        playwright.expect(tab.get_by_role("alert")).to_contain_text("That did not work")


def test_tokens_by_mouse_and_keys(tab, served, entries):
    tab.goto(f"{served}entry/{address(entries['request-4'].key)}")
    tokens, tip = tab.locator("#answer .token"), tab.locator("#tip")
    tokens.nth(1).hover()
    playwright.expect(tip).to_contain_text("log-probability -0.500")
    playwright.expect(tip).to_contain_text("rank: 2")
    tokens.first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    playwright.expect(tokens.nth(2)).to_be_focused()
    playwright.expect(tip).to_contain_text("token 3 of 5")
    tab.keyboard.press("Escape")
    playwright.expect(tip).to_be_hidden()
    # The claims of the hostile evaluator are underlined.
    line = (
        tokens.nth(1)
        .locator(".judged")
        .first.evaluate("e => getComputedStyle(e).textDecorationLine")
    )
    assert line == "underline"


def test_colours_and_the_heat_map(tab, served, entries):
    tab.goto(f"{served}entry/{address(entries['request-2'].key)}")
    colour = "e => getComputedStyle(e).backgroundColor"
    third = tab.locator("#answer .token").nth(2)
    tab.get_by_label("Colour tokens by").select_option("logprob")
    tab.wait_for_url("**colour=logprob*")
    playwright.expect(third).to_have_class("token unlikely level-8")
    assert re.fullmatch(r"rgba\(140, 90, 190, 0\.2\d*\)", third.evaluate(colour))
    cells = tab.locator("#map tbody td")
    playwright.expect(cells).to_have_count(2 * 5)
    assert tab.locator("header.bar").count() == 1
    assert cells.first.evaluate("e => e.getBoundingClientRect().width") >= 18
    # The address is a link to what is shown.
    shown = tab.url
    tab.goto(served)
    tab.goto(shown)
    playwright.expect(third).to_have_class("token unlikely level-8")


def test_labels_by_keys(tab, served, path):
    def labels():
        with open_store(path) as store:
            found = {e.request_id: e.evaluations.get("ada") for e in store.entries()}
            return {name: one.label for name, one in found.items() if one is not None}

    tab.goto(served)
    tab.get_by_role("link", name="Label", exact=True).click()
    tab.get_by_label("Your labels are called").fill("ada")
    tab.get_by_label("the newest").check()
    tab.get_by_role("button", name="Begin").click()
    said = tab.locator("#answer .said")
    for number, key in ((11, "h"), (10, "c"), (9, "r"), (8, "i")):
        playwright.expect(said).to_contain_text(f"number {number}")
        press(tab, key)
    playwright.expect(said).to_contain_text("number 7")
    given = {
        "request-11": "hallucinated",
        "request-10": "correct",
        "request-9": "refused",
        "request-8": "invalid",
    }
    assert labels() == given
    press(tab, "n")
    playwright.expect(said).to_contain_text("number 6")
    press(tab, "u")
    playwright.expect(said).to_contain_text("number 8")
    del given["request-8"]
    assert labels() == given
    playwright.expect(tab.get_by_role("status").first).to_have_text("9 to go")


def test_spans_by_the_mouse(tab, served, path, entries):
    entry = entries["request-4"]
    tab.goto(f"{served}label?by=ada&key={address(entry.key)}")
    press(tab, "x")
    playwright.expect(tab.locator("#span-note")).to_contain_text(
        "Select a part of the answer first"
    )
    tab.locator("#answer .token").nth(1).dblclick()
    chosen = tab.evaluate("String(getSelection())").strip()
    assert chosen == "is"
    press(tab, "x")
    playwright.expect(tab.locator("#answer .judged.contradicted").first).to_be_visible()
    with open_store(path) as store:
        (span,) = store[entry.key].evaluations["ada"].spans
    assert span.label == "contradicted"
    assert entry.response[span.start : span.end].strip() == "is"
    press(tab, "d")
    playwright.expect(tab.locator("#answer .judged")).to_have_count(0)


def test_spans_by_keys(tab, served, path, entries):
    entry = entries["request-4"]
    tab.goto(f"{served}label?by=ada&key={address(entry.key)}")
    tab.locator("#answer .token").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    tab.keyboard.press("Shift+ArrowRight")
    playwright.expect(tab.locator("#answer .token.chosen")).to_have_count(3)
    press(tab, "v")
    playwright.expect(tab.locator("#answer .said .judged.unverifiable")).to_have_count(3)
    with open_store(path) as store:
        (span,) = store[entry.key].evaluations["ada"].spans
    assert entry.response[span.start : span.end] == f" is number 4{HOSTILE}"


def test_spans_from_two_tabs_are_all_kept(browser, served, path, entries):
    entry = entries["request-2"]

    def labels():
        with open_store(path) as store:
            return [span.label for span in store[entry.key].evaluations["ada"].spans]

    with opened_tab(browser) as one, opened_tab(browser) as other:
        for tab in (one, other):
            tab.goto(f"{served}label?by=ada&key={address(entry.key)}")
        for tab, number, key in ((one, 0, "x"), (other, 1, "s"), (one, 2, "v")):
            tab.locator("#answer .token").nth(number).dblclick()
            press(tab, key)
            tab.locator(f"#answer .token:nth-child({number + 1}) .judged").wait_for()
        assert labels() == ["contradicted", "supported", "unverifiable"]
        other.wait_for_load_state()
        press(other, "d")  # the last that it knows of
        playwright.expect(other.locator("#answer ol.spans > li")).to_have_count(2)
    assert labels() == ["contradicted", "unverifiable"]


def test_a_selection_is_deleted_after_a_question(tab, served, path):
    tab.goto(served)
    for box in tab.get_by_label("Select this answer").all()[:2]:
        box.check()
    tab.get_by_role("button", name="Delete…").click()
    tab.get_by_role("heading", name="Delete 2 answers?").wait_for()
    tab.get_by_role("button", name="Delete").click()
    playwright.expect(tab.locator(".card.row")).to_have_count(NUMBER - 2)
    with open_store(path) as store:
        assert len(store) == NUMBER - 2


# --- people who are quicker than the pages -------------------------------------------------


def test_a_choice_before_the_scripts_came_is_heeded(tab, served, entries):
    with held(tab, "**/htmx.min.js"):
        tab.goto(served, wait_until="commit")
        tab.get_by_label("Sort").select_option("lowest")
    first = tab.locator(".card.row").first
    playwright.expect(first).to_contain_text("number 0")
    tab.wait_for_url("**sort=lowest*")
    with held(tab, "**/htmx.min.js"):
        tab.goto(f"{served}entry/{address(entries['request-2'].key)}", wait_until="commit")
        tab.get_by_label("Colour tokens by").select_option("logprob")
    third = tab.locator("#answer .token").nth(2)
    playwright.expect(third).to_have_class("token unlikely level-8")


def test_a_link_that_is_pressed_while_its_list_is_replaced(tab, served, entries):
    tab.goto(served)
    link = tab.locator(".card.row .to").first
    with held(tab, "**/?q=*") as asked:
        tab.get_by_label("Search prompts and answers").fill("answer:9")
        while not asked:
            tab.wait_for_timeout(50)
        link.hover()
        tab.mouse.down()
        with tab.expect_response("**/?q=*"):
            asked.pop().continue_()
    tab.mouse.up()
    tab.wait_for_url(f"**/entry/{address(entries['request-11'].key)}")


def test_a_key_pressed_twice_labels_one_answer(tab, served, path):
    tab.goto(f"{served}label?by=ada&order=newest")
    said = tab.locator("#answer .said")
    with held(tab, "**/label") as sent:
        press(tab, "h")
        while not sent:
            tab.wait_for_timeout(50)
        tab.keyboard.press("h")
        tab.keyboard.press("c")
        tab.keyboard.press("n")
    playwright.expect(said).to_contain_text("number 10")
    press(tab, "u")
    playwright.expect(said).to_contain_text("number 11")
    with open_store(path) as store:
        assert not any("ada" in entry.evaluations for entry in store.entries())


# --- back, by keys, and without an answer -------------------------------------------------


def test_tokens_say_what_they_hide_after_the_way_back(tab, served, entries):
    tab.goto(f"{served}entry/{address(entries['request-2'].key)}")
    tab.get_by_label("Colour tokens by").select_option("logprob")
    tab.wait_for_url("**colour=logprob*")
    tab.go_back()
    playwright.expect(tab.get_by_label("Colour tokens by")).to_have_value("score/made_up")
    tab.wait_for_load_state()
    tab.locator("#answer .token").nth(1).hover()
    playwright.expect(tab.locator("#tip")).to_contain_text("log-probability -0.500")


def test_a_choice_by_keys_keeps_the_focus(tab, served, entries):
    tab.goto(f"{served}entry/{address(entries['request-2'].key)}")
    field = tab.get_by_label("Position")
    field.focus()
    chosen = tab.locator("#near input[name=position]")
    for position in ("prompt_last", "response_first"):
        tab.keyboard.press("ArrowDown")
        playwright.expect(chosen).to_have_value(position)
        playwright.expect(field).to_be_focused()


def test_pages_whose_process_has_ended_say_so(browser, path):
    tab = browser.new_page()
    app = make_app(path)
    app.state.view.index.build()
    with serving(app) as base:
        tab.goto(base)
        playwright.expect(tab.get_by_role("alert")).to_have_count(0)
    tab.get_by_label("Sort").select_option("oldest")
    playwright.expect(tab.get_by_role("alert")).to_contain_text("do not answer")
    tab.close()
