"""Pictures of the pages for docs/images: the list, an answer, labelling, the chat; light and dark.

    activation-logging view STORE --probe PATH --server URL
    python -m bench.pictures http://127.0.0.1:8123/activations/ [--list QUERY] [--answer QUERY]
        [--token 5] [--question TEXT] [--folder docs/images]

Takes them of pages that are open, in Chromium with playwright, and goes through them as a person
would. The chat's server should have probes. The store gets the chat's answer and a label of "ada".
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from activation_logging.console import PlainConsole

SIZE: Any = {"width": 1200, "height": 780}
TALL: Any = {"width": 1200, "height": 1080}
"""With the map of layers."""
WAIT_MS = 300_000
"""A busy machine needs its time for an answer."""
COLOURS = 128
"""A page has few colours, and its picture with a palette is a third as large."""


def save(page: Any, name: str, folder: Path) -> None:
    """What the page shows, in both schemes."""
    console = PlainConsole()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        file = folder / f"view-{name}-{scheme}.png"
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
        console.print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    page.emulate_media(color_scheme="light")


def take(page: Any, asked: argparse.Namespace) -> None:
    """Go from page to page."""
    page.goto(f"{asked.pages}?{asked.list}")
    save(page, "list", asked.folder)

    page.goto(f"{asked.pages}?{asked.answer}")
    page.locator(".card.row a.to").first.click()
    page.locator("table.heat").wait_for()
    token = page.locator("#answer .token").nth(asked.token)
    page.set_viewport_size(TALL)
    token.hover()
    save(page, "entry", asked.folder)
    page.set_viewport_size(SIZE)

    page.get_by_role("link", name="Label it").click()
    page.get_by_label("Your labels are called").fill("ada")
    page.get_by_role("button", name="Begin").click()
    token.dblclick()
    page.keyboard.press("x")
    page.locator("#answer .judged").first.wait_for()
    page.mouse.move(0, 0)
    save(page, "label", asked.folder)

    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_text("Its probes:").wait_for()
    more = page.get_by_text("More", exact=True)
    more.click()
    page.get_by_label("Longest answer").fill("90")
    more.click()
    page.get_by_label("Question").fill(asked.question)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="open it in the store").wait_for()
    page.locator("article.answer .token").nth(asked.token).hover()
    save(page, "chat", asked.folder)


def main() -> None:
    """Read the command line, and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", help="the address that `activation-logging view` prints")
    parser.add_argument("--list", default="", metavar="QUERY", help="as in a list's address")
    parser.add_argument("--answer", default="", metavar="QUERY", help="whose first answer is shown")
    parser.add_argument("--token", type=int, default=5, help="the token that is pointed at")
    parser.add_argument("--question", default="Who was Ada Lovelace?")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    with sync_playwright() as tools:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(WAIT_MS)
        take(page, asked)
        browser.close()


if __name__ == "__main__":
    main()
