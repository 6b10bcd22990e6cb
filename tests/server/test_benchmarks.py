"""The benchmarks against the real server: every answer labelled in the store, by its own id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.benchmarks import BenchmarkError, run_benchmark
from activation_logging.benchmarks.labels import label_run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tasks" / "shortform" / "short_facts.py"


def run(server: Any, folder: Path, benchmark: str = "short_facts", **options: Any) -> Any:
    return run_benchmark(
        benchmark,
        model=server.model,
        output_base_dir=folder,
        **{"n": 4, "base_url": server.base_url, **options},
    )


def labels_of(server: Any, result: Any, evaluator: str) -> dict[str, str]:
    """Label by question, from the store alone: found by the ids in the answers' file."""
    found = {}
    with open_store(server.lmdb_path) as store:
        for answer in result.journal.answers.values():
            (entry,) = store.for_request(answer.request_id)
            assert entry.status == "complete"
            assert entry.response == answer.generation
            assert entry.tags["sample_id"] == answer.id
            assert entry.tags["entity"] == answer.name
            assert entry.messages[-1]["content"] == answer.prompt
            assert len(entry.logprobs) == len(entry.response_token_ids)
            assert entry.response_activations.shape[0] == len(entry.response_token_ids)
            found[answer.id] = entry.evaluations[evaluator].label
    return found


@pytest.mark.parametrize("way", ["store", "http"])
def test_every_answer_is_labelled_where_it_lies(server: Any, tmp_path: Path, way: str) -> None:
    store = server.lmdb_path if way == "store" else None
    result = run(server, tmp_path, store=store, seed=1 if way == "store" else 2)
    assert result.notes == ()
    assert result.labels.written == result.results["n"] > 20
    labels = labels_of(server, result, "short_facts")
    assert labels == {name: verdict.label for (name, _), verdict in result.journal.verdicts.items()}
    counts = {label: n for label, n in result.results["counts"].items() if n}
    assert Counter(labels.values()) == counts


def test_nonsense_is_described(server: Any, tmp_path: Path) -> None:
    result = run(server, tmp_path, "nonsense_mixed_entities", n=1, store=server.lmdb_path)
    labels = labels_of(server, result, "refusal")
    assert len(labels) == 8
    assert result.results["metrics"]["refusal_rate"]["n"] <= 4
    with open_store(server.lmdb_path) as store:
        tagged = [e for e in store.entries() if e.tags.get("run") == run_id(result)]
        assert Counter(entry.tags["kind"] for entry in tagged) == {"made_up": 4, "real": 4}


def test_a_killed_run_goes_on_and_ends_like_an_unbroken_one(server: Any, tmp_path: Path) -> None:
    whole = run(server, tmp_path / "whole", seed=3, n=4, max_connections=1)
    command = [
        sys.executable, str(SCRIPT), "--do_inference", "--do_eval", "--N", "4", "--seed", "3",
        *("--tested_model", server.model, "--base_url", server.base_url),
        *("--lmdb_path", str(server.lmdb_path), "--max_connections", "1"),
        *("--output_base_dir", str(tmp_path / "killed")),
    ]  # fmt: skip
    folder = tmp_path / "killed" / whole.folder.relative_to(tmp_path / "whole")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(lines(folder / "generation.jsonl")) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = lines(folder / "generation.jsonl")
    assert 6 <= len(kept) < len(whole.questions)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    answers = lines(folder / "generation.jsonl")
    assert answers[: len(kept)] == kept
    assert {a["id"]: a["generation"] for a in answers} == {
        name: answer.generation for (name, _), answer in whole.journal.answers.items()
    }
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["counts"] == whole.results["counts"]
    assert results["metrics"] == whole.results["metrics"]
    with open_store(server.lmdb_path) as store:
        for answer in answers:
            entries = [
                e for e in store.for_request(answer["request_id"]) if e.finish_reason != "abort"
            ]
            assert len(entries) == 1, "no question is answered twice"
            assert "short_facts" in entries[0].evaluations


def test_labels_can_be_applied_later(server: Any, tmp_path: Path) -> None:
    result = run(server, tmp_path, seed=4, n=1, do_eval=False)
    judged = run(
        server, tmp_path, seed=4, n=1, do_inference=False, base_url="http://127.0.0.1:9/v1"
    )
    assert "labels were not written" in judged.notes[0]
    report = label_run(result.folder, store=server.lmdb_path)
    assert report.written == len(result.questions)
    assert len(labels_of(server, judged, "short_facts")) == report.written


def test_a_model_may_judge_and_is_not_logged(server: Any, tmp_path: Path) -> None:
    """SmolLM2 is no good judge, but vLLM holds it to the schema, so every verdict is one."""
    result = run(
        server,
        tmp_path,
        "nonsense_mixed_entities",
        n=1,
        seed=9,
        store=server.lmdb_path,
        judge=server.model,
        judge_base_url=server.base_url,
    )
    server.flush()
    assert sum(result.results["counts"].values()) == 8
    with open_store(server.lmdb_path) as store:
        assert not [entry for entry in store.entries() if "<<<ANSWER" in entry.prompt]
        (entry,) = store.for_request(next(iter(result.journal.answers.values())).request_id)
        assert entry.evaluations["refusal"].judge.startswith(server.model)


def test_the_wrong_model_is_said_before_anything_is_asked(server: Any, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=f"it serves {server.model}"):
        run_benchmark(
            "short_facts", model="org/none", base_url=server.base_url, output_base_dir=tmp_path
        )


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def run_id(result: Any) -> str:
    return str(json.loads((result.folder / "run.json").read_text())["run_id"])
