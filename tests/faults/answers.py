"""Answers that can be told apart: every one has rows made from its name."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.fixtures.answers import (
    NUM_LAYERS,
    make_capture,
    make_document,
    make_rows,
    make_segment,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.records import Capture
    from activation_logging.store import Entry, StoreWriter


def count_of(name: str) -> int:
    """How many rows an answer has: 2 to 201, always the same for a name."""
    return 2 + zlib.crc32(name.encode()) % 200


def rows_of(name: str) -> npt.NDArray[np.float32]:
    """The rows of an answer, ``[count_of(name), HIDDEN]``."""
    return make_rows(name, NUM_LAYERS, count_of(name))


def document_of(name: str, *, rows: str | None = None, **fields: Any) -> dict[str, Any]:
    """The text side; the prompt is one of ten, so that prompts repeat.

    ``rows`` is another answer, whose rows this one shares.
    """
    ids = {"prompt_ids": range(count_of(rows or name) - 1), "response_ids": [1, 2]}
    prompt = f"prompt {zlib.crc32(name.encode()) % 10}"
    return make_document(name, **{"prompt": prompt, **ids, **fields})


def capture_of(name: str, writer: StoreWriter, *, rows: str | None = None) -> Capture:
    """The rows' side, in a segment that belongs to the writer.

    ``rows`` is another answer, whose rows this one shares; they are there already.
    """
    made = make_segment(rows or name, count_of(rows or name), owner=writer)
    capture = make_capture(name, [made])
    return capture if rows in (None, name) else replace(capture, segments=[])


def put(writer: StoreWriter, name: str) -> None:
    """Queue one whole answer."""
    writer.put_capture(capture_of(name, writer))
    writer.put_entry(document_of(name))


def put_somehow(writer: StoreWriter, name: str, chance: random.Random) -> None:
    """Queue one whole answer, either half first, and perhaps with a commit between them."""
    halves = [
        lambda: writer.put_capture(capture_of(name, writer)),
        lambda: writer.put_entry(document_of(name)),
    ]
    chance.shuffle(halves)
    halves[0]()
    if chance.random() < 0.3:
        writer.flush()
    halves[1]()


def is_right(entry: Entry) -> bool:
    """Whether an entry holds just the rows that its name asks for."""
    return entry.status == "complete" and np.array_equal(
        entry.activations, rows_of(entry.request_id)
    )
