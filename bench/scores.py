"""What scores cost while a model answers.

    python -m bench.scores serving [--rounds 4] [--concurrency 8,32] [--output FILE] [--docs NAME]
    python -m bench.scores prefix  [...]     # the same with a common beginning of 1,000 tokens
    python -m bench.scores step    [--docs NAME]
    python -m bench.scores lag     [--docs NAME]

``serving`` compares servers that log: without probes, with one, with eight, and with eight that
every request asks for. ``prefix`` does so where all prompts begin alike: a score that had to be
computed again would show. ``step`` times what the operator does for probes, beside the step of the
model that it is a part of. ``lag`` reads a stream: with which chunk the score of each token comes.
The probes are random: what they say does not change what they cost.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.table import Table

from activation_logging.bench.compare import Plan, compare
from activation_logging.bench.load import Load
from activation_logging.bench.ratios import RATIOS
from activation_logging.bench.servers import SERVED_NAME, Contestant, Server, ServerOptions
from activation_logging.bench.table import round_line
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from activation_logging.detectors.saved_probe import SavedProbe
from bench.docs import add_flag, record, spread_text, write_figures

LAYER = 20
"""What the probes read, a layer in the middle: it is captured for them alone."""
STEPS = (("decode, 1", 1), ("decode, 8", 8), ("decode, 64", 64), ("prefill, 2,048", 2048))
"""Rows of a step."""
terminal = PlainConsole(width=130)


def write_probes(folder: Path, count: int) -> str:
    """So many linear probes of tokens for the default model, as in ``ACTIVATION_PROBES``."""
    config = json.loads((demo_model_path() / "config.json").read_text(encoding="utf-8"))
    chance = np.random.default_rng(0)
    names = []
    for number in range(count):
        probe = SavedProbe(
            kind="token",
            form="linear",
            tensors={"weight": chance.normal(size=config["hidden_size"]), "bias": np.zeros(1)},
            sources=(LAYER,),
            position=None,
            threshold=0.5,
            model=SERVED_NAME,
            num_layers=config["num_hidden_layers"],
            label="none",
            positive="hallucinated",
            negative="correct",
        )
        path = folder / f"{count}-{number}"
        probe.save(path)
        names.append(f"p{number}={path}")
    return ",".join(names)


# --- servers ---------------------------------------------------------------------------


def serving(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Throughput, processor time and times of tokens, against logging without probes."""
    with tempfile.TemporaryDirectory(prefix="scores-") as folder:
        one, eight = (write_probes(Path(folder), count) for count in (1, 8))
        candidates = (
            Contestant("logging", probes=one),
            Contestant("logging", probes=eight),
            Contestant("logging", probes=eight, asks=True),
        )
        plan = Plan(
            options=ServerOptions(str(demo_model_path())),
            baseline="logging",
            candidates=candidates,
            concurrencies=tuple(map(int, args.concurrency.split(","))),
            rounds=args.rounds,
            restarts=1,
            shared_prefix=1000 if args.part == "prefix" else 0,
            prompt_words=16 if args.part == "prefix" else 64,
            disturbance=args.disturbance,
        )
        results = compare(
            plan, Path(folder), on_round=lambda *turn: terminal.print(round_line(*turn))
        )
    columns = list(dict.fromkeys(each.load.concurrency for each in results.comparisons))
    table = Table("requests in flight", *map(str, columns))
    for name in RATIOS:
        for candidate in candidates:
            found = [c for c in results.comparisons if c.candidate == candidate.name]
            cells = [spread_text(each.ratio(name)._asdict()) for each in found]
            table.add_row(
                f"{name.replace('_', ' ')}, {candidate.name.removeprefix('logging ')}", *cells
            )
    return results.to_json(), table


# --- the operator ----------------------------------------------------------------------


def step(_args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Seconds that the operator takes of a step, with and without probes, on one core."""
    import torch

    from activation_logging.detectors.served_probes import ServedProbes
    from activation_logging.probe_list import parse_probes
    from activation_logging.sites import RowShape
    from activation_logging.vllm_plugin.arena import RowArena
    from activation_logging.vllm_plugin.scorer import Scorer

    torch.set_num_threads(1)
    config = json.loads((demo_model_path() / "config.json").read_text(encoding="utf-8"))
    width = config["hidden_size"]
    shapes = {LAYER: RowShape((width,), "bfloat16")}
    table = Table("rows of a step", "without", "one probe", "eight", "more with eight, ms")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="scores-") as folder:
        arenas = {}
        for count in (0, 1, 8):
            scored = shapes if count else {}
            arenas[count] = RowArena(
                shapes, num_slots=8192, device=torch.device("cpu"), scored=scored
            )
            if count:
                served = ServedProbes.load(parse_probes(write_probes(Path(folder), count)))
                Scorer(served, shapes, arenas[count])
        for name, rows in STEPS:
            states = torch.randn((rows, width)).bfloat16()
            slots = torch.randperm(8192)[:rows]
            times = {count: _time(arena, slots, states) for count, arena in arenas.items()}
            found[name] = times
            cells = [f"{1e6 * times[count]:.0f} µs" for count in arenas]
            table.add_row(name, *cells, f"{1e3 * (times[8] - times[0]):.3f}")
    return {"seconds": found}, table


def _time(arena: Any, slots: Any, states: Any) -> float:
    """The median of a hundred calls, seconds."""
    times = []
    for _ in range(100):
        start = time.perf_counter()
        arena.write(LAYER, slots, states, None)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


# --- the client ------------------------------------------------------------------------


def lag(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """How many chunks after its token the score of each token comes, of answers side by side."""
    with tempfile.TemporaryDirectory(prefix="scores-") as base:
        folder = Path(base)
        kind = Contestant("logging", probes=write_probes(folder, 8))
        with Server(kind, ServerOptions(str(demo_model_path()), eager=True), folder) as server:
            prompts = Load(1, args.answers).prompts("lag")
            late = [_late(server.base_url, prompt) for prompt in prompts]
    flat = [each for answer in late for each in answer]
    counts = {str(k): flat.count(k) for k in sorted(set(flat))}
    table = Table("chunks after the token's own", "tokens")
    for chunks, tokens in counts.items():
        table.add_row(chunks, str(tokens))
    return {"chunks_late": counts}, table


def _late(url: str, prompt: str) -> list[int]:
    """For each token that has a score: with how many chunks' delay it came."""
    body = {
        "model": SERVED_NAME,
        "prompt": prompt,
        "max_tokens": 64,
        "ignore_eos": True,
        "stream": True,
        "vllm_xargs": {"activation_scores": "all"},
    }
    came: list[int] = []
    chunk = 0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                scores = choice.get("activation_scores", {}).get("p0", {}).get("tokens", [])
                came += [chunk] * len([score for score in scores if score is not None])
            chunk += 1
    return [at - token for token, at in enumerate(came)]


PARTS = {"serving": serving, "prefix": serving, "step": step, "lag": lag}


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description="What scores cost while a model answers.")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        part.add_argument("--output", type=Path, help="a file for all figures, as JSON")
        part.add_argument("--concurrency", default="8,32")
        part.add_argument("--rounds", type=int, default=4)
        part.add_argument("--answers", type=int, default=8)
        part.add_argument("--disturbance", type=float, help="cores that others may use")
        add_flag(part)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    found, table = PARTS[args.part](args)
    terminal.print(table)
    write_figures(args.output, found)
    record(args.docs, table)


if __name__ == "__main__":
    main()
