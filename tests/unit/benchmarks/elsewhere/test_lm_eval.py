"""Samples that lm-evaluation-harness 0.4.13 wrote of a task of three sums, asked the default model.

In ``lm_eval_samples/``: as completions, as chats, and as a choice between given texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.benchmarks.elsewhere.apply import label_from
from activation_logging.benchmarks.entries import StoreLabels
from activation_logging.store import StoreWriter
from tests.fixtures.answers import put_answer

SAMPLES = Path(__file__).with_name("lm_eval_samples")


def file_of(kind: str) -> Path:
    (found,) = (SAMPLES / kind).glob("*.jsonl")
    return found


def samples(kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file_of(kind).read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of what the server was asked: each prompt as a completion and as a chat."""
    writer = StoreWriter(tmp_path / "s.lmdb", role="test")
    for kind in ("completions", "chat"):
        for sample in samples(kind):
            if sample["filter"] == "none":
                prompt, name = (
                    sample["arguments"]["gen_args_0"]["arg_0"],
                    f"{kind}-{sample['doc_id']}",
                )
                about = {"prompt": prompt, "response": sample["resps"][0][0]}
                if kind == "chat":
                    messages = json.loads(prompt[0])
                    about |= {
                        "messages": messages,
                        "prompt": f"<user>{messages[0]['content']}<bot>",
                    }
                put_answer(writer, name, **about)
    writer.close()
    return tmp_path / "s.lmdb"


def labels_of(path: Path, evaluator: str) -> dict[str, str]:
    with open_store(path) as store:
        return {
            entry.request_id: entry.evaluations[evaluator].label
            for entry in store.entries()
            if evaluator in entry.evaluations
        }


def test_each_filter_is_an_evaluator(path: Path) -> None:
    outcome = label_from(file_of("completions"), StoreLabels(path))
    assert outcome.format == "lm-evaluation-harness"
    assert outcome.problems == []
    right = {
        "completions-0": "correct",
        "completions-2": "correct",
        "completions-4": "hallucinated",
    }
    assert labels_of(path, "toy_sums/number") == right
    assert labels_of(path, "toy_sums") == dict.fromkeys(right, "hallucinated")
    with open_store(path) as store:
        (entry,) = store.for_request("completions-4")
        label = entry.evaluations["toy_sums/number"]
    assert (label.score, label.judge) == (1.0, "lm-eval/toy_sums/exact_match")
    assert label.details == {
        "task": "toy_sums",
        "sample_id": "4",
        "metric": "exact_match",
        "value": 0.0,
        "filter": "number",
        "gold": "17",
    }


def test_a_chat_is_found_by_its_question(path: Path) -> None:
    outcome = label_from(file_of("chat"), StoreLabels(path), name="chat")
    assert (outcome.written, outcome.repeated) == (3, 3)
    assert labels_of(path, "chat").keys() == {"chat-0", "chat-2", "chat-4"}


@pytest.mark.parametrize(
    ("kind", "metric", "reason"),
    [
        ("choice", None, "nothing was generated: the task compares the probabilities"),
        ("completions", "bleu", "a value of type list stands for no label"),
        ("completions", "f1", "the sample has no metric 'f1', only exact_match, bleu"),
    ],
)
def test_what_is_no_label(path: Path, kind: str, metric: str | None, reason: str) -> None:
    outcome = label_from(file_of(kind), StoreLabels(path), metric=metric)
    assert outcome.written == 0
    assert len(outcome.problems) == len(samples(kind))
    assert all(problem.reason.startswith(reason) for problem in outcome.problems)
    assert outcome.problems[0].place == "line 1 (doc 0)"


def test_several_answers_with_one_score(path: Path, tmp_path: Path) -> None:
    sample = samples("completions")[0]
    sample["resps"] = [[" 2", " 3"]]
    (tmp_path / "mine.jsonl").write_text(json.dumps(sample))
    (problem,) = label_from(tmp_path / "mine.jsonl", StoreLabels(path)).problems
    assert problem.reason == "2 answers have one score between them"
