"""Untrusted text on a terminal."""

from __future__ import annotations

_ZERO_WIDTH_JOINER = "\u200d"


def printable(text: str, *, keep: str = "") -> str:
    """Text with unprintable characters (control characters, lone surrogates) as escapes.

    Characters in ``keep`` and the zero-width joiner of emoji stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep or char == _ZERO_WIDTH_JOINER else _escape(char)
        for char in text
    )


def lines(text: object) -> str:
    """:func:`printable` for text of several lines, such as an error."""
    return printable(str(text), keep="\n\t")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
