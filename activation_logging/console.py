"""The console of all commands. It prints any text literally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from activation_logging.printable import lines

if TYPE_CHECKING:
    from rich.console import JustifyMethod, OverflowMethod
    from rich.style import Style


class PlainConsole(Console):
    """A console without markup, emoji codes and line folding.

    Unprintable characters of a ``str`` are shown as escapes. A ``rich.text.Text`` carries style and
    is printed unchanged, so pass untrusted text through :mod:`.printable` first.
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
        """Convert a ``str`` for rich, which calls this for lines, cells, titles and rules."""
        shown = Text(lines(text), style=style)
        shown.justify, shown.overflow = justify, overflow
        return shown


def sentence(mark: str, text: object, *, style: str = "bold red") -> Text:
    """A line that begins with a styled mark, such as ``error:``."""
    return Text.assemble((mark, style), " ", lines(text))
