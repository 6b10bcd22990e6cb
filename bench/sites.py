"""What each kind of site costs: processor time and tokens per second of vLLM's offline engine.

    python -m bench.sites [--rounds 5] [--docs speed-sites]

For each choice of sites a process of its own loads the default model, compiled unless ``--eager``
is given, and answers a batch to warm up. Then come as many as ``--rounds`` says: 32 prompts at
once, of 64 words, 48 tokens each. A figure is the median of the rounds with the least and the
greatest. Processor time is that of the whole process, the store's writer included. It is steadier
than the clock where other work goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from activation_logging.bench.load import Load
from activation_logging.bench.ratios import Spread
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from bench.docs import add_flag, record

CHOICES = {
    "plain": None,
    "last": "resid@last",
    "resid, all 31": "resid@all",
    "attn_out, all 30": "attn_out@all",
    "heads, all 30": "heads@all",
    "mlp_out, all 30": "mlp_out@all",
    "all 122 sites": "resid@all,resid_prenorm,attn_out@all,heads@all,mlp_out@all",
}
"""What is logged; None: vLLM without the plugin."""
TOKENS = 48
AT_ONCE = 32
_PROGRAM = textwrap.dedent(
    """
    import json, sys, time
    from vllm import LLM, SamplingParams

    def main():
        model, eager, tokens, batches = json.load(sys.stdin)
        options = dict(max_model_len=1024, max_num_seqs=64, seed=0, enable_prefix_caching=False)
        llm = LLM(model, enforce_eager=eager, **options)
        usual = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        found = []
        for prompts in batches:
            clock, processor = time.perf_counter(), time.process_time()
            llm.generate(prompts, usual, use_tqdm=False)
            found.append((time.perf_counter() - clock, time.process_time() - processor))
        print("FOUND", json.dumps(found[1:]))

    if __name__ == "__main__":
        main()
    """
)
terminal = PlainConsole(width=120)


def measure(sites: str | None, rounds: int, *, eager: bool) -> list[tuple[float, float]]:
    """Seconds by the clock and of the processor, of each round after the first."""
    batches = [
        Load(AT_ONCE, AT_ONCE, prompt_words=64).prompts(str(number)) for number in range(rounds + 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(_PROGRAM)
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
        if sites is None:
            env["VLLM_PLUGINS"] = ""
        else:
            env |= {"ACTIVATION_SITES": sites, "ACTIVATION_LMDB_PATH": f"{folder}/s.lmdb"}
        given = json.dumps([str(demo_model_path()), eager, TOKENS, batches])
        command = [sys.executable, str(program)]
        done = subprocess.run(
            command, env=env, input=given, capture_output=True, text=True, check=False
        )
    line = next((at for at in done.stdout.splitlines() if at.startswith("FOUND")), None)
    if line is None:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    found: list[tuple[float, float]] = json.loads(line.removeprefix("FOUND"))
    return found


def _spread(values: list[float], digits: int) -> str:
    found = Spread.of(values)
    return f"{found.median:.{digits}f} ({found.least:.{digits}f} to {found.greatest:.{digits}f})"


def main() -> None:
    """Measure every choice, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    add_flag(parser)
    options = parser.parse_args()
    table = Table("", "answer tokens/s", "of plain", "processor, ms per answer token", "of plain")
    plain: list[Any] = []
    for name, sites in CHOICES.items():
        found = measure(sites, options.rounds, eager=options.eager)
        speeds = [AT_ONCE * TOKENS / clock for clock, _ in found]
        costs = [1000 * processor / (AT_ONCE * TOKENS) for _, processor in found]
        plain = plain or [median(speeds), median(costs)]
        ratios = f"{median(speeds) / plain[0]:.2f}", f"{median(costs) / plain[1]:.2f}"
        table.add_row(name, _spread(speeds, 0), ratios[0], _spread(costs, 2), ratios[1])
        terminal.print(
            f"{name}: {ratios[0]} of plain's tokens/s, {ratios[1]} of its processor time"
        )
    terminal.print(table)
    record(options.docs, table)


if __name__ == "__main__":
    main()
