r"""What a user would pick instead, on the same model and prompts: tokens per second, and bytes.

    python -m bench.baselines [--layers last|all] [--prompts 256] [--tokens 64] [--only NAME ...]

Each contestant runs in a process of its own and is timed from the first prompt to the last
answer on disk, without the loading of the model. Hugging Face's ``generate`` gives out the
hidden states of every layer and step, the others those that they are asked for. The rows of each
answer, of the last layer or of all, are saved with ``numpy.save``, which is the least that a user
would do with them.

Other packages (:mod:`.peers`) take part where they can be imported. They ask for another Python or
vLLM than this project's environment has, and run beside ours all the same, from a folder of their
own that ``PYTHONPATH`` names::

    pip install --no-deps --ignore-requires-python --target DIR vllm-lens \
        cloudpickle interp-engine einops nnsight greenlet websocket-client
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from activation_logging.bench.load import Client, Load
from activation_logging.bench.servers import SERVED_NAME, Contestant, Server, ServerOptions
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from bench import peers
from bench.answers import NUM_LAYERS
from bench.docs import add_flag, record, write_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Layers = Literal["last", "all"]
    Work = Callable[[list[str], int, Layers, Path], peers.Timing]

terminal = PlainConsole(width=130)

IN_FLIGHT = 64
"""Requests at once, where a server is asked."""
HOOKS = tuple(range(1, NUM_LAYERS + 1))
"""Layers whose output hooks see: no embeddings, and the last layer's before the final norm."""


def generate(prompts: list[str], tokens: int, layers: Layers, folder: Path) -> peers.Timing:
    """The offline engine with the plugin, as ``activation-logging generate`` runs it."""
    from activation_logging.generate import generate as run_generate

    os.environ["ACTIVATION_LMDB_PATH"] = str(folder / "activations.lmdb")
    os.environ["ACTIVATION_LAYERS"] = layers
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    sampling = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    outcome = run_generate(path, model=str(demo_model_path()), sampling=sampling)
    assert not outcome.missing
    assert not outcome.refused
    path.unlink()
    return peers.Timing(outcome.tokens, outcome.seconds)


def serve(prompts: list[str], tokens: int, layers: Layers, folder: Path) -> peers.Timing:
    """The server, asked by a client in a process of its own."""
    options = ServerOptions(str(demo_model_path()))
    load = Load(IN_FLIGHT, len(prompts), answer_tokens=tokens)
    contestant = Contestant("logging", f"resid@{layers}")
    with Server(contestant, options, folder) as running, Client() as client:
        for texts in (load.prompts("warm-up"), prompts):
            started = time.perf_counter()
            timing = client.send(
                load, texts, base_url=running.base_url, body=load.body(SERVED_NAME)
            )
            running.flush()
            seconds = time.perf_counter() - started
        return peers.Timing(timing.tokens, seconds)


def bare(prompts: list[str], tokens: int, _layers: Layers, _folder: Path) -> peers.Timing:
    """VLLM's offline engine without a plugin."""
    from vllm import LLM, SamplingParams

    engine = LLM(str(demo_model_path()))
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    engine.generate(prompts[: peers.ALREADY], params, use_tqdm=False)
    started = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    # vLLM's own end comes too late in a program with a temporary folder, which would never end.
    engine.llm_engine.engine_core.shutdown()
    return peers.Timing(len(prompts) * tokens, seconds)


def of_peer(
    run: Callable[..., peers.Timing],
    every: Sequence[int] = HOOKS,
    **options: Any,
) -> Work:
    """The work of another package, which wants numbers of layers."""

    def work(prompts: list[str], tokens: int, layers: Layers, folder: Path) -> peers.Timing:
        wanted = every if layers == "all" else every[-1:]
        return run(prompts, tokens, wanted, folder, **options)

    return work


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        work: answers the prompts and keeps the states.
        kept: what is kept besides every token's states.
        needs: the package that it is about, where that is not a part of our environment.
        plugin: the one plugin that vLLM is to load; None where no vLLM runs, or as it is installed.
        series: how often the prompts' number of answers lies in the folder at the end.
    """

    work: Work
    kept: str
    needs: str = ""
    plugin: str | None = None
    series: int = 1


HUGGING_FACE = tuple(range(NUM_LAYERS + 1))
CONTENDERS = {
    "transformers, one by one": Contender(
        of_peer(peers.transformers, HUGGING_FACE, batch=1), "states"
    ),
    "transformers, batches of 32": Contender(
        of_peer(peers.transformers, HUGGING_FACE, batch=peers.BATCH), "states"
    ),
    "nnsight, batches of 32": Contender(of_peer(peers.nnsight), "states", "nnsight"),
    "vllm-lens": Contender(of_peer(peers.vllm_lens), "states", "vllm_lens", "activations"),
    "interp-engine": Contender(of_peer(peers.interp_engine), "states", "interp_engine", ""),
    "vLLM, nothing kept": Contender(bare, "text alone", plugin=""),
    "activation-logging, generate": Contender(
        generate, "states; prompt, answer, ids, tags", plugin="activation_logging"
    ),
    # The warm-up's answers lie in the store as well.
    "activation-logging, server": Contender(serve, "the same", series=2),
}


def size_of(folder: Path) -> int:
    """What a folder takes of the disk, bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def run(name: str, prompts: int, tokens: int, layers: Layers) -> dict[str, Any]:
    """One contender, in this process."""
    texts = Load(concurrency=32, requests=prompts).prompts("baselines")
    contender = CONTENDERS[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as base:
        timing = contender.work(texts, tokens, layers, Path(base))
        taken = size_of(Path(base)) / contender.series / prompts
    return {**timing._asdict(), "bytes per answer": taken}


def main() -> None:
    """Run every contender in turn, several rounds, and print the table."""
    parser = argparse.ArgumentParser(description="Against what a user would pick instead.")
    parser.add_argument("--layers", choices=("last", "all"), default="last")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--single", type=int, default=16, help="prompts where it is one by one")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    add_flag(parser)
    args = parser.parse_args()
    if args.contender:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        found = run(args.contender, args.prompts, args.tokens, args.layers)
        terminal.print(f"RESULT {json.dumps(found)}", soft_wrap=True)
        return
    names = [name for name in args.only if is_there(CONTENDERS[name].needs)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(args.rounds):
        for name in names:
            prompts = args.single if name.endswith("one by one") else args.prompts
            runs[name].append(in_own_process(name, prompts, args.tokens, args.layers))
            last = runs[name][-1]
            speed = last["tokens"] / last["seconds"]
            terminal.print(f"round {turn + 1}: {name}: {speed:.1f} tokens/s")
    record(args.docs, show(runs))
    write_figures(args.output, {"layers": args.layers, "runs": runs})


def is_there(package: str) -> bool:
    """Whether a package can be imported; says so where it cannot."""
    if package and importlib.util.find_spec(package) is None:
        terminal.print(f"{package} cannot be imported, and is left out")
        return False
    return True


def in_own_process(name: str, prompts: int, tokens: int, layers: Layers) -> dict[str, Any]:
    """Run a contender apart from the others, and read its last line."""
    flags = ["--contender", name, "--prompts", str(prompts), "--tokens", str(tokens)]
    env, plugin = dict(os.environ), CONTENDERS[name].plugin
    if plugin is not None:
        env["VLLM_PLUGINS"] = plugin
    ended = subprocess.run(
        [sys.executable, "-m", "bench.baselines", *flags, "--layers", layers],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if ended.returncode or not lines:
        sys.exit(f"{name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def show(runs: dict[str, list[dict[str, Any]]]) -> Table:
    """Print medians, with the least and the greatest."""
    table = Table("", "answer tokens/s", "bytes per answer on disk", "what is kept")
    for name, each in runs.items():
        speeds = sorted(one["tokens"] / one["seconds"] for one in each)
        table.add_row(
            name,
            f"{speeds[len(speeds) // 2]:.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})",
            f"{each[0]['bytes per answer']:.0f}",
            CONTENDERS[name].kept,
        )
    terminal.print(table)
    return table


if __name__ == "__main__":
    main()
