"""Two hosts, which are network namespaces of this machine: data and pipeline parallelism over them.

The front end is in the namespace of the test; the other one has another name. Each has a store.
On Ray each is a node of one cluster.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_logging import Entry, Store, open_store, process
from activation_logging.placeholders import short_host
from activation_logging.store.repair import find_unmatched
from tests.fixtures.offline import SEVERAL_WORKERS
from tests.fixtures.server import START_S, RunningServer, as_on_gpu, running
from tests.server import live
from tests.server.reference import Fidelity

NAME = f"al{os.getpid()}"
NET = f"10.231.{os.getpid() % 250}"
HERE, THERE = f"{NET}.1", f"{NET}.2"
PROMPTS = [f"The number {n} is" for n in range(4)]
ON_RAY = textwrap.dedent(
    """
    import asyncio, sys
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def ask(engine, prompt, length, began):
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        async for _ in engine.generate(prompt, params, prompt):
            began.set()

    async def main():
        model, *prompts = sys.argv[1:]
        args = AsyncEngineArgs(
            model, served_model_name="tiny", dtype="float32", enforce_eager=True,
            max_model_len=1024, max_num_seqs=8,
            distributed_executor_backend="ray", pipeline_parallel_size=2,
        )
        engine = AsyncLLM.from_engine_args(args)
        began = asyncio.Event()
        long = asyncio.create_task(ask(engine, "On and on", 1000, began))
        await began.wait()
        await asyncio.gather(*(ask(engine, prompt, 6, began) for prompt in prompts))
        engine.shutdown()
        long.cancel()

    if __name__ == "__main__":
        asyncio.run(main())
    """
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespace() -> Iterator[list[str]]:
    """What to put before a command that is to run on the other host."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, `ip` and `unshare`")
    try:
        ip("netns", "add", NAME)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespace: {error.stderr.strip()}")
    try:
        ip("link", "add", NAME, "type", "veth", "peer", "name", "eth0", "netns", NAME)
        ip("addr", "add", f"{HERE}/24", "dev", NAME)
        ip("link", "set", NAME, "up")
        for words in (f"addr add {THERE}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip("-n", NAME, *words.split())
        rename = f'hostname {NAME} && exec "$@"'
        yield ["ip", "netns", "exec", NAME, "unshare", "--uts", "sh", "-c", rename, "sh"]
    finally:
        ip("netns", "delete", NAME)


@contextmanager
def two_hosts(
    namespace: Sequence[str],
    folder: Path,
    model: Path,
    flags: Sequence[str],
    away_flags: Sequence[str],
) -> Iterator[RunningServer]:
    """A server on both hosts; ``away_flags`` are those of the other host alone."""
    probes = live.make_probes("tiny", live.SHAPES["tiny"])
    env = {
        **SEVERAL_WORKERS,
        "ACTIVATION_LMDB_PATH": str(folder / "{host}" / "activations.lmdb"),
        "ACTIVATION_LAYERS": "1,2,last",
        "ACTIVATION_PROBES": live.save(probes, folder / "probes"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "DO_NOT_TRACK": "1",
    }
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(model)),
        *("--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "256"),
        *("--enforce-eager", "--max-num-seqs", "8", *flags),
    ]
    away = [*namespace, *command, "--headless", *away_flags]
    away_env = {**os.environ, **env, "VLLM_HOST_IP": THERE, "GLOO_SOCKET_IFNAME": "eth0"}
    with (folder / "away.log").open("wb") as log:
        other = subprocess.Popen(away, stdout=log, stderr=log, env=away_env, process_group=0)
    try:
        here = [*command, "--host", "127.0.0.1", "--api-server-count", "1"]
        here_env = {**env, "VLLM_HOST_IP": HERE, "GLOO_SOCKET_IFNAME": NAME}
        with running(here, folder, model="tiny", env=here_env) as started:
            started.lmdb_path = folder / short_host() / "activations.lmdb"
            yield started
    finally:
        process.stop(other)


@pytest.fixture(scope="module")
def server(
    namespace: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    folder_of: Callable[[str], Path],
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("hosts")
    size = ["--data-parallel-size", "2", "--data-parallel-size-local", "1"]
    where = ["--data-parallel-address", HERE, "--data-parallel-rpc-port", str(process.free_port())]
    rank = ["--data-parallel-start-rank", "1"]
    with two_hosts(namespace, folder, folder_of("tiny"), [*size, *where], rank) as started:
        yield started


@pytest.fixture(scope="module")
def answers(server: RunningServer) -> list[dict[str, Any]]:
    """Each prompt asked twice at once: the engines take turns."""
    scores = {"activation_scores": "all"}

    def ask(prompt: str) -> dict[str, Any]:
        return server.complete(prompt, max_tokens=6, vllm_xargs=scores, ignore_eos=True)

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, PROMPTS * 2))


@pytest.fixture(scope="module")
def stores(server: RunningServer, answers: list[Any]) -> tuple[Store, Store]:
    """The front end's store and the other host's, after a flush."""
    server.flush()
    return server.store(), open_store(server.lmdb_path.parents[1] / NAME / "activations.lmdb")


def test_every_entry_ends(stores: tuple[Store, Store], answers: list[Any]) -> None:
    """Each has its rows, here or there, and they are those of its tokens."""
    home, away = stores
    entries = list(home.entries())
    assert len(entries) == len(answers)
    assert {entry.status for entry in entries} == {"complete", "elsewhere"}
    there = [entry for entry in entries if entry.status == "elsewhere"]
    for entry in there:
        assert f"{NAME}:{away.path}" in (entry.status_reason or "")
    assert sorted(away.orphans()) == sorted(one.document["capture"] for one in there)
    assert not [*find_unmatched(home), *find_unmatched(away)]
    with open_store([home.path, away.path]) as both:
        whole = list(both.entries())
        check_rows(whole)
    assert len(whole) == len(entries)


def check_rows(whole: Sequence[Entry]) -> None:
    """Whichever engine answered, a prompt has the same rows."""
    assert {one.status for one in whole} == {"complete"}
    for prompt in PROMPTS:
        first, second = (one for one in whole if one.prompt == prompt)
        assert first.response_token_ids == second.response_token_ids
        for layer in (1, 2, "last"):
            assert np.allclose(first.layer(layer), second.layer(layer), atol=1e-4)


def test_live_scores_cross_the_network(
    stores: tuple[Store, Store], answers: list[dict[str, Any]]
) -> None:
    home, away = stores
    for answer in answers:
        told = answer["choices"][0]["activation_scores"]["token"]
        with open_store([home.path, away.path]) as both:
            [entry] = both.for_request(answer["id"])
            assert np.allclose(told["tokens"][:5], entry.scores["token"][-5:], atol=1e-6)


def test_the_routes_say_where(server: RunningServer, stores: tuple[Store, Store]) -> None:
    home, away = stores
    found = server.get("/v1/activations/stores").json()["data"]
    assert [(one["path"], one["entries"], one["rows_of_engines"]) for one in found] == [
        (str(home.path), True, [0]),
        (str(away.path), False, [1]),
    ]
    listed = server.get("/v1/activations", params={"status": "elsewhere"}).json()["data"]
    assert listed
    key = listed[0]["key"].replace("#", "%23")
    assert server.get(f"/v1/activations/{key}").json()["rows_in"] == f"{NAME}:{away.path}"
    refused = server.get(f"/v1/activations/{key}/tensor")
    assert refused.status_code == 404
    # vLLM leaves paths out of errors.
    assert f"the rows are in the store {NAME}:" in refused.text


def test_pipeline_stages(
    namespace: list[str], tmp_path: Path, folder_of: Callable[[str], Path], check: Fidelity
) -> None:
    """The last stage is on the other host, and writes the rows of both stages there."""
    port = str(process.free_port())
    size = ["--pipeline-parallel-size", "2", "--nnodes", "2"]
    flags = [*size, "--master-addr", HERE, "--master-port", port]
    with two_hosts(namespace, tmp_path, folder_of("tiny"), flags, ["--node-rank", "1"]) as server:
        for prompt in PROMPTS:
            server.complete(prompt, max_tokens=6, ignore_eos=True)
        server.flush()
        with server.store() as home:
            assert [entry.status for entry in home.entries()] == ["elsewhere"] * len(PROMPTS)
    with open_store([server.lmdb_path, tmp_path / NAME / "activations.lmdb"]) as both:
        entries = list(both.entries())
        assert len(entries) == len(PROMPTS)
        check("pipeline over two hosts", entries)


@contextmanager
def ray_nodes(namespace: Sequence[str], folder: Path) -> Iterator[dict[str, str]]:
    """A Ray node on each host, with one GPU that is not there; the environment of a program."""
    port = process.free_port()
    env = {
        **os.environ,
        **as_on_gpu("V1"),
        **SEVERAL_WORKERS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    here = {**env, "VLLM_HOST_IP": HERE, "GLOO_SOCKET_IFNAME": NAME}
    there = {**env, "VLLM_HOST_IP": THERE, "GLOO_SOCKET_IFNAME": "eth0"}
    start = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"),
        *("--num-cpus", "1", "--num-gpus", "1", "--object-store-memory", str(100 << 20)),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
    ]
    first = ["--head", "--port", str(port), "--node-ip-address", HERE, "--include-dashboard=false"]
    first += ["--ray-client-server-port", str(process.free_port())]
    second = ["--address", f"{HERE}:{port}", "--node-ip-address", THERE]
    # Paths of Ray's sockets are long, and the system's limit is short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        log = (folder / "nodes.log").open("wb")
        options: dict[str, Any] = {"stdout": log, "stderr": log, "process_group": 0}
        nodes = [subprocess.Popen([*start, *first, "--temp-dir", short], env=here, **options)]
        try:
            await_port(port)
            nodes.append(subprocess.Popen([*namespace, *start, *second], env=there, **options))
            yield {**here, "RAY_ADDRESS": f"{HERE}:{port}"}
        finally:
            for node in reversed(nodes):
                process.stop(node)
            log.close()


def await_port(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection((HERE, port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens at {HERE}:{port}")


def test_pipeline_stages_on_ray(
    namespace: list[str], tmp_path: Path, folder_of: Callable[[str], Path], check: Fidelity
) -> None:
    """A stage on each node. What runs when the engine is shut down is whole, too."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    program = tmp_path / "program.py"
    program.write_text(ON_RAY)
    stores = str(tmp_path / "{host}.lmdb")
    probes = live.save(live.make_probes("tiny", live.SHAPES["tiny"]), tmp_path / "probes")
    with ray_nodes(namespace, tmp_path) as env:
        env |= {"ACTIVATION_LMDB_PATH": stores, "ACTIVATION_LAYERS": "1,2,last"}
        env |= {"ACTIVATION_PROBES": probes, "VLLM_CPU_KVCACHE_SPACE": "1"}
        done = subprocess.run(
            [sys.executable, program, folder_of("tiny"), *PROMPTS],
            env=env,
            capture_output=True,
            text=True,
            timeout=2 * START_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    with open_store([stores.format(host=host) for host in (short_host(), NAME)]) as both:
        entries = list(both.entries())
        assert {entry.prompt for entry in entries} == {*PROMPTS, "On and on"}
        assert len(entries) == len(PROMPTS) + 1
        check("pipeline over two Ray nodes", entries)
