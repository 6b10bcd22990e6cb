"""What a user types into the search, as a query of SQLite's FTS5."""

from __future__ import annotations

import re
from typing import NamedTuple

_PART = re.compile(
    r"""(?P<no>-)?(?:(?P<where>prompt|response|answer):)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))"""
)


class Asked(NamedTuple):
    """A query. ``others``: what it does not find is asked for, which FTS5 has no query for."""

    query: str
    others: bool


def matching(text: str) -> Asked | None:
    """The query; None if nothing is asked for.

    All words must be there. ``"two words"`` stand beside each other, ``begin*`` is the beginning of
    a word, ``-word`` must not be there, and ``prompt:`` or ``answer:`` before a word says where.
    Nothing else has a meaning, so any text may be searched.

    >>> matching('eiffel "was born" -answer:par*')
    Asked(query='("eiffel" AND "was born") NOT (response : "par" *)', others=False)
    >>> matching("-rome")
    Asked(query='"rome"', others=True)
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
    excluded = " OR ".join(unwanted)
    if not wanted:
        return Asked(excluded, others=True) if unwanted else None
    together = f"({' AND '.join(wanted)})"
    return Asked(f"{together} NOT ({excluded})" if unwanted else together, others=False)
