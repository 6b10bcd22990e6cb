"""Where every command prints: text comes out as it is, whoever wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from activation_logging.printable import lines

if TYPE_CHECKING:
    from rich.console import JustifyMethod, OverflowMethod
    from rich.style import Style


class PlainConsole(Console):
    """A console to which a text is a text: no markup, no emoji codes, no folded lines.

    What would disturb a terminal is shown as an escape. Style is given by ``rich.text.Text``,
    which is printed as it is: pass what others wrote through :mod:`.printable` first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, highlight=False, emoji=False, **options)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        **_switches: Any,
    ) -> Text:
        """Text for whatever rich shows a ``str`` in: a line, a cell, a title, a rule."""
        shown = Text(lines(text), style=style)
        shown.justify, shown.overflow = justify, overflow
        return shown


def sentence(mark: str, text: object, *, style: str = "bold red") -> Text:
    """A line that begins with a mark in its style, such as ``error:``."""
    return Text.assemble((mark, style), " ", lines(text))
