"""Which architectures are logged rightly: every row of every site, against transformers.

    python -m bench.models [NAME ...] [--runner v1|v2|both] [--folder output/models] [--docs models]

For each of :mod:`.architectures` a small random model is made and served offline by vLLM, with all
the sites that it has. Then every row is compared with what hooks on transformers see for the same
token ids, in float32. A site counts as verified where its worst row is within ``TOLERANCE``. No
name of a module is given: of all that transformers computes in the layer, the tensor that fits best
is taken, and its module is written down.

Where vLLM and transformers give different tokens, the rows are still proven to be vLLM's own: the
output head, applied to the last layer's rows, gives the tokens that vLLM gave.

Each model has a process of its own, two at a time. What was found lies in ``FOLDER/RUNNER/*.json``.
The exit code is 1 where a model was not served and nobody has noted why.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activation_logging.console import PlainConsole
from activation_logging.sites import SITES
from bench.architectures import ARCHITECTURES, image_prompt, make
from bench.docs import record_rows
from bench.vision import VARIABLE, install

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    Step = Callable[[str, Path, Path], dict[str, Any]]

TOLERANCE = 2e-5
"""Largest relative error of a row in float32."""
V2_SITE = Path(__file__).parent.parent / "tests" / "fixtures" / "v2_site"
LIMIT_S = 300
AT_ONCE = 2
_SHARED = "One should know who walked on the Moon, when that was, and what it was good for. " * 2
PROMPTS = (f"{_SHARED}Who was the first?", f"{_SHARED}Who was the last?", "In which year?")
terminal = PlainConsole(width=150)


def serve(model: Path, store: Path, dtype: str, sites: str) -> str:
    """Ask the prompts of a model, and log the sites that it has of a list.

    Returns:
        the name of vLLM's class.
    """
    os.environ["ACTIVATION_LMDB_PATH"] = str(store)
    os.environ["ACTIVATION_SITES"] = sites
    from vllm import LLM, SamplingParams
    from vllm.model_executor.models import registry

    from activation_logging.errors import ActivationLoggingError

    # It would import vLLM once more, in a process of its own, to look at a class: 15 s.
    vars(registry)["_run_in_subprocess"] = lambda look: look()

    options: dict[str, Any] = {
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 256,
        "seed": 0,
    }
    family, sees = ARCHITECTURES[model.name].family, ARCHITECTURES[model.name].sees
    # VLLM's CPU build cannot keep states of Mamba 2 for its prefix cache, with us or without.
    options["enable_prefix_caching"] = family != "hybrid"
    if family == "image":
        options["limit_mm_per_prompt"] = {"image": int(sees), "video": 0}
    try:
        llm = LLM(str(model), **options)
    except ActivationLoggingError as error:
        having = re.search(r"choose among ACTIVATION_SITES=(\S+)$", str(error))
        if having is None or having[1] == sites:
            raise
        return serve(model, store, dtype, having[1])
    usual = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm.generate(PROMPTS[:1], usual, use_tqdm=False)
    llm.generate(PROMPTS, usual, use_tqdm=False)
    if sees:
        prompt, image = image_prompt()
        asked = {"prompt": prompt, "multi_modal_data": {"image": image}}
        llm.generate(asked, usual, use_tqdm=False)
    core = llm.llm_engine.engine_core.engine_core  # in this process
    name = type(core.model_executor.driver_worker.worker.model_runner.get_model()).__name__
    llm.llm_engine.engine_core.shutdown()
    return name


def serve_one(name: str, folder: Path, store: Path) -> dict[str, Any]:
    """Make an architecture's model if it is not there, and serve it."""
    model = folder / "made" / name
    if not (model / "config.json").exists():
        make(name, model)
    shutil.rmtree(store, ignore_errors=True)
    architecture = ARCHITECTURES[name]
    return {"class": serve(model, store, architecture.dtype, architecture.sites)}


def compare_one(name: str, folder: Path, store: Path) -> dict[str, Any]:
    """Hold its rows against transformers."""
    from bench.reference import compare

    return compare(store, folder / "made" / name, ARCHITECTURES[name].model)


def run(name: str, folder: Path, runner: str) -> dict[str, Any]:
    """Study one architecture in two processes: vLLM changes classes of transformers in its own."""
    results = folder / runner
    results.mkdir(parents=True, exist_ok=True)
    log = results / f"{name}.log"
    log.unlink(missing_ok=True)
    found: dict[str, Any] = {"name": name, "family": ARCHITECTURES[name].family}
    started = time.monotonic()
    for step in (serve_one, compare_one):
        found |= in_a_fork(step, name, folder, results / f"{name}.lmdb", log)
        if "error" in found:
            break
    found["seconds"] = round(time.monotonic() - started, 1)
    (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    terminal.print(f"{runner} {name}: {told(found)}")
    return found


def prepare() -> None:
    """Set this process up for engines of small models in its forks."""
    os.environ |= {
        "ACTIVATION_DTYPE": "float32",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
    }
    preloaded = ["bench.vision", "vllm", "transformers", "bench.reference"]
    multiprocessing.set_forkserver_preload(preloaded)


def in_a_fork(step: Step, name: str, folder: Path, store: Path, log: Path) -> dict[str, Any]:
    """Run a step in a fork of a process that has imported vLLM and transformers."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(step, (name, folder, store), log, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(LIMIT_S) else {"error": f"not done in {LIMIT_S} s"}
    except EOFError:
        process.join()
        found = {"error": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return found


def _answer(step: Step, given: tuple[str, Path, Path], log: Path, answer: Connection) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    try:
        found = step(*given)
    except Exception as error:  # noqa: BLE001 - whatever ends it is written down
        traceback.print_exc()
        found = {"error": re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:500]}
    sys.stdout.flush()
    answer.send(found)
    answer.close()
    os._exit(0)  # engines leave threads behind


def told(found: dict[str, Any]) -> str:
    """One line about one architecture."""
    if "error" in found:
        return found["error"][:150]
    worst = ", ".join(f"{kind} {_error(site['worst'])}" for kind, site in found["sites"].items())
    return f"{found['class']}, same tokens {_tokens(found)}, {worst}"


def is_verified(found: dict[str, Any]) -> bool:
    """Whether every site of every layer is within the tolerance."""
    return "error" not in found and all(
        site["worst"] <= TOLERANCE for site in found["sites"].values()
    )


def run_all(names: Sequence[str], folder: Path, runner: str) -> list[dict[str, Any]]:
    """Study architectures with one of vLLM's model runners."""
    needed = any(ARCHITECTURES[name].needs_vision for name in names)
    if needed and (vision := install(folder / "packages")):
        os.environ[VARIABLE] = str(vision)
        sys.path.insert(0, str(vision))  # forks get this path
    prepare()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: run(name, folder, runner), names))


def environment(runner: str) -> dict[str, str]:
    """The environment variables that choose one of vLLM's model runners."""
    if runner == "v1":
        return {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    path = os.pathsep.join(filter(None, [str(V2_SITE), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": path,
    }


def table(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of docs/models.md, of what lies in the folder."""
    header = ["", "family", "vLLM's class", "same tokens", *SITES, "worst with V2", ""]
    rows = []
    for name, architecture in ARCHITECTURES.items():
        v1, v2 = (_found(folder / runner / f"{name}.json") for runner in ("v1", "v2"))
        cells = [f"`{name}`", architecture.family]
        if "error" in v1:
            cells += ["", "", *[""] * len(SITES)]
        else:
            cells += [f"`{v1['class']}`", _tokens(v1)]
            cells += [_site(v1["sites"].get(kind)) for kind in SITES]
        if "error" in v2:
            cells.append("")
        else:
            cells.append(_error(max(site["worst"] for site in v2["sites"].values())))
        why = v1.get("error") or (v2.get("error") and f"V2: {v2['error']}")
        rows.append([*cells, architecture.note or _short(why or "")])
    return header, rows


def _found(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"error": "not run"}


def _tokens(found: dict[str, Any]) -> str:
    if found["tokens"] == found["own"]:
        return found["tokens"]
    return f"{found['tokens']}, own head {found['own']}"


def _short(error: str) -> str:
    """The sentence of an error, without the name of its class."""
    return error.split("Error: ", 1)[-1].replace("|", "/")[:120]


def _error(value: float) -> str:
    return f"{value:.0e}"


def _site(site: dict[str, Any] | None) -> str:
    return f"{_error(site['worst'])} ({site['layers']})" if site else ""


def main() -> int:
    """Study architectures, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of architectures; all if none")
    parser.add_argument("--runner", choices=("v1", "v2", "both"), default="both")
    parser.add_argument("--folder", type=Path, default=Path("output/models"))
    parser.add_argument("--docs", metavar="NAME", help="write docs/measured/NAME.json as well")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"{', '.join(unknown)} is not one of {', '.join(ARCHITECTURES)}")
    names = options.names or list(ARCHITECTURES)
    failed = 0
    if options.runner == "both":
        for runner in ("v1", "v2"):
            command = [sys.executable, "-m", "bench.models", *names, "--runner", runner]
            command += ["--folder", str(options.folder)]
            failed |= subprocess.run(command, env=environment(runner), check=False).returncode
    else:
        results = run_all(names, options.folder.absolute(), options.runner)
        verified = sum(map(is_verified, results))
        failed = int(
            any("error" in found and not ARCHITECTURES[found["name"]].note for found in results)
        )
        served = sum("error" not in found for found in results)
        terminal.print(f"{options.runner}: {served} of {len(results)} served, {verified} verified")
    if options.docs:
        record_rows(options.docs, *table(options.folder))
    return failed


if __name__ == "__main__":
    sys.exit(main())
