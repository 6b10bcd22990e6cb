"""``generate --ray`` with one real engine: answers, resuming, and an engine that cannot start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

import ray

from activation_logging import open_store
from activation_logging.errors import ClusterError
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
def test_a_file_and_then_the_same_prompts_as_a_dataset(
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

    rows = [{"prompt": None, "messages": None, "tags": {"split": None}} | one for one in LINES]
    del rows[2]
    dataset = ray.data.from_items([*rows, rows[0], {"prompt": "", "messages": None}])
    # All are answered, so that no engine has to start.
    found = generate(dataset, path=folder, **asked).take_all()
    texts = {entry.request_id: entry.response for entry in entries}
    assert [row["answer"] for row in found[:4]] == [texts[row["request_id"]] for row in found[:4]]
    assert found[0]["request_id"] == found[3]["request_id"]
    assert (found[4]["answer"], found[4]["error"]) == (None, "needs either 'prompt' or 'messages'")
    with open_store(store_path) as store:
        assert len(store) == 3


@pytest.mark.usefixtures("settings")
def test_an_engine_that_cannot_start_is_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(LINES[0]) + "\n", encoding="utf-8")
    (tmp_path / "model").mkdir()
    with pytest.raises(ClusterError, match=r"no engine is left: .*config\.json"):
        answer_file(
            prompts, model=str(tmp_path / "model"), sampling={}, folder=tmp_path / "s", engines=2
        )
