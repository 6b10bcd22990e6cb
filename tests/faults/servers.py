"""What is done to a server: malformed requests, and SIGKILL to one of its processes."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from activation_logging import open_store
from activation_logging.default_model import demo_model_path
from activation_logging.store.repair import find_unmatched, remove_unmatched
from activation_logging.verify import verify
from tests.fixtures.server import RunningServer, running

ROLES = ("front end", "engine", "worker")
GONE_S = 60.0
"""How long the other processes may take to notice, seconds."""
_BATCH = 1000
FAILED = "failed: the engine failed"
"""What the front end writes of requests that were in flight when the engine died."""


def small_server(folder: Path) -> AbstractContextManager[RunningServer]:
    """A server of the default model beside which there is room for others."""
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(demo_model_path())),
        *("--served-model-name", "smol", "--host", "127.0.0.1"),
        *("--enforce-eager", "--max-model-len", "2048", "--gpu-memory-utilization", "0.3"),
    ]
    return running(command, folder, model="smol")


# --- malformed requests ---------------------------------------------------------


class Malformed(NamedTuple):
    """One request as it goes over the wire."""

    method: str
    path: str
    content: bytes
    headers: dict[str, str]


def malformed(rng: random.Random) -> Malformed:
    """One request that is wrong in some way, or right by chance."""
    make = rng.choice([_broken_body, _odd_option, _odd_field, _odd_query, _odd_key, _odd_label])
    method, path, content = make(rng)
    headers = {"content-type": rng.choice(["application/json", "application/json", "text/plain"])}
    if rng.random() < 0.1:
        headers[f"x-{rng.randrange(9)}"] = "y" * rng.choice([0, 1, 1000, 30_000])
    return Malformed(method, path, content, headers)


def _junk(rng: random.Random, depth: int = 0) -> Any:
    if depth < 3 and rng.random() < 0.3:
        values = [_junk(rng, depth + 1) for _ in range(rng.randrange(4))]
        return values if rng.random() < 0.5 else {_text(rng): value for value in values}
    return rng.choice(
        [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -1e308, "", _text(rng), "last", "all"]
    )


def _text(rng: random.Random) -> str:
    return rng.choice(
        [
            "\0", "../../etc/passwd", "a" * 5000, "é\u202e", "'; --", "{}", "#1", "%00",
            "0-99999999999", "last,,", "9" * 300, "$(id)", "[" * 900,
        ]
    )  # fmt: skip


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "smol", "prompt": "Hello", "max_tokens": 1, "temperature": 0, **fields}


def _broken_body(rng: random.Random) -> tuple[str, str, bytes]:
    whole = _dump(_body())
    cut = whole[: rng.randrange(len(whole))]
    content = rng.choice(
        [b"", cut, b"\xff\xfe" + cut, b"[" * 20_000, b'{"a":' * 5_000, b"null", b"7", b"\0" * 99]
    )
    return "POST", rng.choice(["/v1/completions", "/v1/chat/completions"]), content


def _odd_option(rng: random.Random) -> tuple[str, str, bytes]:
    name = rng.choice(["logging", "tokens", "layers", "tags", "", "path", "\0"])
    # Half a character, which is no UTF-8: plain vLLM answers 500 to one in any field of its own.
    half = rng.choice(["\ud800", {"a": "\ud800"}, '{"a": "\ud800"}', {"\ud800": "a"}])
    extra = {f"activation_{name}": rng.choice([_junk(rng), half])}
    return "POST", "/v1/completions", _dump(_body(vllm_xargs=extra, auth_token=half))


def _odd_field(rng: random.Random) -> tuple[str, str, bytes]:
    name = rng.choice(["vllm_xargs", "request_id", "auth_token", "activation_tags", "model"])
    return "POST", "/v1/completions", _dump(_body(**{name: _junk(rng)}))


def _odd_query(rng: random.Random) -> tuple[str, str, bytes]:
    name = rng.choice(["limit", "offset", "status", "label", "tag", "model", "prompt", "what"])
    value = str(httpx.QueryParams({name: str(_junk(rng)).encode("utf-8", "replace").decode()}))
    return "GET", f"/v1/activations?{value}", b""


def _odd_key(rng: random.Random) -> tuple[str, str, bytes]:
    key = rng.choice(["..", "%2e%2e%2f", "%00", "~meta", "0" * 64, "0" * 64 + "%239", "%ff" * 9])
    end = rng.choice(["", "/tensor?layer=-1", "/tensor?layer=99999", "/tensor?format=pkl", "/x"])
    return rng.choice(["GET", "DELETE", "PUT"]), f"/v1/activations/{key}{end}", b""


def _odd_label(rng: random.Random) -> tuple[str, str, bytes]:
    body = {"name": _junk(rng), "label": rng.choice(["correct", _junk(rng)]), "details": _junk(rng)}
    return "POST", f"/v1/activations/{'0' * 64}/evaluations", _dump(body)


def pester(server: RunningServer, count: int, seed: int = 0) -> tuple[Counter[int], list[str]]:
    """Send malformed requests, and proper ones beside them, of which none may be lost.

    Returns:
        How often each status came; and what is wrong, one sentence each.
    """
    rng = random.Random(seed)
    requests = [malformed(rng) for _ in range(count)]
    statuses: Counter[int] = Counter()
    wrong: list[str] = []

    def send(request: Malformed) -> None:
        answer = httpx.request(
            request.method,
            server.root_url + request.path,
            content=request.content,
            headers={**server.headers, **request.headers},
            timeout=120,
        )
        statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            wrong.append(f"{answer.status_code} to {request!r:.500}: {answer.text[:200]}")

    def ask(number: int) -> str:
        return str(server.complete(f"Beside {seed} {number}", max_tokens=4)["id"])

    with ThreadPoolExecutor(8) as pool:
        proper = [pool.submit(ask, number) for number in range(max(count // 20, 4))]
        for done in [pool.submit(send, request) for request in requests]:
            done.result()
        ids = [each.result() for each in proper]
    server.flush()
    for name in ids:
        (entry,) = server.store().for_request(name)
        if entry.status != "complete":
            wrong.append(f"{name} is {entry.status}: {entry.status_reason}")
    return statuses, wrong


def pester_one(folder: Path, count: int, seed: int) -> Counter[str]:
    """Send malformed requests to a server of its own; how often each status came."""
    statuses: Counter[str] = Counter()
    with small_server(folder) as server:
        for first in range(0, count, _BATCH):
            found, wrong = pester(server, min(_BATCH, count - first), seed + first)
            assert not wrong, wrong[:5]
            statuses.update({str(status): times for status, times in found.items()})
    return Counter(dict(sorted(statuses.items())))


# --- SIGKILL -----------------------------------------------------------------------------


class Killed(NamedTuple):
    """What a kill has left."""

    acknowledged: int
    entries: int
    failed: int
    halves: int


def kill_under_load(server: RunningServer, role: str, after_s: float) -> Killed:
    """Kill one process of a busy server, and look at what is left.

    Raises:
        AssertionError: something is not as it should be.
    """
    processes = processes_of(server)
    acknowledged: list[str] = []
    stop = threading.Event()
    load = threading.Thread(target=_load, args=(server, acknowledged, stop))
    load.start()
    stop.wait(after_s)
    processes[role].kill()
    stop.set()
    load.join()
    if role == "front end":
        # vLLM's engine and worker do not notice, with or without the plugin.
        for process in processes.values():
            process.kill()
    _, alive = psutil.wait_procs(processes.values(), GONE_S)
    assert not alive, f"{role} was killed, but {alive} still run"
    return examine(server, acknowledged)


def examine(server: RunningServer, acknowledged: list[str]) -> Killed:
    """The store after a kill: whole but for halves, which can be removed."""
    with open_store(server.lmdb_path, writable=True) as store:
        for name in acknowledged:
            (entry,) = store.for_request(name)
            assert entry.status == "complete", (name, entry.status_reason)
            assert len(entry.activations) == entry.num_rows_expected
        halves = list(find_unmatched(store))
        assert all(half.final for half in halves), "a dead writer is taken for a living one"
        remove_unmatched(store, halves)
        failed = [problem.what for problem in verify(store).problems]
        assert all(what.startswith(FAILED) for what in failed), failed
        return Killed(len(acknowledged), len(store), len(failed), len(halves))


def _load(server: RunningServer, acknowledged: list[str], stop: threading.Event) -> None:
    """Ask several at a time, flush, and note what the flush stands for, until it fails."""
    for turn in _until(stop):
        try:
            with ThreadPoolExecutor(4) as pool:
                prompts = [f"Kill {turn} {n}" for n in range(4)]
                ids = list(pool.map(lambda p: server.complete(p, max_tokens=8)["id"], prompts))
            server.flush()
        except (httpx.HTTPError, AssertionError):
            return
        acknowledged.extend(ids)


def _until(stop: threading.Event) -> Iterator[int]:
    turn = 0
    while not stop.is_set():
        yield turn
        turn += 1


def processes_of(server: RunningServer) -> dict[str, psutil.Process]:
    """The three kinds of process of a server, by :data:`ROLES`."""
    first = psutil.Process(server.process.pid)
    found = {"front end": first}
    for process in first.children(recursive=True):
        title = " ".join(process.cmdline())
        if "EngineCore" in title:
            found["engine"] = process
        elif "Worker" in title:
            found["worker"] = process
    assert set(found) == set(ROLES), found
    return found


def kill_many(
    folder: Path, times: int, seed: int, at_once: int, tell: Callable[[str], None]
) -> Counter[str]:
    """Kill processes of fresh servers at random moments; what the kills of each role have left.

    Args:
        folder: for the servers' logs and stores.
        times: how many processes to kill, each of a server of its own.
        seed: of the moments.
        at_once: servers that run side by side: one that starts keeps one core busy.
        tell: called with a line after each kill.
    """
    rng = random.Random(seed)
    moments = [(ROLES[number % len(ROLES)], rng.uniform(0.5, 6)) for number in range(times)]

    def one(number: int) -> Killed:
        role, moment = moments[number]
        with small_server(folder / str(number)) as server:
            return kill_under_load(server, role, moment)

    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(at_once) as pool:
        for (role, moment), found in zip(moments, pool.map(one, range(times)), strict=True):
            tell(f"{role} killed after {moment:.1f} s: {found}")
            counts[f"{role} killed"] += 1
            for what, number in found._asdict().items():
                counts[f"{role} {what}"] += number
    return counts
