"""On a GPU: is the plugin right there, and what does it cost? Needs CUDA and no network.

    python bench/gpu.py fidelity [--model FOLDER] [--output FILE]
    python bench/gpu.py speed [--model FOLDER] [--concurrency 64,256] [--output FILE]

On a machine without the default model, ``--like FOLDER`` names one that has its configuration and
its tokenizer; the weights are random then.

``fidelity`` runs vLLM's offline engine in every mode (dtype, model runner, CUDA graphs,
asynchronous scheduling, chunked prefill, preemption; prefix-cache hits in each) and compares the
rows with transformers on the same device, and the greedy tokens with the output head. In bfloat16
two programs differ by more than a rounding: beside each figure stands how far transformers itself
is there from its own float32.

``speed`` makes a folder with the shape of Llama-3.1-8B and dummy weights, serves it plain and
logging in turns, and prints the ratios for each thing logged. With ``--model`` another model's real
weights are used.

With ``--device cpu`` both can be tried without a GPU: V1 runner only, and no figure says anything
about one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from activation_logging import Entry, Store, open_store
from activation_logging.bench.compare import Plan, compare
from activation_logging.bench.load import Load
from activation_logging.bench.servers import Contestant, ServerOptions
from activation_logging.bench.table import round_line, show
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from activation_logging.verify import verify
from activation_logging.verify.lm_head import load_lm_head
from bench.docs import write_figures

terminal = PlainConsole(width=130)
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

# Published with the model: meta-llama/Llama-3.1-8B, config.json.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SMALL = {"num_hidden_layers": 8}
"""Of the random model: what differs from the configuration that it is made from."""
ALIKE = {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30}
"""Several engines share the device: none may ask how much of it is free."""


# --- fidelity --------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """One way to run the engine; ``options`` are vLLM's."""

    name: str
    dtype: str
    runner: int
    options: dict[str, Any] = field(default_factory=dict)


def modes(device: str) -> list[Mode]:
    """Every combination that the device can run."""
    ways: dict[str, dict[str, Any]] = {
        "as by default": {},
        "no graphs": {"enforce_eager": True},
        "no async scheduling": {"async_scheduling": False},
        "chunked prefill": {"max_num_batched_tokens": 64, "max_num_seqs": 16},
        "preemption": {"num_gpu_blocks_override": 80, "block_size": 16, "max_model_len": 1024},
    }
    return [
        Mode(f"{dtype}, V{runner} runner, {name}", dtype, runner, options)
        for dtype in ("float32", "bfloat16")
        for runner in ((1, 2) if device == "cuda" else (1,))
        for name, options in ways.items()
    ]


def run_engine(model: str, mode: Mode) -> None:
    """Answer a mix of prompts in this process, into the store that the environment names."""
    from vllm import LLM, SamplingParams

    options = {"max_model_len": 2048, **ALIKE, **mode.options}
    engine = LLM(model, dtype=mode.dtype, **options)
    # Short: a greedy answer that goes on for long repeats itself, and one word repeated is a text
    # on which float32 itself is off by 1e-4 (transformers against its own float64).
    greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    mixed = [Load(1, 1, prompt_words=3 + 17 * i).prompts(str(i))[0] for i in range(16)]
    engine.generate(mixed, greedy, use_tqdm=False)
    shared = Load(1, 8, prompt_words=4, shared_prefix=300).prompts("shared")
    engine.generate(shared[:1], greedy, use_tqdm=False)
    engine.generate(shared[1:], greedy, use_tqdm=False)


class Reference:
    """``hidden_states`` by transformers, a whole sequence at a time, on the same device."""

    def __init__(self, model: str, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch, self._device = torch, device
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model: Any = loaded.eval().to(device)

    def states(self, entry: Entry) -> dict[int, np.ndarray]:
        """By logged layer, float64 ``[rows, hidden_size]``."""
        ids = self._torch.tensor([[*entry.prompt_token_ids, *entry.response_token_ids]])
        with self._torch.inference_mode():
            found = self._model(ids.to(self._device), output_hidden_states=True).hidden_states
        return {
            layer: found[layer][0].double().cpu().numpy()[entry.positions] for layer in entry.layers
        }


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest ``|row - wanted| / |wanted|`` over all rows."""
    distance = np.linalg.norm(found.astype(np.float64) - wanted, axis=1)
    return float((distance / np.linalg.norm(wanted, axis=1)).max())


def judge(store: Store, model: str, same: Reference, exact: Reference) -> dict[str, Any]:
    """The worst relative error of a mode's rows, and the share of greedy tokens that follow.

    ``worst`` is the distance to transformers in the same type, ``ours`` and ``theirs`` are those of
    both to transformers in float32.
    """
    report = verify(store, load_lm_head(model))
    worst, ours, theirs = [], [], []
    for entry in store.entries():
        near, true = same.states(entry), exact.states(entry)
        for layer in entry.layers:
            rows = entry.layer(layer)
            worst.append(apart(rows, near[layer]))
            ours.append(apart(rows, true[layer]))
            theirs.append(apart(near[layer], true[layer]))
    return {
        "entries": report.entries,
        "rows": report.rows,
        "worst": max(worst),
        "ours": max(ours),
        "theirs": max(theirs),
        "aligned": report.share("greedy"),
        "problems": [problem.what for problem in report.problems],
    }


def run_mode(args: argparse.Namespace, model: str, mode: Mode, path: Path) -> str | None:
    """Answer in an engine of its own, into the store ``path``; returns what went wrong, if so."""
    environment = {
        "ACTIVATION_LMDB_PATH": str(path),
        "ACTIVATION_LAYERS": args.layers,
        RUNNER: str(mode.runner - 1),
        # Engines that start together must not write the same files.
        "VLLM_CACHE_ROOT": str(path.with_suffix(".cache")),
    }
    command = [sys.executable, __file__, "engine", "--model", model]
    ended = subprocess.run(
        [*command, "--mode", json.dumps(asdict(mode))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return (ended.stdout + ended.stderr)[-6000:] if ended.returncode else None


def fidelity(args: argparse.Namespace) -> dict[str, Any]:
    """Every mode in an engine of its own; returns and prints what came out."""
    found: dict[str, dict[str, Any]] = {}
    headings = ("mode", "entries", "rows", "apart", "from float32", "theirs", "greedy follow")
    table = Table(*headings)
    references: dict[str, Reference] = {}
    wanted = [mode for mode in modes(args.device) if not args.only or args.only in mode.name]
    with tempfile.TemporaryDirectory(prefix="gpu-") as base, ThreadPoolExecutor(args.jobs) as pool:
        model = args.model or small_model(args.like, Path(base) / "model")
        paths = {mode.name: Path(base) / f"{place}.lmdb" for place, mode in enumerate(wanted)}
        runs = [pool.submit(run_mode, args, model, mode, paths[mode.name]) for mode in wanted]
        for mode, run in zip(wanted, runs, strict=True):
            if failed := run.result():
                found[mode.name] = {"failed": failed}
                table.add_row(mode.name, "failed")
                terminal.print(f"{mode.name} failed:\n{failed}")
                continue
            for dtype in (mode.dtype, "float32"):
                if dtype not in references:
                    references[dtype] = Reference(model, dtype, args.device)
            with open_store(paths[mode.name]) as store:
                row = judge(store, model, references[mode.dtype], references["float32"])
            found[mode.name] = row
            share = "-" if row["aligned"] is None else f"{row['aligned']:.2%}"
            errors = [f"{row[name]:.1e}" for name in ("worst", "ours", "theirs")]
            table.add_row(mode.name, str(row["entries"]), str(row["rows"]), *errors, share)
            terminal.print(f"{mode.name}: {' '.join(errors)}, {share}, {row['problems'][:3]}")
    terminal.print(table)
    return {"modes": found}


def small_model(like: Path | None, folder: Path) -> str:
    """The default model; or one of random weights, in the shape that a folder tells."""
    if like is None:
        return str(demo_model_path())
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(like, **SMALL)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    copy_tokenizer(like, folder)
    return str(folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """What a model folder needs beside its configuration and weights."""
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)


# --- speed -----------------------------------------------------------------------------


def shape_folder(folder: Path, like: Path | None) -> str:
    """A model folder in the shape of Llama-3.1-8B, with the default model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B, indent=1) + "\n", encoding="utf-8")
    copy_tokenizer(like or demo_model_path(), folder)
    return str(folder)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Plain against logging; all servers run, and take turns."""
    os.environ[RUNNER] = str(args.runner - 1)
    with tempfile.TemporaryDirectory(prefix="gpu-") as base:
        dummy = () if args.model else ("--load-format", "dummy")
        model = args.model or shape_folder(Path(base) / "llama-8b", args.like)
        # vLLM measures what a device has left, and other servers that start meanwhile disturb it.
        cache = ("--kv-cache-memory-bytes", str(args.kv_cache_gb * 10**9))
        plan = Plan(
            options=ServerOptions(model, (*dummy, *cache, "--max-model-len", "4096")),
            candidates=tuple(
                Contestant("logging", *what.split("/")) for what in args.logged.split()
            ),
            concurrencies=tuple(map(int, args.concurrency.split(","))),
            rounds=args.rounds,
            restarts=1,
            answer_tokens=args.tokens,
            prompt_words=args.prompt_words,
            requests=args.requests,
            together=True,
        )
        terminal.rule(f"V{args.runner} runner: {args.logged}")
        folder = Path(base) / "servers"
        try:
            results = compare(
                plan, folder, on_round=lambda *turn: terminal.print(round_line(*turn))
            )
        finally:
            if args.logs:
                shutil.copytree(folder, args.logs, ignore=shutil.ignore_patterns("*.lmdb"))
        show(results, terminal)
        memory = {log.stem: kv_cache(log) for log in folder.rglob("*.log")}
        terminal.print(f"tokens that the KV cache holds: {memory}")
        return {**results.to_json(), "runner": args.runner, "kv_cache_tokens": memory}


def kv_cache(log: Path) -> int | None:
    """Tokens that a server's KV cache holds, as its log says: the device memory left over."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        _, found, rest = line.partition("KV cache size: ")
        if found:
            return int(rest.split()[0].replace(",", ""))
    return None


# --- the command -----------------------------------------------------------------------


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description="Fidelity and speed of the plugin on a GPU.")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("fidelity", "speed", "engine"):
        part = parts.add_parser(name)
        part.add_argument("--model", help="a model folder; else the default model, or 8B's shape")
        if name == "engine":  # a child of fidelity
            part.add_argument("--mode", type=json.loads)
            continue
        part.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        if name == "fidelity":
            part.add_argument("--only", help="only modes that have this in their name")
        part.add_argument("--output", type=Path)
        part.add_argument("--like", type=Path, help="a folder with configuration and tokenizer")
        if name == "fidelity":
            part.add_argument("--layers", default="1,15,last")
            part.add_argument("--jobs", type=int, default=1, help="engines at a time")
            continue
        part.add_argument("--runner", type=int, choices=(1, 2), default=1, help="vLLM's V1 or V2")
        part.add_argument("--kv-cache-gb", type=int, default=18, help="of each server's KV cache")
        part.add_argument(
            "--logged",
            default="last/all 6,13,19,26,last/response",
            help="what each server logs, LAYERS/TOKENS",
        )
        part.add_argument("--requests", type=int, help="of each turn")
        part.add_argument("--logs", type=Path, help="a folder to copy the servers' logs to")
        part.add_argument("--concurrency", default="64,256")
        part.add_argument("--rounds", type=int, default=3)
        part.add_argument("--tokens", type=int, default=128, help="tokens per answer")
        part.add_argument("--prompt-words", type=int, default=256)
    args = parser.parse_args()
    if args.part == "engine":
        run_engine(args.model, Mode(**args.mode))
        return
    found = fidelity(args) if args.part == "fidelity" else speed(args)
    write_figures(args.output, found)


if __name__ == "__main__":
    main()
