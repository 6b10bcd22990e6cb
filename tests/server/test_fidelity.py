"""Rows belong to their tokens, in every mode of the engine: each against Hugging Face."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from activation_logging import Entry
from activation_logging.verify import verify
from tests.fixtures.offline import SEVERAL_WORKERS
from tests.fixtures.server import RunningServer, as_on_gpu
from tests.server.reference import Fidelity
from tests.server.told import ALL, Stream, asking, check_told, client


def story(length: int, seed: int) -> str:
    """A prompt of about ``length`` words that shares no beginning with another seed's."""
    words = ("river", "stone", "green", "seven", "walked", "under", "quiet", "moon", "because")
    return f"Chapter {seed}. " + " ".join(words[(seed * 7 + i * i) % 9] for i in range(length))


def ask_all(server: RunningServer, prompts: Sequence[str], **options: Any) -> list[Entry]:
    """All prompts at once; their entries in the same order."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: server.complete(prompt, **options), prompts))
    server.flush()
    return [entry for answer in answers for entry in server.store().for_request(answer["id"])]


def ask_for_scores(server: RunningServer) -> list[Entry]:
    """Stream choices with scores, and an answer that a probe ends; the entries that they became.

    Raises:
        AssertionError: the client was told something else than is stored.
    """
    usual: dict[str, Any] = {"model": server.model, "stream": True, "max_tokens": 12}
    create = client(server).completions.create
    prompts = [story(5 + 20 * i, seed=40 + i) for i in range(4)]
    found = Stream(create(prompt=prompts, n=2, extra_body=asking(), **usual))
    stop = {"probe": "mean", "above": 0, "tokens": 4}
    stopped = Stream(create(prompt=story(9, seed=50), extra_body=asking(stop), **usual))
    assert stopped.reasons == {0: ("stop", "activation:mean")}
    server.flush()
    entries = server.store().for_request(found.id)
    (ended,) = server.store().for_request(stopped.id)
    assert len(entries) == 8
    assert len(ended.response_token_ids) == 4
    check_told(stopped.told[0], ended)
    for entry in entries:
        check_told(found.told[entry.choice], entry)
    return [*entries, ended]


class Modes:
    """Every way to ask, against one server; subclasses bring the server."""

    name: str

    def test_single(self, serving: RunningServer, check: Fidelity) -> None:
        answer = serving.complete("The capital of France is", max_tokens=24)
        check(f"{self.name}, single", serving.entries_of(answer))

    def test_concurrent_mixed_lengths(self, serving: RunningServer, check: Fidelity) -> None:
        prompts = [story(3 + 11 * i, seed=i) for i in range(16)]
        check(f"{self.name}, 16 concurrent", ask_all(serving, prompts, max_tokens=20))

    def test_prefix_cache_hits(self, serving: RunningServer, check: Fidelity) -> None:
        common = story(300, seed=99)
        serving.complete(common + " One.", max_tokens=2)
        hits = serving.metric("vllm:prefix_cache_hits_total")
        entries = ask_all(serving, [f"{common} {n}." for n in ("Two", "Three", "Four")])
        assert serving.metric("vllm:prefix_cache_hits_total") > hits, "nothing came from the cache"
        check(f"{self.name}, prefix-cache hits", entries)

    def test_several_choices(self, serving: RunningServer, check: Fidelity) -> None:
        answer = serving.complete("Once upon a time", n=3, temperature=0.9, seed=7, max_tokens=20)
        entries = serving.entries_of(answer)
        assert [entry.response for entry in entries] == [c["text"] for c in answer["choices"]]
        check(f"{self.name}, n=3", entries)

    def test_streaming(self, serving: RunningServer, check: Fidelity) -> None:
        body = {
            "model": serving.model,
            "prompt": "A haiku about rain:",
            "max_tokens": 24,
            "stream": True,
        }
        url = f"{serving.base_url}/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        entries = serving.entries_of(chunks[0])
        assert entries[0].response == "".join(c["choices"][0]["text"] for c in chunks)
        check(f"{self.name}, streaming", entries)

    def test_stop_string_inside_a_token(self, serving: RunningServer, check: Fidelity) -> None:
        prompt = "Count: one two three four"
        whole = serving.complete(prompt, max_tokens=24)["choices"][0]["text"]
        # Neither begins nor ends where a token does.
        stop = whole[9:12]
        answer = serving.complete(prompt, max_tokens=24, stop=[stop])
        assert answer["choices"][0]["finish_reason"] == "stop"
        entry = serving.entries_of(answer)[0]
        assert entry.response == answer["choices"][0]["text"] == whole[: whole.index(stop)]
        assert entry.finish_reason == "stop"
        check(f"{self.name}, stop string", [entry])

    def test_chat(self, serving: RunningServer, check: Fidelity) -> None:
        answer = serving.chat("Name three animals.", max_tokens=30)
        check(f"{self.name}, chat", serving.entries_of(answer))

    def test_what_clients_are_told(self, serving: RunningServer, check: Fidelity) -> None:
        check(f"{self.name}, with scores", ask_for_scores(serving))

    def test_client_leaves(self, serving: RunningServer, check: Fidelity) -> None:
        # A quick model may be done before a busy machine tells it that the client has left.
        for attempt in range(ATTEMPTS):
            entry = leave(serving, f"left-{self.name}-{attempt}")
            if entry.finish_reason == "abort":
                break
        assert entry.finish_reason == "abort"
        assert len(entry.prompt_token_ids) <= len(entry.positions)
        check(f"{self.name}, client left", [entry])


ATTEMPTS = 15


def leave(server: RunningServer, request_id: str) -> Entry:
    """Ask for a long answer, and leave after its first pieces."""
    body = {"model": server.model, "prompt": "Write a very long story.", "stream": True}
    body |= {"max_tokens": 1500, "ignore_eos": True, "request_id": request_id}
    with httpx.stream("POST", f"{server.base_url}/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        for _ in range(5):
            next(lines)
    return wait_for_entry(server, f"cmpl-{request_id}")


def wait_for_entry(server: RunningServer, request_id: str) -> Entry:
    """An aborted request tells nobody when it is done: look until its entry is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        server.flush()
        found = server.store().for_request(request_id)
        if found:
            return found[0]
        time.sleep(0.2)
    raise AssertionError(f"no entry of {request_id}")


@pytest.mark.core
class TestEager(Modes):
    name = "eager"

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, server: RunningServer) -> RunningServer:
        return server


# A token budget that cuts prompts into chunks, and a cache too small for all of 14 requests.
TIGHT = (
    *("--max-num-batched-tokens", "64", "--max-num-seqs", "16", "--block-size", "32"),
    *("--num-gpu-blocks-override", "70"),
)


class Tight(Modes):
    """The same while prompts come in chunks, and with requests that are preempted."""

    words, max_tokens = 20, 230
    """Of a prompt and of its answer, in the test of preemption."""

    def test_preemption(self, serving: RunningServer, check: Fidelity) -> None:
        prompts = [story(self.words + i, seed=200 + i) for i in range(14)]
        # In one request, so that all are there at once: one by one, the first may end before.
        answer = serving.complete(
            prompts, max_tokens=self.max_tokens, ignore_eos=True, vllm_xargs=ALL
        )
        entries = serving.entries_of(answer)
        assert len(entries) == len(prompts)
        for entry in entries:
            check_told(answer["choices"][entry.choice]["activation_scores"], entry)
        assert serving.metric("vllm:num_preemptions_total") > 0, "nothing was preempted"
        check(f"{self.name}, preemption", entries)


@pytest.mark.core
class TestTight(Tight):
    name = "chunked prefill"

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        with serve(*TIGHT) as started:
            assert not started.uses_v2_runner
            yield started


@pytest.mark.core
class TestAsyncScheduling(Tight):
    """The next step is scheduled while one runs: the default on GPUs, off on CPUs."""

    name = "asynchronous"
    words, max_tokens = 100, 60

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        with serve(*TIGHT, env=as_on_gpu("V1"), model="tiny") as started:
            assert started.schedules_asynchronously
            assert not started.uses_v2_runner
            yield started


@pytest.mark.core
class TestV2(Modes):
    """The V2 model runner, with asynchronous scheduling. Triton's interpreter is slow, so: tiny."""

    name = "V2"

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        with serve("--max-num-seqs", "16", env=as_on_gpu("V2"), model="tiny") as started:
            assert started.uses_v2_runner
            assert started.schedules_asynchronously
            yield started

    def test_warm_up_leaves_nothing(self, serving: RunningServer) -> None:
        serving.complete("Hello")
        serving.flush()
        report = verify(serving.store())
        assert report.ok, report.problems


@pytest.mark.core
class TestV2Tight(Tight):
    """Without asynchronous scheduling, so that each runner is tried in both ways."""

    name = "V2, chunked prefill"
    words, max_tokens = 100, 60

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        flags = (*TIGHT, "--no-async-scheduling")
        with serve(*flags, env=as_on_gpu("V2"), model="tiny") as started:
            assert started.uses_v2_runner
            assert not started.schedules_asynchronously
            yield started


@pytest.mark.compiled
class TestCompiled(Modes):
    name = "compiled"

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        with serve(eager=False) as started:
            yield started


class TestTensorParallel:
    """The default model has 9 heads and 3 KV heads: it splits into three. One rank writes."""

    def test_rows(self, serve: Callable[..., Any], check: Fidelity) -> None:
        common = story(150, seed=98)
        with serve("--tensor-parallel-size", "3", env=SEVERAL_WORKERS) as serving:
            entries = ask_all(serving, [story(5 + 9 * i, seed=i) for i in range(6)], max_tokens=6)
            for end in ("One.", "Two."):
                entries += ask_all(serving, [f"{common} {end}"], max_tokens=4)
            entries += serving.entries_of(
                serving.complete("Thrice", n=3, temperature=1, max_tokens=4)
            )
            assert serving.metric("vllm:prefix_cache_hits_total") > 0
            entries += ask_for_scores(serving)
            writers = [record["role"] for record in serving.store().writers().values()]
            assert sorted(writers) == ["front end", "worker of engine 0"]
            check("tensor parallel 3", entries)


class TestDataParallel(Modes):
    name = "data parallel 2"

    @pytest.fixture(scope="class")
    @classmethod
    def serving(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        with serve("--data-parallel-size", "2", env=SEVERAL_WORKERS) as started:
            yield started

    def test_both_engines_write(self, serving: RunningServer, check: Fidelity) -> None:
        entries = ask_all(serving, [story(5, seed=300 + i) for i in range(8)])
        rows = {
            record["role"]: record["rows"]
            for record in serving.store().writers().values()
            if record["role"].startswith("worker")
        }
        assert len(rows) == 2, rows
        assert all(count > 0 for count in rows.values()), rows
        # Whichever API server is asked, it counts what both engines have written.
        assert serving.metric("activation_logging_rows_total") == sum(rows.values())
        check(f"{self.name}, both engines", entries)

    def test_prefix_cache_hits(self, serving: RunningServer, check: Fidelity) -> None:
        # Each engine has a cache of its own: ask one of them.
        common = story(300, seed=99)
        entries = [
            entry
            for n in ("One", "Two", "Three")
            for entry in serving.entries_of(
                serving.post(
                    "/v1/completions",
                    {"model": "smol", "prompt": f"{common} {n}.", "temperature": 0},
                    headers={"X-data-parallel-rank": "1"},
                ).json()
            )
        ]
        assert serving.metric("vllm:prefix_cache_hits_total") > 0, "nothing came from the cache"
        check(f"{self.name}, prefix-cache hits", entries)
