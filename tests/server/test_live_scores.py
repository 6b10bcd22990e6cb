"""Scores in answers: every route, streamed and whole, as the openai client reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.responses import ResponseTextDeltaEvent

from tests.fixtures.server import RunningServer
from tests.server.test_fidelity import wait_for_entry
from tests.server.told import SHOWN, Stream, asking, check_told, client

CHAT = [{"role": "user", "content": "Who was Ada Lovelace?"}]
PROMPT = "The capital of France is"
SAMPLED: dict[str, Any] = {"n": 3, "temperature": 1, "seed": 5, "max_tokens": 9}


def complete(server: RunningServer, prompt: Any = PROMPT, **options: Any) -> Any:
    given = {"max_tokens": 6, "temperature": 0, **options}
    return client(server).completions.create(model=server.model, prompt=prompt, **given)


def chat(server: RunningServer, **options: Any) -> Any:
    given = {"max_tokens": 6, "temperature": 0, **options}
    create: Any = client(server).chat.completions.create
    return create(model=server.model, messages=CHAT, **given)


def entries(server: RunningServer, name: str) -> list[Any]:
    server.flush()
    return server.store().for_request(name)


class TestChat:
    def test_stream(self, server: RunningServer) -> None:
        extra = asking(return_token_ids=True)
        found = Stream(chat(server, stream=True, extra_body=extra))
        (entry,) = entries(server, found.id)
        check_told(found.told[0], entry)
        # The role comes first, and then tokens. The score of each comes with the next.
        *scores, last = found.chunks[0]
        assert scores == [max(count - 1, 0) for count in found.tokens[0][:-1]]
        assert last == found.tokens[0][-1] == 6

    def test_whole(self, server: RunningServer) -> None:
        answer = chat(server, extra_body=asking())
        (entry,) = entries(server, answer.id)
        check_told(answer.choices[0].model_extra["activation_scores"], entry)

    def test_choices_whole(self, server: RunningServer) -> None:
        answer = chat(server, extra_body=asking(), **SAMPLED)
        there = entries(server, answer.id)
        assert len(there) == 3
        for entry in there:
            choice = answer.choices[entry.choice]
            check_told(choice.model_extra["activation_scores"], entry)

    def test_choices_in_a_stream(self, server: RunningServer) -> None:
        found = Stream(chat(server, stream=True, extra_body=asking(), **SAMPLED))
        there = entries(server, found.id)
        assert len(there) == len(found.told) == 3
        for entry in there:
            check_told(found.told[entry.choice], entry)

    def test_names_in_the_order_asked_for(self, server: RunningServer) -> None:
        body = {"vllm_xargs": {"activation_scores": "prompt, token"}}
        scores = chat(server, extra_body=body).choices[0].model_extra["activation_scores"]
        assert list(scores) == ["prompt", "token"]


class TestCompletions:
    @pytest.mark.parametrize("stream", [False, True])
    def test_lists_of_prompts_with_choices(self, server: RunningServer, stream: bool) -> None:
        options = {"n": 2, "temperature": 0.8, "seed": 3}
        prompts = [PROMPT, "Water is", "Once upon a time"]
        extra = asking(return_token_ids=True)
        answer = complete(server, prompts, stream=stream, extra_body=extra, **options)
        if stream:
            found = Stream(answer)
            name, told = found.id, found.told
            for index, chunks in found.chunks.items():
                # Of several prompts, the next output may be there before a chunk is written.
                behind = np.array(found.tokens[index][:-1]) - chunks[:-1]
                assert set(behind.tolist()) <= {0, 1}
        else:
            name = answer.id
            told = {c.index: c.model_extra["activation_scores"] for c in answer.choices}
        there = entries(server, name)
        assert len(there) == len(told) == 6
        for entry in there:
            check_told(told[entry.choice], entry)

    def test_echo_and_usage(self, server: RunningServer) -> None:
        options: dict[str, Any] = {"echo": True, "stream_options": {"include_usage": True}}
        found = Stream(complete(server, stream=True, extra_body=asking(), **options))
        (entry,) = entries(server, found.id)
        check_told(found.told[0], entry)
        assert found.texts[0] == PROMPT + entry.response

    def test_one_token(self, server: RunningServer) -> None:
        answer = complete(server, max_tokens=1, extra_body=asking())
        (entry,) = entries(server, answer.id)
        told = answer.choices[0].model_extra["activation_scores"]
        check_told(told, entry)
        assert told["token"]["tokens"] == [None]

    def test_invocations(self, server: RunningServer) -> None:
        body = {"model": server.model, "prompt": PROMPT, "max_tokens": 4, **asking()}
        answer = server.post("/invocations", body).json()
        (entry,) = entries(server, answer["id"])
        check_told(answer["choices"][0]["activation_scores"], entry)

    def test_a_prefix_from_the_cache(self, server: RunningServer) -> None:
        long = "One should know who walked on the Moon, and when that was. " * 12
        first, again = (complete(server, long, extra_body=asking()) for _ in range(2))
        told = [one.choices[0].model_extra["activation_scores"] for one in (first, again)]
        for answer, scores in zip((first, again), told, strict=True):
            check_told(scores, entries(server, answer.id)[0])


class TestResponses:
    def test_whole(self, server: RunningServer) -> None:
        answer = client(server).responses.create(
            model=server.model, input="Hello", max_output_tokens=6, extra_body=asking()
        )
        (entry,) = entries(server, answer.id)
        check_told((answer.model_extra or {})["activation_scores"], entry)

    def test_stream(self, server: RunningServer) -> None:
        stream = client(server).responses.create(
            model=server.model, input="Hello", max_output_tokens=6, stream=True, extra_body=asking()
        )
        told: dict[str, Any] = {name: {"tokens": []} for name in SHOWN}
        whole = None
        for event in stream:
            scores = (event.model_extra or {}).get("activation_scores", {})
            if scores:
                assert isinstance(event, ResponseTextDeltaEvent) or "answer" in scores["token"]
            for name, found in scores.items():
                told[name] |= {**found, "tokens": told[name]["tokens"] + found["tokens"]}
            if event.type in ("response.completed", "response.incomplete"):
                whole = event.response
        assert whole is not None
        (entry,) = entries(server, whole.id)
        check_told(told, entry)
        check_told((whole.model_extra or {})["activation_scores"], entry)


class TestStops:
    """A probability is above 0, so a threshold of 0 is always passed."""

    @pytest.mark.parametrize("tokens", [1, 3])
    @pytest.mark.parametrize("form", [dict, json.dumps, lambda stop: [stop]], ids=str)
    def test_after_tokens_in_a_row(
        self, server: RunningServer, tokens: int, form: Callable[[Any], Any]
    ) -> None:
        stop = form({"probe": "token", "above": 0, "tokens": tokens})
        found = Stream(chat(server, stream=True, max_tokens=20, extra_body=asking(stop)))
        assert found.reasons[0] == ("stop", "activation:token")
        (entry,) = entries(server, found.id)
        assert (entry.finish_reason, entry.stop_reason) == ("stop", "activation:token")
        assert (entry.status, entry.num_tokens[1]) == ("complete", tokens)
        # All tokens that are left have been read: none is without a score.
        assert len(entry.positions) == sum(entry.num_tokens)
        assert None not in found.told[0]["token"]["tokens"]
        check_told(found.told[0], entry)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("ask", [chat, complete])
    def test_before_the_first_token(
        self, server: RunningServer, ask: Callable[..., Any], stream: bool
    ) -> None:
        extra = asking({"probe": "prompt", "prompt_above": 0})
        logged = {"logprobs": True} if ask is chat else {"logprobs": 1}
        answer = ask(server, stream=stream, extra_body=extra, **logged)
        if stream:
            found = Stream(answer)
            assert (found.texts, found.reasons) == ({0: ""}, {0: ("stop", "activation:prompt")})
            name, told = found.id, found.told[0]
        else:
            choice = answer.choices[0]
            assert (choice.finish_reason, choice.model_extra["stop_reason"]) == (
                "stop",
                "activation:prompt",
            )
            assert answer.usage.completion_tokens == 0
            name, told = answer.id, choice.model_extra["activation_scores"]
        (entry,) = entries(server, name)
        assert (entry.response, entry.status) == ("", "complete")
        assert len(entry.positions) == entry.num_tokens[0]
        check_told(told, entry)

    def test_of_choices_one_by_one(self, server: RunningServer) -> None:
        options = {"n": 3, "temperature": 1, "seed": 5, "max_tokens": 16, "extra_body": asking()}
        free = complete(server, **options)
        highest = sorted(
            max(c.model_extra["activation_scores"]["token"]["tokens"][:-1]) for c in free.choices
        )
        assert highest[0] < highest[1]
        stop = {"probe": "token", "above": (highest[0] + highest[1]) / 2}
        answer = complete(server, **{**options, "extra_body": asking(stop)})
        reasons = [(c.finish_reason, c.model_extra["stop_reason"]) for c in answer.choices]
        assert sorted(map(str, reasons)) == [
            "('length', None)",
            *["('stop', 'activation:token')"] * 2,
        ]
        for entry in entries(server, answer.id):
            choice = answer.choices[entry.choice]
            check_told(choice.model_extra["activation_scores"], entry)
            assert (entry.stop_reason is None) == (choice.finish_reason == "length")

    def test_without_scores_the_answer_is_vllms_own(self, server: RunningServer) -> None:
        body = {"vllm_xargs": {"activation_stop": {"probe": "mean", "above": 0, "tokens": 2}}}
        choice = complete(server, extra_body=body).choices[0]
        assert choice.model_extra["stop_reason"] == "activation:mean"
        assert "activation_scores" not in choice.model_extra


class TestBadInput:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"activation_scores": "nobody"}, "no probe 'nobody'; choose among layer, mean"),
            ({"activation_stop": {"probe": "nobody", "above": 0.5}}, "no probe 'nobody'"),
            ({"activation_stop": {"probe": "token", "above": 1.5}}, "give a probability, 0 to 1"),
            ({"activation_stop": {"probe": "token", "above": 1, "tokens": 0}}, "at least 1"),
            ({"activation_stop": {"probe": "mean", "prompt_above": 0.5}}, "before the first token"),
            ({"activation_stop": "never"}, "is not JSON"),
        ],
    )
    def test_is_refused(
        self, server: RunningServer, arguments: Any, says: str, stream: bool
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=says):
            chat(server, stream=stream, extra_body={"vllm_xargs": arguments})

    def test_beams_have_none(self, server: RunningServer) -> None:
        body = {"model": server.model, "prompt": PROMPT, "use_beam_search": True, "n": 2}
        answer = server.post("/v1/completions", {**body, **asking()})
        assert answer.status_code == 400
        assert "beams have no scores" in answer.text

    def test_a_client_that_leaves_disturbs_nothing(self, server: RunningServer) -> None:
        for number in range(4):
            stream = complete(
                server, f"Tale {number}", stream=True, max_tokens=400, extra_body=asking()
            )
            for _ in range(3):
                next(stream)
            stream.close()
        answer = complete(server, extra_body=asking())
        check_told(
            answer.choices[0].model_extra["activation_scores"], entries(server, answer.id)[0]
        )


class TestTools:
    """Two API servers, each of which gets the scores of its own requests."""

    @pytest.fixture(scope="class")
    @classmethod
    def tools(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
        with serve(*flags, "--api-server-count", "2", model="tiny") as started:
            yield started

    @pytest.mark.parametrize("number", range(3))
    def test_calls(self, tools: RunningServer, number: int) -> None:
        function = {"name": "tell", "parameters": {"type": "object", "properties": {}}}
        options: dict[str, Any] = {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "tell"}},
            "max_tokens": 96 + number,
        }
        found = Stream(chat(tools, stream=True, extra_body=asking(), **options))
        answer = chat(tools, extra_body=asking(), **options)
        assert answer.choices[0].message.tool_calls is not None
        told = answer.choices[0].model_extra["activation_scores"]
        for name, scores in ((found.id, found.told[0]), (answer.id, told)):
            # The other API server may have written it, which no flush here reaches.
            entry = wait_for_entry(tools, name)
            check_told(scores, entry)


class TestKeeping:
    """A server that decides late whose rows it keeps, in a store that may not grow."""

    KEEP = "finish:length,score:mean>0.49"
    CEILING = 16_000_000

    @pytest.fixture(scope="class")
    @classmethod
    def keeping(cls, serve: Callable[..., Any]) -> Iterator[RunningServer]:
        env = {"ACTIVATION_KEEP": cls.KEEP, "ACTIVATION_MAX_SIZE": "16MB"}
        env["ACTIVATION_LAYERS"] = "all"
        with serve(env=env, model="tiny") as started:
            yield started

    def test_decided_at_the_end(self, keeping: RunningServer) -> None:
        """By how an answer ended, which the worker is not told, or by what a probe says of it."""
        usual: dict[str, Any] = {"n": 2, "temperature": 1, "max_tokens": 12}
        for number in range(8):
            # VLLM's front end finds a stop string; the worker may be a step ahead.
            complete(keeping, f"Tale {number}", **usual, seed=number, stop=[" ", "e", "a"])
            complete(keeping, f"Poem {number}", **usual, seed=number)
        stream = complete(keeping, "Left", stream=True, max_tokens=500)
        next(stream)
        stream.close()
        keeping.flush()
        with keeping.store() as store:
            found = [entry for entry in store.entries() if entry.response]
            kept = [entry.status == "complete" for entry in found]
            assert kept == [self.is_wanted(entry) for entry in found]
            reasons = {(entry.finish_reason, entry.status) for entry in found}
            counted = Counter(entry.status for entry in store.entries())
        assert reasons >= {("length", "complete"), ("stop", "complete"), ("stop", "unkept")}
        assert keeping.metric("activation_logging_unkept_total") == counted["unkept"]
        self.check_counts(keeping)

    @staticmethod
    def is_wanted(entry: Any) -> bool:
        above = entry.scores["mean"] > 0.49
        return entry.finish_reason == "length" or bool(above.any())

    @staticmethod
    def check_counts(server: RunningServer) -> None:
        """What ``/metrics`` says of statuses is what is in the store."""
        with server.store() as store:
            there = Counter(entry.status for entry in store.entries())
        start = 'activation_logging_store_status{status="'
        told = {
            name.removeprefix(start).removesuffix('"}'): count
            for name, count in server.samples().items()
            if name.startswith(start) and count
        }
        assert told == there

    def test_the_oldest_rows_make_room(self, keeping: RunningServer) -> None:
        """More than twice as many as there is room for, while requests go on."""
        first = complete(keeping, [list(range(3, 300))], max_tokens=2)
        (entry,) = entries(keeping, first.id)
        label = {"name": "judge", "label": "correct"}
        route = f"/v1/activations/{entry.key}/evaluations"
        assert keeping.post(route, label).status_code == 201
        prompts = [[3 + (7 * n + i * i) % 1000 for i in range(500)] for n in range(30)]
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(complete, keeping, [prompt], max_tokens=2) for prompt in prompts]
            for one in asked:
                one.result(timeout=120)
                assert (keeping.lmdb_path / "data.mdb").stat().st_size <= self.CEILING
        # What is removed after a commit is counted with the next one: of answers that take no room.
        for _ in range(2):
            complete(keeping, [[3, 4]], max_tokens=2)
            keeping.flush()
        with keeping.store() as store:
            found = [store.for_request(one.result().id)[0] for one in asked]
            gone = [entry for entry in found if entry.status == "unkept"]
            assert {entry.status for entry in found} == {"complete", "unkept"}
            assert all("ACTIVATION_MAX_SIZE" in str(entry.status_reason) for entry in gone)
            assert all(entry.response and entry.scores for entry in gone)
            pruned = sum("MAX_SIZE" in str(one.status_reason) for one in store.entries())
            assert store[entry.key].status == "complete"
        assert keeping.metric("activation_logging_pruned_total") == pruned > 0
        for name in ("dropped", "lost", "errors"):
            assert keeping.metric(f"activation_logging_{name}_total") == 0
        self.check_counts(keeping)
