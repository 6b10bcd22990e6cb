"""Is the memory of every process flat? A logging server under ten thousand short requests.

    python -m bench.memory [--requests 10000] [--variant logging|plain] [--probes 8] [--output FILE]

After every thousand requests the resident size of each of the server's processes is noted, its
own memory (anonymous) and what it has mapped of files (the store, libraries) apart. Growth
counts from the thousandth request to the last.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from activation_logging.bench.compare import ASKING
from activation_logging.bench.load import Client, Load
from activation_logging.bench.servers import SERVED_NAME, Contestant, Server, ServerOptions
from activation_logging.console import PlainConsole
from activation_logging.default_model import demo_model_path
from bench.docs import add_flag, record, write_figures
from bench.scores import write_probes

STEP = 1000
terminal = PlainConsole(width=120)


def resident(pid: int) -> dict[str, dict[str, float]]:
    """MiB of each process of a server, by its name: ``total``, ``anonymous`` and ``file``."""
    first = psutil.Process(pid)
    found = {}
    for number, process in enumerate([first, *first.children(recursive=True)]):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        sizes = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
        anonymous = int(sizes["RssAnon"].split()[0]) / 1024
        mapped = sum(int(sizes[name].split()[0]) for name in ("RssFile", "RssShmem")) / 1024
        name = " ".join(process.cmdline())[:400]
        title = next(
            (part for part in ("EngineCore", "Worker", "resource_tracker") if part in name),
            "API server" if number == 0 else name[:40],
        )
        found[f"{title} {number}"] = {
            "total": anonymous + mapped,
            "anonymous": anonymous,
            "file": mapped,
        }
    return found


def main() -> None:
    """Load the server, note the sizes, print the growth."""
    parser = argparse.ArgumentParser(description="Resident size of a server under many requests.")
    parser.add_argument("--requests", type=int, default=10 * STEP)
    parser.add_argument("--variant", choices=("logging", "plain", "off"), default="logging")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4, help="tokens per answer")
    parser.add_argument("--model", default=None)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument(
        "--probes", type=int, default=0, help="so many probes, asked by each request"
    )
    parser.add_argument("--output", type=Path)
    add_flag(parser)
    args = parser.parse_args()
    options = ServerOptions(args.model or str(demo_model_path()), eager=args.eager)
    samples: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Server(
            Contestant(args.variant, probes=write_probes(Path(folder), args.probes)),
            options,
            Path(folder),
        ) as server,
        Client() as client,
    ):
        load = Load(args.concurrency, STEP, prompt_words=16, answer_tokens=args.tokens)
        for done in range(STEP, args.requests + 1, STEP):
            timing = client.send(
                load,
                load.prompts(str(done)),
                base_url=server.base_url,
                body={**load.body(SERVED_NAME), **(ASKING if args.probes else {})},
            )
            server.flush()
            samples.append({"requests": done, "mib": resident(server.pid)})
            total = sum(sizes["total"] for sizes in samples[-1]["mib"].values())
            terminal.print(f"{done:>6} requests, {STEP / timing.seconds:.0f}/s, {total:.0f} MiB")
        counters = server.counters()
    growth = show(samples, args.docs)
    write_figures(args.output, {"samples": samples, "growth": growth, "counters": counters})


def show(samples: list[dict[str, Any]], docs: str | None) -> dict[str, float]:
    """Print first and last sizes of every process; returns the growth of each, as a share."""
    first, last = samples[0], samples[-1]
    table = Table("process", f"MiB after {first['requests']}", f"after {last['requests']}")
    for name in ("growth", "of it anonymous", "of it files"):
        table.add_column(name, justify="right")
    growth = {}
    for name, sizes in last["mib"].items():
        before = first["mib"].get(name)
        if before is None:
            continue
        growth[name] = sizes["total"] / before["total"] - 1
        table.add_row(
            name,
            f"{before['total']:.0f}",
            f"{sizes['total']:.0f}",
            f"{growth[name]:+.1%}",
            f"{sizes['anonymous'] - before['anonymous']:+.1f} MiB",
            f"{sizes['file'] - before['file']:+.1f} MiB",
        )
    terminal.print(table)
    record(docs, table)
    return growth


if __name__ == "__main__":
    main()
