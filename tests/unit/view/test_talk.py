"""Questions as a page sends them, and answers as it is told of them."""

from __future__ import annotations

import json

import pytest

from activation_logging.errors import ViewError
from activation_logging.view.talk import Question, Told

ASK = [{"role": "user", "content": "Who?"}]


def question(**fields):
    return Question.of({"messages": json.dumps(ASK), "model": "m", **fields})


def test_a_question_with_probes_and_a_stop():
    body = question(
        probes="known,claims", logs="1", stop="tokens", stop_probe="claims", above="0.9",
        tokens="3", max_tokens="8", temperature="0",
    ).body()  # fmt: skip
    assert body["messages"] == ASK
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (8, 0.0, True)
    assert body["vllm_xargs"] == {
        "activation_tags": {"source": "chat"},
        "activation_scores": "known,claims",
        "activation_stop": {"probe": "claims", "above": 0.9, "tokens": 3},
    }
    before = question(stop="prompt", stop_probe="known", above="0.8").body()
    assert before["vllm_xargs"]["activation_stop"] == {"probe": "known", "prompt_above": 0.8}


def test_a_server_that_is_not_ours_gets_nothing_of_ours():
    assert "vllm_xargs" not in question().body()


def test_a_plain_text_is_continued():
    asked = question(plain="1")
    assert asked.path == "/v1/completions"
    assert asked.body()["prompt"] == "Who?"
    assert "messages" not in asked.body()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": "{"}, "no question"),
        ({"messages": "[]"}, "no question"),
        ({"messages": json.dumps([{"role": "user", "content": ""}])}, "no question"),
        ({"messages": json.dumps([{"role": "tool", "content": "x"}])}, "a message has a role"),
        ({"messages": json.dumps([["user", "x"]])}, "a message has a role"),
        ({"messages": "[" * 100_000}, "no question"),
        ({"messages": "x" * 1_000_001}, "begin anew"),
        ({"temperature": "warm"}, "temperature: 'warm' is no number from 0 to 100"),
        ({"temperature": "nan"}, "no number"),
        ({"max_tokens": "0"}, "no number"),
        ({"seed": "9" * 30}, "no number"),
        ({"stop": "tokens", "above": "0.5"}, "names no probe"),
        ({"stop": "tokens", "stop_probe": "p"}, "no threshold"),
        ({"stop": "tokens", "stop_probe": "p", "above": "1.5"}, "above: '1.5'"),
        ({"stop": "else", "stop_probe": "p", "above": "0.5"}, "names no probe"),
    ],
)
def test_bad_questions_are_refused(fields, says):
    with pytest.raises(ViewError, match=says):
        question(**fields)


def chunk(text="", tokens=(), scores=None, **choice):
    content = [{"token": t, "logprob": p, "top_logprobs": []} for t, p in tokens]
    choice = {"delta": {"content": text}, "logprobs": {"content": content}, **choice}
    return {
        "id": "chatcmpl-1",
        "choices": [choice | ({"activation_scores": scores} if scores else {})],
    }


def test_scores_find_their_tokens_also_when_they_come_later():
    told = Told()
    first = told.chunk(chunk(scores={"p": {"tokens": [], "prompt": 0.25}}))
    assert first == {"prompt": {"p": [0.25, "negative level-10"]}}
    one = told.chunk(chunk("A", [("A", -0.5)], {"p": {"tokens": []}}))
    assert one["tokens"] == [
        {"text": "A", "logprob": -0.5, "shade": "unlikely level-2", "more": ""}
    ]
    assert "scores" not in one
    two = told.chunk(chunk("BC", [("B", 0.0), ("C", -9.0)], {"p": {"tokens": [1.0, None]}}))
    assert two["scores"] == {"p": [[0, 1.0, "positive level-20"]]}
    end = chunk(scores={"p": {"tokens": [0.5], "answer": 0.75}}, finish_reason="stop")
    end["choices"][0]["stop_reason"] = "activation:p"
    last = told.chunk(end)
    assert last["scores"] == {"p": [[2, 0.5, ""]]}
    assert last["answer"] == {"p": [0.75, "positive level-10"]}
    assert last["ended"] == {"by": "stop", "reason": "activation:p"}
    assert told.request_id == "chatcmpl-1"


def test_texts_of_a_chunk_that_are_not_its_tokens():
    # Half a letter has no text yet; the next token brings the whole one.
    (token,) = Told().chunk(chunk("", [("\ufffd", -1.0)]))["tokens"]
    assert token["text"] == ""
    both = Told().chunk(chunk("é!", [("\ufffd", -1.0), ("!", -1.0)]))["tokens"]
    assert [one["text"] for one in both] == ["é!", ""]
    (alone,) = Told().chunk({"choices": [{"delta": {"content": "x"}, "logprobs": None}]})["tokens"]
    assert (alone["text"], alone["logprob"]) == ("x", None)


def test_thoughts_are_told_apart():
    thought = {"choices": [{"delta": {"reasoning": "hm"}, "logprobs": None}]}
    (token,) = Told().chunk(thought)["tokens"]
    assert token["thought"] is True


def test_an_error_in_the_stream_is_raised():
    with pytest.raises(ViewError, match="the server says: no room"):
        Told().chunk({"error": {"message": "no room", "code": 500}})
    assert Told().chunk({"choices": [], "usage": {}}) == {}
