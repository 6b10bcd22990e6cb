"""Answers that can be told apart: every one has rows made from its name."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.records import Capture, Segment, SegmentSlice
from tests.fixtures.answers import HIDDEN, NUM_LAYERS, make_document

if TYPE_CHECKING:
    import numpy.typing as npt

    from activation_logging.store import Entry, StoreWriter


def rows_of(name: str) -> npt.NDArray[np.float32]:
    """2 to 201 rows, always the same for a name."""
    seed = zlib.crc32(name.encode())
    count = 2 + seed % 200
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


def document_of(name: str, **fields: Any) -> dict[str, Any]:
    """The text side; the prompt is one of ten, so that prompts repeat."""
    count = len(rows_of(name))
    prompt = f"prompt {zlib.crc32(name.encode()) % 10}"
    ids = {"prompt_ids": range(count - 1), "response_ids": [1, 2]}
    return make_document(name, prompt=prompt, **ids, **fields)


def capture_of(name: str, writer: StoreWriter, *, rows: str | None = None) -> Capture:
    """The rows' side, in a segment that belongs to the writer.

    ``rows`` is another answer, whose rows this one shares; they are there already.
    """
    block = rows_of(rows or name)
    segment = Segment(
        bytes.fromhex(writer.id) + zlib.crc32((rows or name).encode()).to_bytes(4, "big"),
        {NUM_LAYERS: block},
        block.nbytes,
    )
    return Capture(
        f"{name}-internal",
        [NUM_LAYERS],
        NUM_LAYERS,
        HIDDEN,
        "float32",
        0,
        [SegmentSlice(segment.id, 0, len(block))],
        [] if rows not in (None, name) else [segment],
    )


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
