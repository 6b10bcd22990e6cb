"""Which characters of an answer each of its tokens holds.

An entry keeps the text that each token adds to the answer, see :attr:`.Entry.response_tokens`.
Where tokens are whole characters, these texts say everything. But tokens may be bytes: then a
character belongs to several of them, and the text is added by the last one. So the writer, who has
the tokenizer, also keeps which characters such tokens hold, in ``shared_characters``.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_TEXTS = "the texts of the tokens were not logged"
OFFSETS_DIFFER = "the texts of the tokens do not add up to the answer"


def token_offsets(
    response: str,
    tokens: Sequence[str],
    shared: Sequence[tuple[int, int, int]] | None = None,
) -> npt.NDArray[np.int64]:
    """Characters ``[start, end)`` of the answer that each token holds, ``[R, 2]``.

    A token that the answer's text leaves out (an end of turn, a stop string, any special token that
    is skipped) holds nothing: its start is its end. A token that holds a part of a character has
    that character, so neighbours may overlap.

    Args:
        response: the answer's text.
        tokens: the text that each token adds to it.
        shared: token, start and end of those that hold other characters than they add. None if
            that is not known, as in entries of earlier versions. Then a token without text, before
            one whose text is not all ASCII, is taken to hold all of that up to its last such
            character: too many rather than too few.
    """
    if "".join(tokens) != response:
        return np.array(_searched(response, tokens), np.int64).reshape(-1, 2)
    ends = list(accumulate(map(len, tokens)))
    found = np.array([[0, *ends[:-1]], ends], np.int64).T if ends else np.zeros((0, 2), np.int64)
    for index, start, end in _guessed(tokens, ends) if shared is None else shared:
        found[index] = start, end
    return found


def touching(offsets: npt.NDArray[np.int64], start: int, end: int) -> npt.NDArray[np.int64]:
    """Indices of the tokens that hold a part of the characters ``[start, end)``, ascending."""
    first, last = offsets.T
    return np.flatnonzero((first < last) & (first < end) & (last > start))


def _guessed(tokens: Sequence[str], ends: Sequence[int]) -> list[tuple[int, int, int]]:
    """Tokens that may hold a part of the next token's text, as in ``shared``."""
    found = []
    waiting: list[int] = []
    for index, text in enumerate(tokens):
        if not text:
            waiting.append(index)
            continue
        start = ends[index] - len(text)
        within = max((n for n, char in enumerate(text, 1) if not char.isascii()), default=0)
        found += [(part, start, start + within) for part in waiting if within]
        waiting = []
    return found


def _searched(response: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """The same for texts that do not add up to the answer: those of version 0.1.

    There a token was decoded by itself. A character whose bytes are split over several tokens is
    U+FFFD in each of them; those tokens together hold what lies before the next one that can be
    read.
    """
    offsets: list[tuple[int, int]] = []
    # Version 0.1 left out the blank that SentencePiece has before an answer's first word.
    first = next(filter(None, tokens), "")
    at = 0 if response.startswith(first) else len(response) - len(response.lstrip())
    unread: list[int] = []
    for index, token in enumerate(tokens):
        offsets.append((at, at))
        if "�" in token:
            unread.append(index)
            continue
        begin = response.find(token, at) if unread else at
        if begin < 0 or not token or not response.startswith(token, begin):
            # A leading space may be left out at the beginning of an answer.
            shorter = token.lstrip()
            if unread or not shorter or not response.startswith(shorter, at):
                continue
            offsets[index] = (at, at + len(shorter))
            at += len(shorter)
            continue
        for waiting in unread:
            offsets[waiting] = (at, begin)
        unread.clear()
        at = begin + len(token)
        offsets[index] = (begin, at)
    for waiting in unread:
        offsets[waiting] = (at, len(response))
    return offsets
