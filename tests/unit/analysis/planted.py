"""Small stores with a known signal, written through the real writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from activation_logging.records import Capture, Segment, SegmentSlice
from activation_logging.store import StoreWriter, open_store
from tests.fixtures.answers import to_bfloat16

HIDDEN, NUM_LAYERS = 16, 4
MODEL = "org/tiny"
WORDS = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Quito", "Accra", "Sofia"]


@dataclass
class Planted:
    """What to plant: ``signal`` is how far the classes are apart along one direction of ``layer``.

    ``label_of`` maps the number of an entry to its label; None leaves it without one.
    """

    n: int = 120
    signal: float = 8.0
    layer: int = 2
    layers: tuple[int, ...] = (0, 2, 4)
    dtype: str = "float32"
    seed: int = 0
    name: str = "facts"
    prefix: str = ""
    logprobs: bool = True
    samples: int = 1
    response_tokens: bool = True
    tokens: str = "all"
    label_of: Callable[[int], str | None] = lambda i: "hallucinated" if i % 2 else "correct"
    tags_of: Callable[[int], Mapping[str, str]] = lambda i: {
        "entity": f"thing {i}",
        "domain": "ab"[(i // 2) % 2],
        # Of the questions of domain a, every other wrong answer holds the gold one all the same.
        "gold": WORDS[(i + (3 if i % 8 == 1 else 0)) % len(WORDS)],
    }
    change: Callable[[int, dict[str, Any]], None] = lambda i, document: None
    change_rows: Callable[[int, dict[int, np.ndarray]], None] = lambda i, rows: None
    without_rows: frozenset[int] = field(default_factory=frozenset)


def build(path: Path, plan: Planted | None = None, **options: Any) -> Path:
    """Write the store and its labels; returns ``path``."""
    plan = plan or Planted(**options)
    rng = np.random.default_rng(plan.seed)
    direction = rng.normal(size=HIDDEN)
    direction /= np.linalg.norm(direction)
    writer = StoreWriter(path, role="test")
    labels: list[tuple[str, str | None]] = []
    for i in range(plan.n):
        label = plan.label_of(i)
        for sample in range(plan.samples):
            request = f"{plan.prefix}req-{i}-{sample}"
            document = _document(plan, i, sample, request, label, rng)
            plan.change(i, document)
            writer.put_entry(document)
            labels.append((request, label))
            if i not in plan.without_rows:
                writer.put_capture(_capture(plan, i, document, label, direction, rng))
    writer.close()
    with open_store(path, writable=True) as store:
        for request, label in labels:
            if label is not None:
                (entry,) = store.for_request(request)
                store.put_evaluation(entry.key, name=plan.name, label=label, judge="gold")
    return path


def _document(plan, i, sample, request, label, rng):
    word = WORDS[(i + (3 if label == "hallucinated" else 0) + sample) % len(WORDS)]
    pieces = ["The", " city", " is", f" {word}", "."][i % 3 :]
    pieces[0] = pieces[0].lstrip()
    count = len(pieces) + 1
    logprobs = [-float(x) for x in rng.exponential(size=count)]
    return {
        "prompt": f"<user>What is thing number {i}?<bot>",
        "response": "".join(pieces),
        "model": MODEL,
        "request_id": request,
        "choice": 0,
        "capture": f"cap-{request}",
        "messages": [{"role": "user", "content": f"What is thing number {i}?"}],
        "prompt_token_ids": list(range(3 + i % 3)),
        "response_token_ids": list(range(count)),
        "response_tokens": [*pieces, "<eos>"] if plan.response_tokens else None,
        "logprobs": logprobs if plan.logprobs else None,
        "top_logprobs": [{7: p, 8: p - 1.0} for p in logprobs] if plan.logprobs else None,
        "finish_reason": "stop",
        "tags": dict(plan.tags_of(i)),
        "tokens": plan.tokens,
        "created": time.time(),
        "vllm_version": "0",
        "sampling": {},
    }


def _capture(plan, i, document, label, direction, rng):
    prompt, response = len(document["prompt_token_ids"]), len(document["response_token_ids"])
    first = {"all": 0, "prompt": 0, "response": prompt - 1}[plan.tokens]
    stop = prompt if plan.tokens == "prompt" else prompt + response - 1
    rows = {}
    for layer in plan.layers:
        block = rng.normal(size=(stop - first, HIDDEN)).astype(np.float32)
        if layer == plan.layer:
            sign = 0.5 if label == "hallucinated" else -0.5
            # Only states that have read a token of the answer know.
            block[prompt - first :] += (sign * plan.signal * direction).astype(np.float32)
        rows[layer] = block
    plan.change_rows(i, rows)
    if plan.dtype == "bfloat16":
        rows = {layer: to_bfloat16(block) for layer, block in rows.items()}
    else:
        rows = {layer: block.astype(plan.dtype) for layer, block in rows.items()}
    segment = f"s{document['capture']}".encode().ljust(24, b"-")
    return Capture(
        id=document["capture"],
        layers=list(rows),
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN,
        dtype=plan.dtype,
        first=first,
        slices=[SegmentSlice(segment, 0, stop - first)],
        segments=[Segment(segment, rows, sum(block.nbytes for block in rows.values()))],
    )
