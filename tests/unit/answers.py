"""Answers as the two taps would write them, with rows that tell which answer they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.records import Capture, Segment, SegmentSlice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.store import StoreWriter

HIDDEN = 16
NUM_LAYERS = 4
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def make_rows(seed: int, count: int, dtype: str = "float32") -> npt.NDArray[Any]:
    """Finite rows ``[count, HIDDEN]`` as they are stored; bfloat16 as its bits."""
    values = np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)
    if dtype == "bfloat16":
        return to_bfloat16(values)
    return values.astype(TYPES[dtype])


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper half of a float32's bits."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def make_document(
    name: str,
    *,
    prompt: str = "Hello, world!",
    prompt_ids: Sequence[int] = (1, 2, 3),
    response_ids: Sequence[int] = (4, 5),
    **fields: Any,
) -> dict[str, Any]:
    """What the front end writes of one answer."""
    return {
        "prompt": prompt,
        "response": f"answer {name}",
        "model": "org/model",
        "request_id": name,
        "capture": f"{name}-internal",
        "prompt_token_ids": list(prompt_ids),
        "response_token_ids": list(response_ids),
        "finish_reason": "stop",
        "tokens": "all",
        "created": 1_700_000_000.0,
        "vllm_version": "0",
        **fields,
    }


def make_segment(
    name: str, count: int, *, dtype: str = "float32", layers: Sequence[int] = (NUM_LAYERS,)
) -> Segment:
    """``count`` rows under an id made of ``name``; layer ``l`` is made from the seed ``l``."""
    blocks = {layer: make_rows(layer, count, dtype) for layer in layers}
    return Segment(segment_id(name), blocks, sum(block.nbytes for block in blocks.values()))


def segment_id(name: str) -> bytes:
    return name.encode().ljust(16, b".")[:16]


def make_capture(
    name: str,
    segments: Sequence[Segment],
    slices: Sequence[SegmentSlice] | None = None,
    *,
    dtype: str = "float32",
    layers: Sequence[int] = (NUM_LAYERS,),
    first: int = 0,
) -> Capture:
    """What the worker writes of one answer; without ``slices``, all rows of its segments."""
    if slices is None:
        counts = [len(segment.rows[layers[0]]) for segment in segments]
        slices = [SegmentSlice(s.id, 0, n) for s, n in zip(segments, counts, strict=True)]
    return Capture(f"{name}-internal", layers, NUM_LAYERS, HIDDEN, dtype, first, slices, segments)


def put_answer(
    writer: StoreWriter,
    name: str,
    *,
    dtype: str = "float32",
    layers: Sequence[int] = (NUM_LAYERS,),
    **fields: Any,
) -> None:
    """Queue one whole answer with all its rows in a segment of its own."""
    document = make_document(name, **fields)
    count = len(document["prompt_token_ids"]) + len(document["response_token_ids"]) - 1
    segment = make_segment(name, count, dtype=dtype, layers=layers)
    writer.put_capture(make_capture(name, [segment], dtype=dtype, layers=layers))
    writer.put_entry(document)
