from __future__ import annotations

import json

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.dataset.positions import (
    NAMED_POSITIONS,
    Place,
    Rows,
    find_rows,
    judged_answer,
    locate_span,
    parse_position,
    pool_rows,
)
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.records import Evaluation
from activation_logging.tags import GROUP_TAGS, TRANSFER_TAGS
from tests.fixtures.planted import build

# Five prompt tokens, four response tokens: states at positions 0 to 7.
PLACE = Place(num_prompt=5, num_response=4, first=0, num_rows=8, span=(1, 3))


@pytest.mark.parametrize(
    ("position", "rows"),
    [
        ("prompt_last", Rows(4, 5, "one")),
        ("response_first", Rows(5, 6, "one")),
        ("response_last", Rows(7, 8, "one")),
        ("response_mean", Rows(5, 8, "mean")),
        ("response_max", Rows(5, 8, "max")),
        ("answer_span", Rows(7, 8, "one")),
        (0, Rows(0, 1, "one")),
        (-1, Rows(7, 8, "one")),
        (-8, Rows(0, 1, "one")),
    ],
)
def test_rows_of_a_position(position, rows):
    assert find_rows(position, PLACE) == rows


def test_rows_count_from_the_first_that_was_logged():
    response_only = PLACE._replace(first=4, num_rows=4)
    assert find_rows("prompt_last", response_only) == Rows(0, 1, "one")
    assert find_rows("response_mean", response_only) == Rows(1, 4, "mean")
    with pytest.raises(InputMissing, match="not logged"):
        find_rows(0, response_only)


def test_one_token_answers_have_no_state_of_their_own():
    single = Place(num_prompt=5, num_response=1, first=0, num_rows=5)
    assert find_rows("response_last", single) == find_rows("prompt_last", single)
    for position in ("response_first", "response_mean", "response_max"):
        with pytest.raises(InputMissing, match="too short"):
            find_rows(position, single)


@pytest.mark.parametrize("position", [8, -9, 100])
def test_indices_outside_are_named(position):
    with pytest.raises(InputMissing, match="too short"):
        find_rows(position, PLACE)


def test_a_span_that_ends_with_the_last_token_ends_with_its_last_state():
    assert find_rows("answer_span", PLACE._replace(span=(2, 4))) == Rows(7, 8, "one")
    with pytest.raises(InputMissing, match="too short"):
        find_rows("answer_span", PLACE._replace(span=(3, 4)))


def test_prompt_only_rows_have_no_response():
    prompt_only = PLACE._replace(num_rows=5)
    assert find_rows("prompt_last", prompt_only) == Rows(4, 5, "one")
    with pytest.raises(InputMissing, match="not logged"):
        find_rows("response_last", prompt_only)


def test_parse_position():
    assert [parse_position(name) for name in NAMED_POSITIONS] == list(NAMED_POSITIONS)
    assert parse_position("-1") == -1
    with pytest.raises(DatasetError, match="prompt_last"):
        parse_position("middle")


def test_pooling():
    rows = np.array([[1, 5], [3, 1]], np.float32)
    assert pool_rows(rows, "mean").tolist() == [2, 3]
    assert pool_rows(rows, "max").tolist() == [3, 5]
    assert pool_rows(rows[:1], "one").tolist() == [1, 5]


@pytest.mark.parametrize(
    ("response", "tokens", "tags", "span"),
    [
        ("It is Paris.", ["It", " is", " Par", "is", ".", "<eos>"], {"answer": "paris"}, (2, 4)),
        ("It is São Paulo", ["It", " is", " São", " Paulo"], {"gold": "Sao Paulo"}, (2, 4)),
        ("Those: Os", ["Those", ":", " Os"], {"gold": "Os"}, (2, 3)),
        ("A or B", ["A", " or", " B"], {"gold": json.dumps(["X", "B"])}, (2, 3)),
        ("ok 🦉 owl", ["ok", " �", "�", "�", " owl"], {"name": "owl"}, (4, 5)),
        # A leading space that the answer's text has lost.
        ("Rome it is", [" Rome", " it", " is"], {"name": "rome"}, (0, 1)),
        ("Straße 5", ["Stra", "ße", " 5"], {"name": "STRASSE"}, (0, 2)),
    ],
)
def test_spans_are_found(response, tokens, tags, span):
    assert locate_span(response, tokens, tags) == span


@pytest.mark.parametrize(
    ("details", "where"),
    [
        ({"answer_start": 7, "answer_end": 11}, (7, 11)),
        ({"answer_start": 0, "answer_end": 12}, (0, 12)),
        ({"answer_start": 7}, None),
        ({"answer_start": 7, "answer_end": 99}, None),
        ({"answer_start": 7, "answer_end": 7}, None),
        ({"answer_start": -1, "answer_end": 3}, None),
        ({"answer_start": False, "answer_end": True}, None),
        ({"answer_start": "7", "answer_end": "11"}, None),
        ({}, None),
    ],
)
def test_a_judge_says_where_the_answer_is(details, where):
    verdict = Evaluation("facts", "hallucinated", details=details)
    assert judged_answer("It is Rome. ", [Evaluation("other", "correct"), verdict]) == where


def test_what_the_judge_says_comes_before_any_tag(tmp_path):
    """In wrong answers too, which do not hold the gold answer."""
    build(tmp_path / "s", n=4)
    with open_store(tmp_path / "s", writable=True) as store:
        wrong = next(e for e in store.entries() if e.evaluations["facts"].label == "hallucinated")
        assert not Place.of(wrong).judged
        said = wrong.response.rstrip(".").rpartition(" ")[2]
        start = wrong.response.index(said)
        details = {"answer_start": start, "answer_end": start + len(said)}
        for name, about in (("facts", details), ("other", {"answer_start": 0, "answer_end": 1})):
            store.put_evaluation(wrong.key, name=name, label="hallucinated", details=about)
        entry = store[wrong.key]
        place = Place.of(entry, evaluations=[entry.evaluations["facts"]])
        assert place.judged
        assert "".join(entry.response_tokens[slice(*place.span)]).strip() == said
        assert Place.of(entry, evaluations=[entry.evaluations["other"]]).span == (0, 1)
        # Without a word on whose, any judge's; the row is that of the last of the tokens.
        assert Place.of(entry).judged
        rows = find_rows("answer_span", place)
        assert rows.start == place.num_prompt + place.span[1] - 1
        assert not Place.of(entry, evaluations=[]).judged


@pytest.mark.parametrize(
    ("tokens", "tags", "reason"),
    [
        (["Rome"], {}, "no tag"),
        (None, {"gold": "Rome"}, "were not logged"),
        (["Rome"], {"gold": "Oslo"}, "does not occur.*--eval_overwrite"),
        (["Rome"], {"entity": "Oslo"}, "does not occur in the answer$"),
        (["Something", "else"], {"gold": "Rome"}, "do not add up"),
    ],
)
def test_missing_spans_have_a_reason(tokens, tags, reason):
    with pytest.raises(InputMissing, match=reason):
        locate_span("Rome", tokens, tags)


@pytest.mark.parametrize(
    ("gold", "answer", "tokens", "span"),
    [
        ((), "The Blue Oslo is a bird.", ["The", " Blue", " Oslo", " is", " a", " bird."], (1, 3)),
        (("Paris",), "Oslo? No, Paris.", ["Oslo", "?", " No,", " Paris", "."], (3, 4)),
    ],
    ids=["the name asked about", "the gold answer comes first"],
)
def test_what_a_benchmark_writes_is_found(gold, answer, tokens, span):
    """The tags are those of a question, so that neither side can rename one alone."""
    pytest.importorskip("inspect_ai", reason="the extra 'eval' is not installed")
    from activation_logging.benchmarks.questions import Question

    kind = "fact" if gold else "made_up"
    name = "Oslo" if gold else "Blue Oslo"
    question = Question("q1", "?", name, "animal", kind, "animal/x", "g", 0, gold=gold)
    tags = question.tags("a_benchmark")
    assert locate_span(answer, tokens, tags) == span
    assert {*GROUP_TAGS, *TRANSFER_TAGS} <= tags.keys()
