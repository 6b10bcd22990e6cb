"""Whether a replay gives the logged rows, for many architectures: every layer, in float32.

    python -m bench.replays [NAME ...] [--folder output/models] [--docs replay-architectures]

For each of :mod:`.architectures` a small random model is made and served offline by vLLM, with all
its layers logged, as :mod:`.models` does. Then ``activation-logging replay`` runs transformers over
the stored tokens, with its usual tolerance. Of a model that lacks what a kind reads, the kinds that
are left are computed, and the table says which are not. Each model has a process of its own, one at
a time. What was found lies in ``FOLDER/replays/*.json``, and the table has all that lies there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.console import PlainConsole
from bench.architectures import ARCHITECTURES
from bench.docs import add_flag, record_rows
from bench.models import in_a_fork, prepare, serve_one

if TYPE_CHECKING:
    from activation_logging.replay import ReplayReport

NAMES = [name for name, each in ARCHITECTURES.items() if not each.needs_vision]
WHICH = (
    ("lookback", "lapeigvals", "icr", "logit_lens"),
    ("lookback", "lapeigvals", "icr"),
    ("logit_lens",),
)
"""What is asked for in turn, until the model has all of it."""
HEADER = ["", "family", "answers", "sites", "rows", "median", "worst", "not kept"]
terminal = PlainConsole(width=150)


def replay_one(name: str, folder: Path, store: Path) -> dict[str, Any]:
    """Replay what an architecture's model has answered."""
    from activation_logging import open_store
    from activation_logging.errors import ReplayError
    from activation_logging.replay import ReplayOptions, plan_replay, run_replay

    lacking: list[str] = []
    with open_store(store, writable=True) as opened:
        for kinds in WHICH:
            plan = plan_replay(opened, folder / "made" / name, ReplayOptions(kinds=kinds))
            try:
                report = run_replay(opened, plan)
            except ReplayError as error:
                lacking.append(str(error).replace(f"{folder / 'made'}/", ""))
                continue
            return told(report) | {"lacking": lacking}
    raise ReplayError("; ".join(lacking))


def told(report: ReplayReport) -> dict[str, Any]:
    """What a replay came to, over all layers and the state before the final norm."""
    sites = report.proofs.table().values()
    return {
        "answers": report.proofs.answers,
        "sites": len(sites),
        "rows": sum(site.rows for site in sites),
        "median": float(np.median([site.median for site in sites])) if sites else None,
        "worst": max((site.worst for site in sites), default=None),
        "kept": dict(report.kept),
        "refused": [refusal.why for refusal in report.refused],
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """Serve and replay one architecture, each in a process of its own."""
    results = folder / "replays"
    results.mkdir(parents=True, exist_ok=True)
    log, store = results / f"{name}.log", results / f"{name}.lmdb"
    log.unlink(missing_ok=True)
    found: dict[str, Any] = {"name": name, "family": ARCHITECTURES[name].family}
    for step in (serve_one, replay_one):
        found |= in_a_fork(step, name, folder, store, log)
        if "error" in found:
            break
    shutil.rmtree(store, ignore_errors=True)
    (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    terminal.print(" | ".join(row(found)))
    return found


def row(found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    first = [f"`{found['name']}`", found["family"]]
    if "error" in found:
        differs = re.search(r"a row differs by \S+?(?=,)", found["error"])
        why = f"refused: {differs[0]}" if differs else found["error"].split("Error: ", 1)[-1][:200]
        return [*first, *[""] * 5, why]
    kinds = [kind for kind in WHICH[0] if kind not in found["kept"]]
    why = found["refused"][:1] or ([", ".join(kinds)] if kinds else [])
    figures = [f"{found[key]:.0e}" if found[key] is not None else "" for key in ("median", "worst")]
    counts = [str(found[key]) for key in ("answers", "sites", "rows")]
    return [*first, *counts, *figures, "".join(why)]


def main() -> int:
    """Study architectures, and write the table; 1 if one was not replayed in full."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of architectures; all if none")
    parser.add_argument("--folder", type=Path, default=Path("output/models"))
    add_flag(parser)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"{', '.join(unknown)} is not one of {', '.join(NAMES)}")
    prepare()
    folder = options.folder.absolute()
    found = [run(name, folder) for name in options.names or NAMES]
    if options.docs:
        files = (folder / "replays" / f"{name}.json" for name in NAMES)
        all_found = [json.loads(file.read_text()) for file in files if file.exists()]
        record_rows(options.docs, HEADER, [row(each) for each in all_found])
    return int(any("error" in each or each["refused"] for each in found))


if __name__ == "__main__":
    sys.exit(main())
