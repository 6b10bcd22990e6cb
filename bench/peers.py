"""What other packages do for the same work: answers, and the states of some layers, on disk.

Each function answers prompts with so many tokens each, and saves one file per answer, ``[layers,
positions, hidden]`` in bfloat16. It gives the number of tokens of the answers, and the seconds from
the first prompt to the last file. None has a row for the last sampled token.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.default_model import demo_model_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BATCH = 32
"""Prompts in one batch of transformers."""
ALREADY = 2
"""Prompts that are answered before the clock starts."""


class Timing(NamedTuple):
    """Tokens of all answers, and the seconds that they took."""

    tokens: int
    seconds: float


def save(rows: Any, path: Path) -> None:
    """Save a bfloat16 tensor as its bits."""
    import torch

    np.save(path, rows.contiguous().view(torch.int16).numpy().view(np.uint16))


def transformers(
    prompts: Sequence[str], tokens: int, layers: Sequence[int], folder: Path, batch: int
) -> Timing:
    """``generate(output_hidden_states=True)`` in bfloat16, ``batch`` prompts at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_path = str(demo_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()

    def answer(chunk: Sequence[str], number: int, length: int) -> None:
        inputs = tokenizer(list(chunk), return_tensors="pt", padding=True)
        found = model.generate(
            **inputs,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        rows = torch.stack(
            [torch.cat([step[k] for step in found.hidden_states], dim=1) for k in layers], dim=1
        )
        for index in range(len(chunk)):
            padding = int((inputs.attention_mask[index] == 0).sum())
            save(rows[index, :, padding:], folder / f"{number + index}.npy")

    with torch.inference_mode():
        answer(prompts[:batch], 0, 4)
        started = time.perf_counter()
        for first in range(0, len(prompts), batch):
            answer(prompts[first : first + batch], first, tokens)
        seconds = time.perf_counter() - started
    return Timing(len(prompts) * tokens, seconds)


def nnsight(prompts: Sequence[str], tokens: int, layers: Sequence[int], folder: Path) -> Timing:
    """A trace over ``generate`` that saves each layer's output at every step.

    Its vLLM engine needs a GPU, so this is its engine of transformers.
    """
    import nnsight as package
    import torch

    model = package.TransformersModel(
        str(demo_model_path()), dispatch=True, dtype=torch.bfloat16, task="text-generation"
    )
    blocks = [model.model.layers[k - 1] if k else model.model.embed_tokens for k in layers]

    def answer(chunk: Sequence[str], number: int, length: int) -> None:
        with model.generate(
            max_new_tokens=length, min_new_tokens=length, do_sample=False
        ) as tracer:
            states = package.save([])
            with tracer.invoke(list(chunk)):
                for _step in tracer.iter[:length]:
                    states.append([block.output for block in blocks])
        rows = torch.stack(
            [torch.cat([step[k] for step in states], dim=1) for k in range(len(layers))], dim=1
        )
        counts = [len(model.tokenizer(text).input_ids) + length - 1 for text in chunk]
        for index, count in enumerate(counts):
            save(rows[index, :, -count:], folder / f"{number + index}.npy")

    answer(prompts[:BATCH], 0, 4)
    started = time.perf_counter()
    for first in range(0, len(prompts), BATCH):
        answer(prompts[first : first + BATCH], first, tokens)
    return Timing(len(prompts) * tokens, time.perf_counter() - started)


def vllm_lens(prompts: Sequence[str], tokens: int, layers: Sequence[int], folder: Path) -> Timing:
    """Its plugin in vLLM's offline engine; it counts decoder layers from 0, after each."""
    from vllm import LLM, SamplingParams

    engine = LLM(str(demo_model_path()))
    wanted = {"output_residual_stream": [max(layer - 1, 0) for layer in layers]}
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, extra_args=wanted)
    engine.generate(list(prompts[:ALREADY]), params, use_tqdm=False)
    started = time.perf_counter()
    for number, output in enumerate(engine.generate(list(prompts), params, use_tqdm=False)):
        save(output.activations["residual_stream"], folder / f"{number}.npy")
    seconds = time.perf_counter() - started
    # vLLM's own end comes too late in a program with a temporary folder, which would never end.
    engine.llm_engine.engine_core.shutdown()
    return Timing(len(prompts) * tokens, seconds)


def interp_engine(
    prompts: Sequence[str], tokens: int, layers: Sequence[int], folder: Path
) -> Timing:
    """``capture_generation`` of its hooked vLLM engine, 64 requests at once.

    It has no way to go on after the end of an answer, so some answers are shorter.
    """
    import torch
    from interp_engine import Address
    from interp_engine.vllm_backend import VLLMModel

    points = [Address("resid_post", max(layer - 1, 0)) for layer in dict.fromkeys(layers)]

    async def all_of_them() -> Timing:
        model = VLLMModel(str(demo_model_path()), trust_remote_code=False, max_model_len=2048)
        turn = asyncio.Semaphore(64)

        async def answer(number: int, text: str) -> int:
            ids = model.tokenizer(text).input_ids
            async with turn:
                answered, found = await model.capture_generation(ids, points, max_tokens=tokens)
                save(torch.stack([found[point] for point in points]), folder / f"{number}.npy")
            return len(answered.token_ids)

        await asyncio.gather(*(answer(n, text) for n, text in enumerate(prompts[:ALREADY])))
        started = time.perf_counter()
        found = await asyncio.gather(*(answer(n, text) for n, text in enumerate(prompts)))
        seconds = time.perf_counter() - started
        await model.shutdown()
        return Timing(sum(found), seconds)

    return asyncio.run(all_of_them())
