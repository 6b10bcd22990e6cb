"""What the front end keeps of a request: messages, place, and how its tokens were chosen."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

from activation_logging.verify.alignment import is_greedy
from activation_logging.vllm_plugin.context import HttpRequest, Place, place_of
from activation_logging.vllm_plugin.origin import mark_accepted
from activation_logging.vllm_plugin.sampling import sampling_record

USER = {"role": "user", "content": "Hello"}
OTHER = {"role": "user", "content": "Bye"}


def asked(path: str, answer_id: str | None = None, **body: Any) -> HttpRequest:
    state = {"request_metadata": SimpleNamespace(request_id=answer_id)} if answer_id else {}
    return HttpRequest(path, body, state)


class TestMessages:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/cohere/v2/chat"])
    def test_of_a_chat_are_kept_as_sent(self, path: str) -> None:
        assert asked(path, messages=[USER, OTHER]).messages(0) == [USER, OTHER]

    @pytest.mark.parametrize(
        "path",
        [
            *("/v1/completions", "/inference/v1/generate", "/v1/systemone", "/tokenize"),
            *("/v1/audio/transcriptions", "/v1/responses", "/generative_scoring"),
        ],
    )
    def test_where_none_are_taken_none_are_kept(self, path: str) -> None:
        assert asked(path, messages=[USER], prompt="Hello").messages(0) is None

    def test_input_is_the_responses_apis_alone(self) -> None:
        assert asked("/v1/responses", input="Hello").messages(0) == [USER]
        assert asked("/v1/responses", input=[USER]).messages(0) == [USER]
        assert asked("/v1/completions", input="Hello").messages(0) is None
        assert asked("/v1/chat/completions", input="Hello").messages(0) is None

    def test_each_conversation_of_a_batch_has_its_own(self) -> None:
        batch = asked("/v1/chat/completions/batch", messages=[[USER], [OTHER, USER]])
        assert [batch.messages(n) for n in range(3)] == [[USER], [OTHER, USER], None]

    def test_sagemakers_route_takes_either(self) -> None:
        body = {"messages": [USER], "prompt": "Hello"}
        assert asked("/invocations", "chatcmpl-1", **body).messages(0) == [USER]
        assert asked("/invocations", "cmpl-1", **body).messages(0) is None

    @pytest.mark.parametrize("odd", [["a"], [USER, None], "a", {"role": "user"}, 7, [[USER]]])
    def test_what_is_no_list_of_objects_is_not_kept(self, odd: Any) -> None:
        assert asked("/v1/chat/completions", messages=odd).messages(0) is None
        if not isinstance(odd, str):
            assert asked("/v1/responses", input=odd).messages(0) is None


class TestPlaces:
    @pytest.mark.parametrize(
        ("path", "external", "index", "choices", "place"),
        [
            ("/v1/completions", "cmpl-x-0", 1, 2, Place("cmpl-x", 0, 1)),
            ("/v1/completions", "cmpl-x-2", 1, 2, Place("cmpl-x", 2, 5)),
            ("/v1/completions", "cmpl-x-10", 0, 1, Place("cmpl-x", 10, 10)),
            ("/v1/completions", "cmpl-x-0a1b-beam-3", 0, 1, Place("cmpl-x", 0, None)),
            ("/v1/chat/completions", "cmpl-x", 2, 3, Place("cmpl-x", 0, 2)),
            ("/v1/chat/completions/batch", "cmpl-x_3", 0, 1, Place("cmpl-x", 3, 3)),
            ("/v1/messages", "cmpl-x", 0, 1, Place("cmpl-x", 0, 0)),
            ("/v1/responses", "cmpl-x_0", 0, 1, Place("cmpl-x", 0, 0)),
            ("/v1/responses", "cmpl-x_2", 0, 1, Place("cmpl-x", 0, 0)),
        ],
    )
    def test_by_route(
        self, path: str, external: str, index: int, choices: int, place: Place
    ) -> None:
        assert place_of(asked(path, "cmpl-x"), external, index, choices) == place

    @pytest.mark.parametrize("path", ["/generative_scoring", "/v1/systemone"])
    def test_where_the_route_does_not_tell_its_id(self, path: str) -> None:
        assert place_of(asked(path), "scoring-x-y-2", 0, 1) == Place("scoring-x-y", 2, 2)

    def test_without_an_answers_id_it_is_the_engines(self) -> None:
        assert place_of(None, "17", 1, 2) == Place("17", 0, 1)
        assert place_of(asked("/v1/chat/completions"), "a-1", 0, 1) == Place("a-1", 0, 0)


class TestTruncation:
    @pytest.mark.parametrize(
        ("body", "truncates"),
        [
            ({}, False),
            ({"truncate_prompt_tokens": None}, False),
            ({"truncate_prompt_tokens": 5}, True),
            ({"truncate_prompt_tokens": -1}, True),
            ({"truncation": "disabled"}, False),
            ({"truncation": None}, False),
            ({"truncation": "auto"}, True),
        ],
    )
    def test_is_told_by_the_body(self, body: dict[str, Any], truncates: bool) -> None:
        assert asked("/v1/completions", **body).truncates == truncates


SHAPING: list[dict[str, Any]] = [
    {"structured_outputs": StructuredOutputsParams(json={"type": "object"})},
    {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"])},
    {"structured_outputs": StructuredOutputsParams(regex="[ab]+")},
    {"structured_outputs": StructuredOutputsParams(grammar="root ::= 'a'")},
    {"structured_outputs": StructuredOutputsParams(json_object=True)},
    {"min_tokens": 3},
    {"bad_words": ["a"]},
    {"logit_bias": {7: 1.5}},
    {"allowed_token_ids": [1, 2]},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"thinking_token_budget": 10},
    {"trace_decode_token_ids": [1, 2, 3]},
    {"watermarking": True},
]
NOT_SHAPING: list[dict[str, Any]] = [
    {},
    {"watermarking": False},
    {"max_tokens": 3, "stop": ["x"], "seed": 7, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
    {"ignore_eos": True, "stop_token_ids": [7], "detokenize": False},
    {"logprobs": 3, "prompt_logprobs": 2, "skip_special_tokens": False},
    {"repetition_detection": RepetitionDetectionParams(4, 2, 3)},
    {"extra_args": {"something_else": [1, {"a": (2, 3)}]}},
]


class TestSampling:
    @pytest.mark.parametrize("options", SHAPING, ids=str)
    def test_what_shapes_logits_is_kept_and_is_not_greedy(self, options: dict[str, Any]) -> None:
        kept = sampling_record(SamplingParams(temperature=0, **options), 1, ())
        assert json.loads(json.dumps(kept)).keys() >= options.keys()
        assert not is_greedy(kept)
        assert is_greedy(sampling_record(SamplingParams(temperature=0), 1, ()))

    @pytest.mark.parametrize("options", NOT_SHAPING, ids=str)
    def test_what_shapes_none_is_greedy(self, options: dict[str, Any]) -> None:
        kept = sampling_record(SamplingParams(temperature=0, **options), 1, ())
        assert is_greedy(json.loads(json.dumps(kept)))

    def test_is_plain(self) -> None:
        params = SamplingParams(
            temperature=0,
            structured_outputs=StructuredOutputsParams(choice=["yes", "no"]),
            repetition_detection=RepetitionDetectionParams(4, 2, 3),
            logit_bias={7: 1.5},
            extra_args={"mine": (1, {2: {3}}), "activation_tags": {"a": "b"}},
        )
        mark_accepted(params, {"activation_layers": "last"})
        assert json.loads(json.dumps(sampling_record(params, 3, ()))) == {
            "n": 3,
            "temperature": 0,
            "structured_outputs": {"choice": ["yes", "no"]},
            "repetition_detection": {
                "max_pattern_size": 4, "min_pattern_size": 2, "min_count": 3,
            },
            "logit_bias": {"7": 1.5},
            "extra_args": {"mine": [1, {"2": [3]}]},
        }  # fmt: skip

    def test_defaults_say_nothing(self) -> None:
        params = SamplingParams()
        mark_accepted(params, {})
        assert sampling_record(params, 1, ()) == {}

    def test_processors_of_the_whole_engine_are_named(self) -> None:
        kept = sampling_record(SamplingParams(temperature=0), 1, ["a.b:C", HttpRequest])
        own = "activation_logging.vllm_plugin.context:HttpRequest"
        assert kept["logits_processors"] == ["a.b:C", own]
        assert not is_greedy(kept)
