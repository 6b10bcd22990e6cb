"""``make demo``: the main job on the default model, from a server to labelled activations.

Starts a real server, asks the questions of two benchmarks, judges the answers, labels each beside
its activations, proves that the rows belong to their tokens, reports what the activations tell,
and leaves everything in ``output/demo/``. A second run finds the answers there and asks nothing
again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.panel import Panel
from rich.text import Text

from activation_logging.benchmarks import RunResult, run_benchmark
from activation_logging.benchmarks.table import print_result
from activation_logging.cli.progress import show_progress
from activation_logging.cli.rendering import print_report
from activation_logging.cli.terminal import errors, output
from activation_logging.console import sentence
from activation_logging.default_model import demo_model_path
from activation_logging.errors import ActivationLoggingError
from activation_logging.printable import lines, printable
from activation_logging.process import free_port, running
from activation_logging.report import build_report
from activation_logging.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FOLDER = Path("output/demo")
STORE = FOLDER / "activations.lmdb"
MODEL = "SmolLM2-135M-Instruct"
LAYERS = "5,10,15,20,25,last"
START_S = 600


class Part(NamedTuple):
    """One benchmark, small enough for a laptop; its labels are reported in ``report``."""

    benchmark: str
    limit: int
    label: str
    report: str


PARTS = (
    Part("short_facts", 800, "short_facts", "report"),
    Part("known_names", 560, "refusal", "report-known_names"),
)


def main() -> int:
    """Run the demo; the exit code is 0 when every part of it worked."""
    model = demo_model_path()
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        answered = FOLDER / "answered"
        if answered.exists() and STORE.exists():
            output.print("The answers are there already; judging them again.")
            results = [run(part, base_url=None) for part in PARTS]
        else:
            with serving(model) as base_url:
                results = [run(part, base_url=base_url) for part in PARTS]
            answered.touch()
        show(results)
        output.rule("verify")
        if code := subprocess.call([*_COMMAND, "verify", str(STORE), "--model", str(model)]):
            return code
        for part in PARTS:
            report(part)
        output.rule()
        output.print(f"List the answers:           .venv/bin/activation-logging ls {STORE}")
        output.print(f"Work on them in a browser:  .venv/bin/activation-logging view {STORE}")
    except ActivationLoggingError as error:
        errors.print(sentence("error:", error))
        return 1
    return 0


def run(part: Part, base_url: str | None) -> RunResult:
    """Ask, judge and label one benchmark; without a server, judge and label what is there."""
    output.rule(part.benchmark)
    return run_benchmark(
        part.benchmark,
        model=MODEL,
        base_url=base_url or "http://localhost:8000/v1",
        output_base_dir=FOLDER,
        store=STORE,
        limit=part.limit,
        do_inference=base_url is not None,
        display="rich" if sys.stdout.isatty() else "plain",
    )


def show(results: list[RunResult]) -> None:
    """Tables, one example of each kind of answer, and what lies where."""
    for result in results:
        output.rule()
        print_result(result, output)
        for label, example in result.examples().items():
            title = Text(f"{label}: {printable(example.question)}")
            answer = Text(lines(example.answer))
            output.print(Panel(answer, title=title, width=100), soft_wrap=False)
    with open_store(STORE) as store:
        first = next(entry for entry in store.entries() if entry.status == "complete")
        output.print(
            f"\n{len(store)} answers in {STORE}, each with its activations: "
            f"layers {', '.join(map(str, first.layers))} of {first.num_layers}, "
            f"{first.hidden_size} numbers a token, {first.dtype}."
        )


def report(part: Part) -> None:
    """Can the activations tell what was made up? The table, and a page to look at."""
    output.rule(f"report: {part.benchmark}")
    with show_progress() as progress:
        result = build_report(STORE, FOLDER / part.report, label=part.label, progress=progress)
    print_report(result)


@contextmanager
def serving(
    model: Path,
    *,
    name: str = MODEL,
    store: Path = STORE,
    layers: str = LAYERS,
    probes: Mapping[str, Path] | None = None,
) -> Iterator[str]:
    """A server that logs a model, for as long as the block runs; its address.

    Args:
        model: the model's folder.
        name: what requests call it.
        store: where it logs; its log is put beside it.
        layers: which layers, as in ``ACTIVATION_LAYERS``.
        probes: saved probes to serve, by name.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = store.with_name("server.log")
    command = [
        *(sys.executable, "-m", "activation_logging.vllm_serve", "--model", str(model)),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
        *("--lmdb_path", str(store), "--activation-layers", layers, "--max-model-len", "2048"),
    ]
    for probe, path in (probes or {}).items():
        command += ["--activation-probe", f"{probe}={path}"]
    server = running(command, url=url, log=log, env=os.environ, start_s=START_S, kv_cache_gib=2)
    with ExitStack() as stack:
        with output.status(f"Starting vLLM (about a minute; its log is {log})"):
            stack.enter_context(server)
        yield f"{url}/v1"


_COMMAND = (sys.executable, "-c", "from activation_logging.cli import app; app()")

if __name__ == "__main__":
    sys.exit(main())
