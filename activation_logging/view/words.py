"""What a user types into the search, as a query of SQLite's FTS5."""

from __future__ import annotations

import re

_PART = re.compile(
    r"""(?P<no>-)?(?:(?P<where>prompt|response|answer):)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))"""
)


def matching(text: str) -> str | None:
    """The query; None if nothing is asked for.

    All words must be there. ``"two words"`` stand beside each other, ``begin*`` is the beginning of
    a word, ``-word`` must not be there, and ``prompt:`` or ``answer:`` before a word says where.
    Nothing else has a meaning, so any text may be searched.

    >>> matching('eiffel "was born" -answer:par*')
    '("eiffel" AND "was born") NOT (response : "par" *)'
    """
    wanted: list[str] = []
    unwanted: list[str] = []
    for found in _PART.finditer(text):
        word = found["phrase"] if found["phrase"] is not None else found["word"]
        begins = found["phrase"] is None and word.endswith("*")
        if not any(char.isalnum() for char in word):
            continue
        quoted = '"{}"'.format(word.rstrip("*").replace("\0", " "))
        column = {None: "", "prompt": "prompt : "}.get(found["where"], "response : ")
        term = f"{column}{quoted}{' *' if begins else ''}"
        (unwanted if found["no"] else wanted).append(term)
    if not wanted:
        return None
    together = f"({' AND '.join(wanted)})"
    return f"{together} NOT ({' OR '.join(unwanted)})" if unwanted else together
