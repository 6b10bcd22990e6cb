"""HTTP answers with scores: every other byte is vLLM's, and every chunk gets what it is due."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_logging.settings import Settings
from activation_logging.vllm_plugin.middleware import RequestMiddleware
from activation_logging.vllm_plugin.probe_desk import ProbeDesk
from activation_logging.vllm_plugin.scored_answers import AnswerScores, ScoredAnswer, join

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
FIRST = {"a": {"prompt": 0.5, "tokens": []}, "b": {"prompt": None, "tokens": []}}
NEXT = {"a": {"tokens": [0.25]}, "b": {"tokens": [None]}}
LAST = {"a": {"tokens": [0.75, None], "answer": 0.75}, "b": {"tokens": [None, None], "answer": 0.1}}
WHOLE = {
    "a": {"prompt": 0.5, "tokens": [0.25, 0.75, None], "answer": 0.75},
    "b": {"prompt": None, "tokens": [None] * 3, "answer": 0.1},
}
NOTHING = {"a": {"tokens": []}, "b": {"tokens": []}}


def noted(*told: Any, part: bool = True) -> AnswerScores:
    scores = AnswerScores(["a", "b"])
    for one in told:
        scores.add(0, "turn", one, part=part)
    return scores


def answered(
    scores: AnswerScores, *bodies: Any, kind: str = JSON, status: int = 200, **headers: str
) -> tuple[dict[bytes, bytes], bytes]:
    """What the client gets of an answer in these pieces; one that is called notes more scores."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def answer() -> None:
        extended = ScoredAnswer(send, scores)
        given = {"content-type": kind, "content-length": "7", **headers}
        raw = [(name.encode(), value.encode()) for name, value in given.items()]
        await extended({"type": "http.response.start", "status": status, "headers": raw})
        pieces = [body for body in bodies if not callable(body)]
        for body in bodies:
            if callable(body):
                body()
                continue
            more = body is not pieces[-1]
            await extended({"type": "http.response.body", "body": body, "more_body": more})

    asyncio.run(answer())
    assert sent[0]["type"] == "http.response.start"
    return dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def scores_in(raw: bytes) -> list[Any]:
    """The scores of all choices of a stream, in order."""
    found = []
    for line in raw.split(b"\n"):
        if line.startswith(b"data: {"):
            found += [c["activation_scores"] for c in json.loads(line[6:])["choices"]]
    return found


class TestWhole:
    def test_each_choice_has_its_own(self) -> None:
        scores = noted(WHOLE, part=False)
        scores.add(1, "turn", LAST, part=False)
        body = {"id": "x", "choices": [{"index": 1, "text": "ü\u2028"}, {"index": 0}]}
        headers, raw = answered(scores, json.dumps(body, ensure_ascii=False).encode())
        found = json.loads(raw)
        assert [choice.pop("activation_scores") for choice in found["choices"]] == [LAST, WHOLE]
        assert found == body
        assert int(headers[b"content-length"]) == len(raw)
        assert "ü\u2028".encode() in raw

    def test_in_pieces(self) -> None:
        _, raw = answered(noted(WHOLE, part=False), b'{"choices":[{"in', b'dex":0}', b"]}")
        assert (
            raw
            == b'{"choices":[{"index":0,"activation_scores":%s}]}'
            % json.dumps(WHOLE, separators=(",", ":")).encode()
        )

    def test_an_answer_without_choices_has_them_at_the_top(self) -> None:
        _, raw = answered(noted(WHOLE, part=False), b'{"output": []}')
        assert json.loads(raw) == {"output": [], "activation_scores": WHOLE}

    def test_several_turns_of_one_answer_follow_each_other(self) -> None:
        scores = noted(WHOLE, part=False)
        scores.add(0, "next turn", WHOLE, part=False)
        found = scores.whole(0)["a"]
        assert found == {"prompt": 0.5, "tokens": [0.25, 0.75, None] * 2, "answer": 0.75}

    @pytest.mark.parametrize(
        ("given", "how"),
        [
            (b'{"error": 1}', {"status": 400}),
            (b'{"a":   1}', {"content-encoding": "gzip"}),
            (b'{"a":   1}', {"kind": "text/plain"}),
            (b"no JSON", {}),
            (b'[{"index": 0}]', {}),
        ],
    )
    def test_what_is_no_answer_stays(self, given: bytes, how: Any) -> None:
        assert answered(noted(WHOLE, part=False), given, **how)[1] == given


class TestStreams:
    def test_each_chunk_has_what_is_new(self) -> None:
        scores = noted()
        one = {"index": 0, "finish_reason": None}
        headers, raw = answered(
            scores,
            lambda: scores.add(0, "turn", FIRST, part=True),
            event(one),
            event(one),
            lambda: scores.add(0, "turn", NEXT, part=True),
            event(one),
            lambda: scores.add(0, "turn", LAST, part=True),
            event({"index": 0, "finish_reason": "stop"}),
            event(usage=3),
            b"data: [DONE]\n\n",
            kind=EVENTS,
        )
        assert scores_in(raw) == [FIRST, NOTHING, NEXT, LAST]
        assert raw.endswith(event(usage=3) + b"data: [DONE]\n\n")
        assert headers[b"content-length"] == b"7"

    def test_the_answers_own_score_waits_for_the_last_chunk(self) -> None:
        scores = noted(FIRST, NEXT, LAST)
        _, raw = answered(
            scores,
            event({"index": 0, "finish_reason": None}),
            event({"index": 0, "finish_reason": "tool_calls"}),
            kind=EVENTS,
        )
        first, last = scores_in(raw)
        assert first["a"] == {"prompt": 0.5, "tokens": [0.25, 0.75, None]}
        assert last["a"] == {"tokens": [], "answer": 0.75}

    def test_a_choice_that_has_not_begun(self) -> None:
        raw = answered(noted(FIRST), event({"index": 1}), kind=EVENTS)[1]
        assert scores_in(raw) == [NOTHING]

    def test_the_first_chunk_of_a_choice_brings_its_prompt(self) -> None:
        """VLLM writes all roles when the first of the choices has an output."""
        scores = noted(FIRST)
        roles = [event({"index": n, "delta": {"role": "assistant"}}) for n in range(3)]
        _, raw = answered(
            scores,
            *roles,
            event({"index": 0}),
            lambda: scores.add(2, "turn", LAST, part=True),
            event({"index": 0}),
            event({"index": 2, "finish_reason": "stop"}),
            b'data: {"error": {}}\n\n',
            b"data: [DONE]\n\n",
            kind=EVENTS,
        )
        lines = [line for line in raw.split(b"\n") if line]
        told = [json.loads(line[6:])["choices"][0] for line in lines[:-2]]
        assert [one["index"] for one in told] == [0, 0, 2, 0, 2, 1]
        assert [one["activation_scores"] for one in told[:3]] == [
            FIRST,
            NOTHING,
            {"a": {"tokens": [0.75, None]}, "b": {"tokens": [None, None]}},
        ]
        assert told[2]["delta"] == told[5]["delta"] == {"role": "assistant"}
        assert lines[-2:] == [b'data: {"error": {}}', b"data: [DONE]"]

    def test_wherever_the_pieces_are_cut(self) -> None:
        whole = event({"index": 0, "text": "a\n\nb"}) + b": ping\n\ndata: [DONE]\n\n"
        told = {"choices": [{"index": 0, "text": "a\n\nb", "activation_scores": FIRST}]}
        for cut in range(len(whole)):
            raw = answered(noted(FIRST), whole[:cut], whole[cut:], kind=EVENTS)[1]
            first, _, rest = raw.partition(b"\n\n")
            assert json.loads(first[6:]) == told
            assert rest == b": ping\n\ndata: [DONE]\n\n"

    def test_a_stream_that_breaks_off_gives_all_that_came(self) -> None:
        assert answered(noted(), b'data: {"choi', kind=EVENTS)[1] == b'data: {"choi'

    @settings(deadline=None)
    @given(st.lists(st.sampled_from("tce"), max_size=40), st.integers(1, 3))
    def test_nothing_is_lost_or_told_twice(self, order: list[str], choices: int) -> None:
        """Outputs are taken, and chunks written, in any order; at the end each choice ends."""
        scores = noted()
        told: list[Any] = [{} for _ in range(choices)]
        pieces: list[Any] = []

        def take(index: int, one: Any) -> None:
            told[index] = join(told[index], one)
            scores.add(index, "turn", one, part=True)

        for number, kind in enumerate(order):
            index = number % choices
            if kind == "t":
                one = {"a": {"tokens": [number / 64]}, "b": {"tokens": [None]}}
                pieces.append(lambda index=index, one=one: take(index, one))
            elif kind == "c":
                pieces.append(event({"index": index, "finish_reason": None}))
            else:
                pieces.append(b"data: {}\n\n")
        for index in range(choices):
            pieces += [lambda index=index: take(index, LAST), event({"index": index}),
                       event({"index": index, "finish_reason": "stop"})]  # fmt: skip
        raw = answered(scores, *pieces, kind=EVENTS)[1]
        seen: list[Any] = [{} for _ in range(choices)]
        for line in raw.split(b"\n"):
            for choice in json.loads(line[6:] or b"{}").get("choices", ()):
                seen[choice["index"]] = join(seen[choice["index"]], choice["activation_scores"])
        assert seen == told == [scores.whole(index) for index in range(choices)]


class TestOtherRoutes:
    def test_events_of_the_responses_api(self) -> None:
        def line(kind: str, **fields: Any) -> bytes:
            data = json.dumps({"type": kind, **fields})
            return f"event: {kind}\ndata: {data}\n\n".encode()

        scores = noted(FIRST, NEXT, LAST)
        _, raw = answered(
            scores,
            line("response.created", response={"id": "x"}),
            line("response.output_text.delta", delta="a"),
            line("response.output_text.done", text="a"),
            line("response.completed", response={"id": "x"}),
            kind=EVENTS,
        )
        created, delta, done, completed = (
            json.loads(part.split(b"data: ")[1]) for part in raw.split(b"\n\n")[:-1]
        )
        assert created == {"type": "response.created", "response": {"id": "x"}}
        assert delta["activation_scores"]["a"] == {"prompt": 0.5, "tokens": [0.25, 0.75, None]}
        assert "activation_scores" not in done
        assert completed["activation_scores"]["a"] == {"tokens": [], "answer": 0.75}
        assert completed["response"] == {"id": "x", "activation_scores": WHOLE}
        assert raw.startswith(b"event: response.created\ndata: ")

    @pytest.mark.parametrize(
        ("delta", "end"),
        [("content_block_delta", "message_delta"), ("content-delta", "message-end")],
    )
    def test_events_of_others(self, delta: str, end: str) -> None:
        pieces = [b"data: %s\n\n" % json.dumps({"type": kind}).encode() for kind in (delta, end)]
        _, raw = answered(noted(FIRST, LAST), *pieces, b'data: {"type": "x"}\n\n', kind=EVENTS)
        first, last, other = (json.loads(part[6:]) for part in raw.split(b"\n\n")[:-1])
        assert first["activation_scores"]["a"] == {"prompt": 0.5, "tokens": [0.75, None]}
        assert last["activation_scores"]["a"] == {"tokens": [], "answer": 0.75}
        assert other == {"type": "x"}


class TestMiddleware:
    """A request for scores that a server cannot give is refused before anything is streamed."""

    def passed(self, body: dict[str, Any]) -> tuple[int, bytes, Any]:
        """Status and body of the answer, and what the application answered through."""
        sent: list[Any] = []
        given: list[Any] = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            given.append(send)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"vLLM's own"})

        async def receive() -> dict[str, Any]:
            raw = json.dumps(body).encode()
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [],
            "app": FastAPI(),
        }
        asyncio.run(
            RequestMiddleware(application, Settings(), ProbeDesk(None), 30)(scope, receive, send)
        )
        found = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], found, given and given[0] is send

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("name", "value"),
        [("activation_scores", "all"), ("activation_stop", {"probe": "a", "above": 0.5})],
    )
    def test_a_server_without_probes_says_so(self, name: str, value: Any, stream: bool) -> None:
        status, body, _ = self.passed({"stream": stream, "vllm_xargs": {name: value}})
        assert status == 400
        error = json.loads(body)["error"]
        assert error["param"] == name
        assert "this server has no probes; start it with --activation-probe" in error["message"]

    @pytest.mark.parametrize("extra", [{}, {"vllm_xargs": {"activation_tags": {"a": "b"}}}])
    def test_nothing_stands_between_others_and_their_answers(self, extra: Any) -> None:
        assert self.passed({"prompt": "x", **extra}) == (200, b"vLLM's own", True)
