"""What the search index keeps of one answer: its texts, and a number for each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.errors import StoreCorrupt
from activation_logging.records import LABELS, STATUSES
from activation_logging.store import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from activation_logging.store import Entry, Store

MOST_CHARACTERS = 100_000
"""So much of each prompt and each answer is searched."""

STATUS_CODES = {name: code for code, name in enumerate((*STATUSES, "unreadable"), 1)}
LABEL_CODES: dict[str, int] = {name: code for code, name in enumerate(LABELS, 1)}


class Record(NamedTuple):
    """One answer; without a key it could not be read.

    ``facts`` are by the names of columns. ``pieces`` are texts by the numbers of its tokens.
    """

    key: str
    prompt: str
    response: str
    facts: dict[str, Any]
    pieces: dict[int, str]


def read_record(store: Store, sequence: int, number: Callable[[str], int]) -> Record | None:
    """The answer with this number in the order of writing; None if it is gone.

    Args:
        store: an open store.
        sequence: the answer's number.
        number: gives each word of a tag or model a number.
    """
    try:
        entry = store.at(layout.place(0, sequence))
        return None if entry is None else _read(entry, number)
    except StoreCorrupt:
        return Record("", "", "", {"status": STATUS_CODES["unreadable"]}, {})


def _read(entry: Entry, number: Callable[[str], int]) -> Record:
    facts: dict[str, Any] = {
        "created": entry.created,
        "status": STATUS_CODES[entry.status],
        "model": number(entry.model),
    }
    for name, value in entry.tags.items():
        facts[f"tag/{name}"] = number(value)
    for name, found in entry.evaluations.items():
        facts[f"label/{name}"] = LABEL_CODES[found.label]
        if found.score is not None:
            facts[f"judged/{name}"] = np.float32(found.score)
    for name, scores in entry.scores.items():
        known = scores[np.isfinite(scores)]
        if len(known):
            facts[f"score/{name}"] = known.max()
    prompt, response = (utf8(text[:MOST_CHARACTERS]) for text in (entry.prompt, entry.response))
    texts = entry.response_tokens or ()
    # The first one may lack a blank, and one without a text is a part of a character, or omitted.
    pieces = {
        token: utf8(text)
        for token, text in zip(entry.response_token_ids[1:], texts[1:], strict=False)
        if text
    }
    return Record(entry.key, prompt, response, facts, pieces)


def prompt_of(key: str) -> str:
    """The part of an entry's key that all answers to its prompt share: the prompt's SHA-256."""
    return key.rpartition(":")[2].partition("#")[0]


def utf8(text: str) -> str:
    """The text with what SQLite cannot hold replaced: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
