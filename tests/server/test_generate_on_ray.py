"""``generate --ray`` with one real engine: a file is answered, and not asked again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

import ray

from activation_logging import open_store
from activation_logging.generate import LINE_TAG
from activation_logging.ray import answer_file, generate
from tests.fixtures.ray_cluster import cluster

__all__ = ["cluster"]

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("cluster")]

FLAGS = ("--enforce-eager", "--max-model-len", "512", "--gpu-memory-utilization", "0.3")
LINES: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "tags": {"split": "train"}},
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {"prompt": "word " * 3000},
    {"prompt": "The capital of Peru is"},
]


@pytest.fixture(scope="module")
def settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTIVATION_LAYERS", "2,last")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.mark.usefixtures("settings")
def test_a_file_is_answered_and_not_asked_again(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "stores"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    asked: dict[str, Any] = {"model": str(folder_of("tiny")), "sampling": {"max_tokens": 8}}
    asked |= {"run": "mine", "engines": 1, "vllm_args": FLAGS}
    outcome = answer_file(prompts, folder=folder, **asked)
    # The third is longer than the model's context: named, and the others are answered.
    assert (outcome.answered, list(outcome.refused), outcome.missing) == (3, [3], 0)
    (store_path,) = folder.glob("*.lmdb")
    with open_store(store_path) as store:
        entries = list(store.entries())
        assert {entry.status for entry in entries} == {"complete"}
        # The setting of this process has reached the engine's.
        assert {entry.layers for entry in entries} == {(2, 4)}
        assert {entry.request_id for entry in entries} == {
            f"mine-{entry.tags[LINE_TAG]}" for entry in entries
        }

    without = [LINES[3], *LINES[:2]]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in without), encoding="utf-8")
    # All are answered, so that no engine has to start.
    again = answer_file(prompts, folder=folder, **asked)
    assert (again.resumed, again.answered, again.missing) == (3, 0, 0)


@pytest.mark.usefixtures("settings")
def test_a_dataset_outlives_an_engine(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A killed engine is started again, and every row has its answer once, and whole."""
    rows = [{"id": number, "prompt": f"The number {number} is"} for number in range(24)]
    asked: dict[str, Any] = {"sampling": {"max_tokens": 60, "ignore_eos": True}, "run": "killed"}
    asked |= {"engines": 1, "batch_size": 24, "vllm_args": [*FLAGS, "--max-num-seqs", "2"]}
    dataset = ray.data.from_items(rows)
    answered = generate(dataset, model=str(folder_of("tiny")), path=tmp_path, **asked)
    with ThreadPoolExecutor(1) as threads:
        computed = threads.submit(answered.take_all)
        killed = kill_engine_after(4, tmp_path, computed)
        found = computed.result(timeout=300)
    assert killed
    assert sorted(row["id"] for row in found) == list(range(24))
    assert {row["finish_reason"] for row in found} == {"length"}
    with open_store(tmp_path) as store:
        for row in found:
            whole = [
                one for one in store.for_request(row["request_id"]) if one.status == "complete"
            ]
            assert [one.response for one in whole] == [row["answer"]]


def kill_engine_after(count: int, folder: Path, computed: Future[Any]) -> bool:
    """Kill the engine of the cluster once so many answers are whole; False if it has ended."""
    while not computed.done():
        paths = list(folder.glob("*.lmdb"))
        if paths:
            with open_store(paths[0]) as store:
                if sum(entry.status == "complete" for entry in store.entries()) >= count:
                    below = psutil.Process().children(recursive=True)
                    next(one for one in below if "EngineCore" in one.name()).kill()
                    return True
        time.sleep(0.1)
    return False
