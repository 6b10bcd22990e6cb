"""Lines of a run's files that hold something else: one sentence that names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activation_logging.benchmarks import BenchmarkError
from activation_logging.benchmarks.journal import Journal, read_json, write_json
from activation_logging.benchmarks.questions import Question, read_questions, write_questions
from activation_logging.judges import Answer, Verdict
from activation_logging.records import Span

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


SPAN = {"start": 0, "end": 1, "label": "supported"}


def test_verdicts_keep_their_spans(tmp_path: Path) -> None:
    answer = Answer("a", "p", "n", "t", "Born in 1867.")
    spans = [Span(8, 12, "contradicted", claim="year \ud800", gold="1868"), Span(0, 4, "supported")]
    verdict = Verdict.on(answer, "hallucinated", "j", "w", spans=spans)
    journal = Journal(tmp_path, None)
    journal.add_answer(answer)
    journal.add_verdict(verdict)
    journal.add_verdict(Verdict.on(Answer("b", "p", "n", "t", "x"), "correct", "j", "w"))
    assert "spans" not in (tmp_path / "raw_eval_res.jsonl").read_text().splitlines()[1]
    again = Journal(tmp_path, None).verdicts
    assert again["a", 1].spans == tuple(reversed(spans))
    assert again["b", 1].spans == ()


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        (5, "spans is a list"),
        ({"a": 1}, "spans is a list"),
        ([5], r"spans\[0\] is a Span or a mapping"),
        ([{**SPAN, "start": True}], r"spans\[0\].start is a whole number"),
        ([{**SPAN, "label": "x"}], r"spans\[0\].label 'x' is not one of"),
        ([{**SPAN, "end": 2}], "span from 0 to 2 lies outside the answer 'a', which has 1 char"),
    ],
    ids=str,
)
def test_spans_of_verdicts(spans: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "generation.jsonl").write_text(json.dumps(ANSWER) + "\n")
    digest = Answer(**ANSWER).digest
    line = {**VERDICT, "answer": digest, "spans": spans}
    (tmp_path / "raw_eval_res.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BenchmarkError, match=r"raw_eval_res\.jsonl line 1: (the )?" + said):
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
