"""Answers as a server writes them, for the benches of the store: of any length, rows as given."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from activation_logging import open_store
from activation_logging.records import Capture, Segment, SegmentSlice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from activation_logging.store.mutations import Mutations

NUM_LAYERS = 30
_PER_TRANSACTION = 5000


def document(number: int, rows: int) -> dict[str, Any]:
    """An entry as a server writes it, with half of the rows for the prompt."""
    prompt = rows // 2
    return {
        "prompt": f"Question {number}: " + "what is this and that? " * 12,
        "response": "This is an answer of some length. " * 8,
        "model": "SmolLM2-135M-Instruct",
        "request_id": f"cmpl-{number:032x}",
        "choice": 0,
        "capture": f"cmpl-{number:032x}-0",
        "prompt_token_ids": list(range(1000, 1000 + prompt)),
        "response_token_ids": list(range(2000, 2000 + rows - prompt + 1)),
        "response_tokens": [" token"] * (rows - prompt + 1),
        "finish_reason": "length",
        "sampling": {"temperature": 0.0, "max_tokens": 64},
        "tokens": "all",
        "created": 1.7e9,
        "vllm_version": "0.32.0",
    }


def capture(number: int, layers: Sequence[int], block: np.ndarray) -> Capture:
    """The rows of the same entry; all share one block of memory, bfloat16 as its bits."""
    segment = number.to_bytes(16, "big")
    rows = dict.fromkeys(layers, block)
    return Capture(
        id=f"cmpl-{number:032x}-0",
        layers=tuple(layers),
        num_layers=NUM_LAYERS,
        hidden_size=block.shape[1],
        dtype="bfloat16" if block.dtype == np.uint16 else "float32",
        first=0,
        slices=(SegmentSlice(segment, 0, len(block)),),
        segments=(Segment(segment, rows, block.nbytes * len(layers)),),
    )


def fill(path: Path, entries: int, put: Callable[[Mutations, Any, int], None]) -> None:
    """Write a store of so many entries, many per transaction.

    Args:
        path: the store.
        entries: how many.
        put: writes one entry with all that belongs to it, given the transaction and its number.
    """
    with open_store(path, writable=True) as store:
        numbers = iter(track(range(entries), "writing", total=entries))
        while some := list(islice(numbers, _PER_TRANSACTION)):

            def write(change: Mutations, txn: Any, some: list[int] = some) -> None:
                for number in some:
                    put(change, txn, number)

            store.transact(write)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers as bfloat16, rounded towards zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)
