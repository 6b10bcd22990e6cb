"""Lines of a run's files that hold something else: one sentence that names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activation_logging.benchmarks import BenchmarkError
from activation_logging.benchmarks.journal import Journal, read_json, write_json
from activation_logging.benchmarks.questions import Question, read_questions, write_questions
from activation_logging.judges import Answer

ANSWER = {"id": "a", "prompt": "p", "name": "n", "type": "t", "generation": "g"}
VERDICT = {"id": "a", "label": "correct", "judge": "j", "words": "w", "answer": "d"}


@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, True])
@pytest.mark.parametrize("name", [*ANSWER, "request_id", "stratum", "finish_reason", "gold"])
def test_answers(name: str, value: Any, tmp_path: Path) -> None:
    if (name, value) == ("gold", ["x"]) or name == "id":
        pytest.skip("a list of right answers; any id is taken for its text")
    (tmp_path / "generation.jsonl").write_text(json.dumps({**ANSWER, name: value}) + "\n")
    with pytest.raises(BenchmarkError, match=r"generation\.jsonl line 1.*" + name):
        Journal(tmp_path, None)


@pytest.mark.parametrize("value", [None, 5, ["x"], {"a": 1}, True])
@pytest.mark.parametrize("name", [*VERDICT, "epoch", "details"])
def test_verdicts(name: str, value: Any, tmp_path: Path) -> None:
    if (name, value) == ("epoch", 5) or (name == "details" and value in (None, {"a": 1})):
        pytest.skip("it is one")
    (tmp_path / "raw_eval_res.jsonl").write_text(json.dumps({**VERDICT, name: value}) + "\n")
    with pytest.raises(BenchmarkError, match=r"raw_eval_res\.jsonl line 1.*" + name):
        Journal(tmp_path, None)


def test_any_text_survives(tmp_path: Path) -> None:
    text = "é \u2028 \x85 \0 \ud800 [/x] 'q' \"q\" \\ \n"
    answer = Answer("a", text, text, "t", text, request_id=text, finish_reason="stop")
    Journal(tmp_path / "run", None).add_answer(answer)
    assert list(Journal(tmp_path / "run", None).answers.values()) == [answer]
    write_json(tmp_path / "x.json", {text: text, "rate": float("nan")})
    assert read_json(tmp_path / "x.json") == {text: text, "rate": None}
    question = Question(text, text, text, "t", "made_up", "s", "g", 0)
    write_questions(tmp_path / "q.jsonl", [question])
    assert read_questions(tmp_path / "q.jsonl") == [question]


def test_deep_lines(tmp_path: Path) -> None:
    (tmp_path / "generation.jsonl").write_text('{"a":' * 50_000 + "\n")
    with pytest.raises(BenchmarkError, match=r"generation\.jsonl line 1 is not valid JSON"):
        Journal(tmp_path, None)
