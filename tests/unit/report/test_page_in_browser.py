"""The report in a real browser: charts drawn, tokens coloured, nothing asked of a network."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.report import build_report
from tests.fixtures.claims import Claims, build_claims
from tests.fixtures.planted import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[3]


HOSTILE = "</script><script>document.title = 'taken'</script>\u202e'\"\U0001f600"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browsed(page: Path, profile: Path, *options: str, script: str = "") -> str:
    """The page after its scripts have run, and after ``script``, without any script's text."""
    if script:
        page = page.with_name("tried.html")
        text = page.with_name("index.html").read_text("utf-8")
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={profile}", "--dump-dom", *options),
        *("--virtual-time-budget=30000", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)


def said(page: str) -> dict[str, str]:
    """What a tried script left as attributes of the body."""
    (body,) = re.findall(r"<body[^>]*>", page)
    return {
        name: html.unescape(value) for name, value in re.findall(r' data-(\w+)="([^"]*)"', body)
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("page") / "s", n=120)


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """The report of answers with judged claims, of which one text is hostile."""
    folder = tmp_path_factory.mktemp("claims")
    path = build_claims(folder / "s", Claims(n=60, wrong=(0.35, 0.35), signal=12.0))
    with open_store(path, writable=True) as opened:
        for key in list(opened):
            verdict = opened[key].evaluations["profiles"]
            spans = [replace(span, gold=HOSTILE) for span in verdict.spans]
            opened.put_evaluation(key, name="profiles", label=verdict.label, spans=spans)
    sites = {"draws": 100, "layers": [2], "positions": ["response_last"]}
    return build_report(path, folder / "r", label="profiles", **sites)


@needs_chromium
def test_a_browser_draws_every_chart_and_colours_tokens(store, tmp_path):
    result = build_report(store, tmp_path / "report", label="facts", draws=200)
    page = browsed(result.page, tmp_path / "profile")
    asked = re.findall(r'<[^>]*data-chart="[^"]+"[^>]*>', page)
    assert len(asked) >= 8
    assert all('data-drawn="yes"' in element for element in asked)
    assert page.count("main-svg") >= len(asked)
    # By the model's log-probabilities, since no token was judged.
    assert len(re.findall(r'class="token unlikely level-\d+"', page)) > 20
    assert "data-score" not in page


@needs_chromium
def test_tokens_are_reached_by_keys_and_say_what_was_judged(claims, tmp_path):
    script = """
    const answer = document.querySelector(".answer");
    const tokens = [...answer.querySelectorAll(".token")];
    const press = (key) => document.activeElement.dispatchEvent(
      new KeyboardEvent("keydown", { key, bubbles: true }));
    tokens[0].focus();
    press("ArrowRight"); press("ArrowRight");
    document.body.dataset.at = tokens.indexOf(document.activeElement);
    document.body.dataset.stops = answer.querySelectorAll("[tabindex='0']").length;
    document.body.dataset.tip = document.getElementById("tip").textContent;
    document.body.dataset.marked = answer.querySelectorAll(".spans .shown").length;
    const line = getComputedStyle(tokens[2].querySelector(".judged"));
    document.body.dataset.line = line.textDecorationLine;
    document.body.dataset.colour = getComputedStyle(tokens[2]).backgroundColor;
    press("Escape");
    document.body.dataset.hidden = document.getElementById("tip").hidden;
    press("End"); press("ArrowRight");
    document.body.dataset.last = tokens.indexOf(document.activeElement) === tokens.length - 1;
    document.body.dataset.title = document.title;
    """
    found = said(browsed(claims.page, tmp_path / "profile", script=script))
    assert (found["at"], found["stops"], found["marked"]) == ("2", "1", "1")
    assert "probe of tokens: contradicted 0." in found["tip"]
    assert "(year)" in found["tip"]
    assert found["line"] == "underline"
    assert re.fullmatch(r"rgba\((224, 112, 47|58, 127, 213), 0\.\d+\)", found["colour"])
    assert (found["hidden"], found["last"]) == ("true", "true")
    assert found["title"].startswith("profiles")


@needs_chromium
def test_one_table_of_several_is_shown_at_a_time(claims, tmp_path):
    script = """
    const shown = () => [...document.querySelectorAll("[data-level]")]
      .filter((table) => table.offsetParent !== null).map((table) => table.dataset.level).join();
    document.body.dataset.first = shown();
    const select = document.querySelector("[data-picks=level]");
    select.value = "answer";
    select.dispatchEvent(new Event("change"));
    document.body.dataset.then = shown();
    """
    found = said(browsed(claims.page, tmp_path / "profile", script=script))
    assert found == {"first": "span", "then": "answer"}


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_scrolls_down_only_and_dark_pages_are_dark(claims, dark, tmp_path):
    script = """
    const root = document.documentElement;
    document.body.dataset.wide = Math.max(0, root.scrollWidth - root.clientWidth);
    document.body.dataset.width = root.clientWidth;
    const parts = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
    document.body.dataset.dark = parts.reduce((sum, part) => sum + part) < 3 * 128;
    """
    options = ("--window-size=500,900", f"--blink-settings=preferredColorScheme={int(not dark)}")
    found = said(browsed(claims.page, tmp_path / "profile", *options, script=script))
    assert found["wide"] == "0"
    assert int(found["width"]) <= 500
    assert found["dark"] == str(dark).lower()


def test_the_example_does_the_whole_study(store):
    script = ROOT / "examples" / "study.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, script, store], capture_output=True, text=True, timeout=300, check=True
    )
    *table, words = done.stdout.splitlines()
    by_layer = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in table[1:]}
    # The signal was planted in layer 2, from the first token of the answer on.
    assert by_layer["2"][3] > 0.97
    assert by_layer["0"][3] < 0.7
    assert words.startswith("words alone")
