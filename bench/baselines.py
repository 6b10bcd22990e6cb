"""What a user would pick instead, on the same model and prompts: tokens per second, and bytes.

    python bench/baselines.py [--prompts 256] [--tokens 64] [--only NAME ...] [--output FILE]

Each contestant runs in a process of its own and is timed from the first prompt to the last
answer on disk, without the loading of the model. Hugging Face's ``generate`` gives out the
hidden states of every layer and step, vllm-lens those of one layer; the last layer's rows of each
answer are saved with ``numpy.save``, which is the least that a user would do with them.

vllm-lens takes part where it can be imported. It asks for another Python and vLLM than this
project's environment has: ``pip install --no-deps --ignore-requires-python --target DIR vllm-lens
cloudpickle``, and ``PYTHONPATH=DIR`` here, run it beside ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from activation_logging.bench.load import Client, Load
from activation_logging.bench.servers import SERVED_NAME, Contestant, Server, ServerOptions
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from bench.answers import NUM_LAYERS
from bench.docs import add_flag, record, write_figures

terminal = PlainConsole(width=130)

IN_FLIGHT = 64
"""Requests at once, where a server is asked."""

KEPT = {
    "transformers, one by one": "last layer, every token",
    "transformers, batches of 32": "last layer, every token",
    "vllm-lens": "last layer before the norm, every token",
    "vLLM, nothing kept": "text alone",
    "activation-logging, generate": "last layer, every token; prompt, answer, ids, tags",
    "activation-logging, server": "the same",
}
PLUGIN = {
    "vllm-lens": "activations",
    "vLLM, nothing kept": "",
    "activation-logging, generate": "activation_logging",
}
"""The one plugin that vLLM is to load."""


def transformers(prompts: list[str], tokens: int, folder: Path, batch: int) -> dict[str, Any]:
    """``generate(output_hidden_states=True)`` in bfloat16, ``batch`` prompts at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_path = str(demo_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()

    def answer(chunk: list[str], number: int, length: int) -> None:
        inputs = tokenizer(chunk, return_tensors="pt", padding=True)
        found = model.generate(
            **inputs,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        rows = torch.cat([step[-1] for step in found.hidden_states], dim=1)
        for index in range(len(chunk)):
            kept = rows[index, int((inputs.attention_mask[index] == 0).sum()) :]
            save(kept, folder / f"{number + index}.npy")

    with torch.inference_mode():
        answer(prompts[:batch], 0, 4)
        started = time.perf_counter()
        for first in range(0, len(prompts), batch):
            answer(prompts[first : first + batch], first, tokens)
        seconds = time.perf_counter() - started
    return {"tokens": len(prompts) * tokens, "seconds": seconds, "bytes": size_of(folder)}


def save(rows: Any, path: Path) -> None:
    """Save a bfloat16 tensor as its bits."""
    import numpy as np
    import torch

    np.save(path, rows.contiguous().view(torch.int16).numpy().view(np.uint16))


def ours(prompts: list[str], tokens: int, folder: Path) -> dict[str, Any]:
    """The offline engine with the plugin, as ``activation-logging generate`` runs it."""
    from activation_logging.generate import generate

    os.environ["ACTIVATION_LMDB_PATH"] = str(folder / "activations.lmdb")
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    sampling = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    outcome = generate(path, model=str(demo_model_path()), sampling=sampling)
    assert not outcome.missing
    assert not outcome.refused
    path.unlink()
    return {"tokens": outcome.tokens, "seconds": outcome.seconds, "bytes": size_of(folder)}


def server(prompts: list[str], tokens: int, folder: Path) -> dict[str, Any]:
    """The server, asked by a client in a process of its own."""
    options = ServerOptions(str(demo_model_path()))
    load = Load(IN_FLIGHT, len(prompts), answer_tokens=tokens)
    with Server(Contestant("logging"), options, folder) as running, Client() as client:
        for texts in (load.prompts("warm-up"), prompts):
            started = time.perf_counter()
            timing = client.send(
                load, texts, base_url=running.base_url, body=load.body(SERVED_NAME)
            )
            running.flush()
            seconds = time.perf_counter() - started
        # Both series are of the same length, and in the store.
        return {"tokens": timing.tokens, "seconds": seconds, "bytes": size_of(folder) // 2}


def offline(prompts: list[str], tokens: int, folder: Path, **options: Any) -> dict[str, Any]:
    """The offline engine with no plugin but, perhaps, vllm-lens."""
    from vllm import LLM, SamplingParams

    engine = LLM(str(demo_model_path()))
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, **options)
    engine.generate(prompts[:2], params, use_tqdm=False)
    started = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    if options:
        for number, output in enumerate(outputs):
            save(output.activations["residual_stream"][0], folder / f"{number}.npy")
    seconds = time.perf_counter() - started
    # vLLM's own end comes too late in a program with a temporary folder, which would never end.
    engine.llm_engine.engine_core.shutdown()
    return {"tokens": len(prompts) * tokens, "seconds": seconds, "bytes": size_of(folder)}


def size_of(folder: Path) -> int:
    """What a folder takes of the disk, bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def run(name: str, prompts: int, tokens: int) -> dict[str, Any]:
    """One contestant, in this process."""
    texts = Load(concurrency=32, requests=prompts).prompts("baselines")
    with tempfile.TemporaryDirectory(prefix="bench-") as base:
        folder = Path(base)
        if name == "transformers, one by one":
            return transformers(texts, tokens, folder, 1)
        if name == "transformers, batches of 32":
            return transformers(texts, tokens, folder, 32)
        if name == "vLLM, nothing kept":
            return offline(texts, tokens, folder)
        if name == "vllm-lens":
            last = {"output_residual_stream": [NUM_LAYERS - 1]}
            return offline(texts, tokens, folder, extra_args=last)
        if name == "activation-logging, server":
            return server(texts, tokens, folder)
        return ours(texts, tokens, folder)


def main() -> None:
    """Run every contestant in turn, several rounds, and print the table."""
    parser = argparse.ArgumentParser(description="Against what a user would pick instead.")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--single", type=int, default=16, help="prompts where it is one by one")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(KEPT), default=list(KEPT))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    add_flag(parser)
    args = parser.parse_args()
    if args.contestant:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        found = run(args.contestant, args.prompts, args.tokens)
        terminal.print(f"RESULT {json.dumps(found)}")
        return
    if importlib.util.find_spec("vllm_lens") is None and "vllm-lens" in args.only:
        terminal.print("vllm-lens cannot be imported, and is left out")
        args.only.remove("vllm-lens")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for turn in range(args.rounds):
        for name in args.only:
            prompts = args.single if name.endswith("one by one") else args.prompts
            found[name].append(in_own_process(name, prompts, args.tokens))
            last = found[name][-1]
            speed = last["tokens"] / last["seconds"]
            terminal.print(f"round {turn + 1}: {name}: {speed:.1f} tokens/s")
    record(args.docs, show(found, args.tokens))
    write_figures(args.output, {"runs": found})


def in_own_process(name: str, prompts: int, tokens: int) -> dict[str, Any]:
    """Run a contestant apart from the others, and read its last line."""
    flags = ["--contestant", name, "--prompts", str(prompts), "--tokens", str(tokens)]
    env = dict(os.environ)
    if name in PLUGIN:
        env["VLLM_PLUGINS"] = PLUGIN[name]
    ended = subprocess.run(
        [sys.executable, __file__, *flags], env=env, capture_output=True, text=True, check=False
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if ended.returncode or not lines:
        sys.exit(f"{name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def show(found: dict[str, list[dict[str, Any]]], tokens: int) -> Table:
    """Print medians, with the least and the greatest."""
    table = Table("", "answer tokens/s", "bytes per answer on disk", "what is kept")
    for name, runs in found.items():
        speeds = sorted(each["tokens"] / each["seconds"] for each in runs)
        per_answer = runs[0]["bytes"] / (runs[0]["tokens"] / tokens)
        table.add_row(
            name,
            f"{speeds[len(speeds) // 2]:.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})",
            f"{per_answer:.0f}",
            KEPT[name],
        )
    terminal.print(table)
    return table


if __name__ == "__main__":
    main()
