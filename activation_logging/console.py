"""The console of every command: text of any origin is printed as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from activation_logging.printable import lines

if TYPE_CHECKING:
    from rich.console import JustifyMethod, OverflowMethod
    from rich.style import Style


class PlainConsole(Console):
    """A console without markup, emoji codes and folded lines.

    A control character is shown as an escape. Style is given by ``rich.text.Text``, which is
    printed unchanged: pass text of others through :mod:`.printable` first.
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
        """Text for every place where rich shows a ``str``: a line, a cell, a title, a rule."""
        shown = Text(lines(text), style=style)
        shown.justify, shown.overflow = justify, overflow
        return shown


def sentence(mark: str, text: object) -> Text:
    """A line that begins with a red mark, such as ``error:``."""
    return Text.assemble((mark, "bold red"), " ", lines(text))
