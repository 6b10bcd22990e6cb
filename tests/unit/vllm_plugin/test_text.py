"""Texts of token ids, for every kind of tokenizer: what was read, what was answered, in pieces."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import RequestState

from activation_logging.dataset.positions import locate_span
from activation_logging.default_model import demo_model_path
from activation_logging.store.offsets import token_offsets, touching
from activation_logging.vllm_plugin.text import (
    prompt_text,
    response_pieces,
    response_text,
    shared_characters,
)
from tests.fixtures import tokenizers

KINDS = [*tokenizers.KINDS, "python"]


@cache
def tokenizer_of(kind: str) -> Any:
    return ByT5Tokenizer() if kind == "python" else tokenizers.fast(kind)


def answered(
    tokenizer: Any,
    prompt: list[int],
    answer: list[int],
    *,
    text: str | None = None,
    stop_token: bool = False,
    **options: Any,
) -> tuple[RequestState, SamplingParams]:
    """A request as vLLM's front end keeps it, once these tokens have come one by one."""
    sampling = SamplingParams(max_tokens=1000, **options)
    request = EngineCoreRequest(
        request_id="one",
        external_req_id="one",
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    state = RequestState.from_new_request(tokenizer, request, text, None, 0, None, False, 1)
    for number, token in enumerate(answer, start=1):
        last = stop_token and number == len(answer)
        if state.detokenizer.update([token], last) is not None:
            break
    return state, sampling


def pieces_of(state: RequestState, sampling: SamplingParams, tokenizer: Any) -> list[str]:
    return response_pieces(state, sampling, tokenizer, response_text(state), stopped=False)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"skip_special_tokens": False},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"stop": ["t is", "é"]},
    {"stop": ["t is", "é"], "include_stop_str_in_output": True},
    {"stop_token": True},
    {"stop_token": True, "include_stop_str_in_output": True, "skip_special_tokens": False},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
class TestPieces:
    def test_join_to_the_response(self, kind: str, options: dict[str, Any]) -> None:
        tokenizer = tokenizer_of(kind)
        for sentence in tokenizers.SENTENCES:
            text = f"{sentence} <tool> {sentence[:20]} <|im_end|> Ω 🦊</s>"
            ids = tokenizer.encode(text, add_special_tokens=False)
            for cut in (1, 4, len(ids) // 2):
                state, sampling = answered(tokenizer, ids[:cut], ids[cut:], **options)
                pieces = pieces_of(state, sampling, tokenizer)
                assert "".join(pieces) == state.detokenizer.output_text
                assert len(pieces) == state.detokenizer.num_output_tokens()

    @settings(max_examples=40, deadline=None)
    @given(ids=st.lists(st.integers(0, 190), min_size=1, max_size=30), cut=st.integers(0, 5))
    def test_of_any_tokens(
        self, kind: str, options: dict[str, Any], ids: list[int], cut: int
    ) -> None:
        tokenizer = tokenizer_of(kind)
        state, sampling = answered(tokenizer, [5, 6, *ids[:cut]], ids[cut:], **options)
        pieces = pieces_of(state, sampling, tokenizer)
        assert "".join(pieces) == state.detokenizer.output_text


@pytest.mark.parametrize("kind", [*tokenizers.KINDS])
class TestSpans:
    def test_the_first_word_of_an_answer(self, kind: str) -> None:
        tokenizer = tokenizer_of(kind)
        prompt = tokenizer.encode("the smallest one is", add_special_tokens=False)
        answer = tokenizer.encode("Mercury, and nobody", add_special_tokens=False)
        state, sampling = answered(tokenizer, prompt, answer)
        response, pieces = state.detokenizer.output_text, pieces_of(state, sampling, tokenizer)
        span = locate_span(response, pieces, {"answer": "mercury"})
        assert "".join(pieces[slice(*span)]).strip(" ,").lower() == "mercury"
        offsets = token_offsets(response, pieces)
        assert [response[low:high] for low, high in offsets.tolist()] == pieces

    def test_a_blank_after_the_prompt_is_kept(self, kind: str) -> None:
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode("one two three four", add_special_tokens=False)
        cut = next(n for n in range(1, len(ids)) if tokenizer.decode(ids[:n]).endswith("two"))
        state, sampling = answered(tokenizer, ids[:cut], ids[cut:])
        assert "".join(pieces_of(state, sampling, tokenizer)) == " three four"


@cache
def default_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path())


@cache
def byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes, of which the tokens of byte-level tokenizers are written."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    return {
        **{chr(byte): byte for byte in plain},
        **{chr(256 + number): byte for number, byte in enumerate(others)},
    }


def true_offsets(tokenizer: Any, ids: list[int], omitted: set[int]) -> list[tuple[int, int]]:
    """By the bytes of every token: the characters that they are a part of."""
    names = tokenizer.convert_ids_to_tokens(ids)
    raw = [
        b"" if token in omitted else bytes(map(byte_of_letter().__getitem__, name))
        for token, name in zip(ids, names, strict=True)
    ]
    text = b"".join(raw).decode()
    character = [n for n, char in enumerate(text) for _ in char.encode()]
    at, found = 0, []
    for part in raw:
        held = character[at : at + len(part)]
        found.append((held[0], held[-1] + 1) if held else (0, 0))
        at += len(part)
    return found


BRITTLE = [*"abc é\u0301ß “”Ω中日本語한국어가\n\u2013", "\U0001f98a", "\U0001f469\u200d\U0001f52c"]
TEXTS = st.lists(st.sampled_from(BRITTLE), min_size=1, max_size=30).map("".join)


class TestSharedCharacters:
    """Tokens of the default model, which are bytes: a character may be part of several."""

    def offsets(
        self, ids: list[int], prompt: list[int], **options: Any
    ) -> tuple[str, np.ndarray[Any, Any]]:
        tokenizer = default_tokenizer()
        state, sampling = answered(tokenizer, prompt, ids, **options)
        response, pieces = state.detokenizer.output_text, pieces_of(state, sampling, tokenizer)
        shared = shared_characters(
            state.detokenizer.output_token_ids,
            pieces,
            tokenizer,
            skip_special=sampling.skip_special_tokens,
        )
        return response, token_offsets(response, pieces, shared)

    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS, data=st.data())
    def test_each_token_holds_its_bytes(self, text: str, data: st.DataObject) -> None:
        tokenizer = default_tokenizer()
        ids = tokenizer.encode(text, add_special_tokens=False)
        # Special tokens that the text leaves out may stand anywhere, within a character too.
        for place in data.draw(st.lists(st.integers(0, len(ids)), max_size=3)):
            ids.insert(place, tokenizer.eos_token_id)
        prompt = tokenizer.encode("The fox says", add_special_tokens=False)
        response, offsets = self.offsets(ids, prompt)
        assert response == text
        expected = true_offsets(tokenizer, ids, {tokenizer.eos_token_id})
        found = [pair if pair[0] < pair[1] else (0, 0) for pair in map(tuple, offsets.tolist())]
        assert found == expected
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        touched = [n for n, (low, high) in enumerate(expected) if low < end and high > start]
        assert touching(offsets, start, end).tolist() == touched

    @settings(max_examples=60, deadline=None)
    @given(text=TEXTS, stop=st.sampled_from(["b", "é", "中", " “", "\U0001f98a"]))
    def test_a_stop_string_cuts_tokens(self, text: str, stop: str) -> None:
        tokenizer = default_tokenizer()
        ids = tokenizer.encode(text, add_special_tokens=False)
        response, offsets = self.offsets(ids, [5], stop=[stop])
        assert response == text.partition(stop)[0]
        length = len(response)
        for (low, high), (first, last) in zip(
            offsets.tolist(), true_offsets(tokenizer, ids, set()), strict=False
        ):
            if first >= length:
                assert low == high
            elif high:
                assert (low, high) == (first, min(last, length))

    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=60, deadline=None)
    @given(ids=st.lists(st.integers(0, 190), min_size=1, max_size=100))
    def test_any_tokens(self, kind: str, ids: list[int]) -> None:
        """Garbage too has places within the answer, and every character has its token."""
        tokenizer = tokenizer_of(kind)
        state, sampling = answered(tokenizer, [5, 6], ids)
        response, pieces = state.detokenizer.output_text, pieces_of(state, sampling, tokenizer)
        shared = shared_characters(ids, pieces, tokenizer, skip_special=True)
        offsets = token_offsets(response, pieces, shared)
        assert len(offsets) == len(ids)
        assert all(0 <= low <= high <= len(response) for low, high in offsets.tolist())
        assert all(len(touching(offsets, at, at + 1)) for at in range(len(response)))

    def test_bytes_of_a_character_in_a_vocabulary_of_words(self) -> None:
        tokenizer = tokenizer_of("llama")
        ids = tokenizer.encode("one \U0001f98a two", add_special_tokens=False)
        state, sampling = answered(tokenizer, [5, 6], ids)
        response, pieces = state.detokenizer.output_text, pieces_of(state, sampling, tokenizer)
        shared = shared_characters(ids, pieces, tokenizer, skip_special=True)
        at = response.index("\U0001f98a")
        found = touching(token_offsets(response, pieces, shared), at, at + 1)
        names = tokenizer.convert_ids_to_tokens(ids)
        assert [names[n] for n in found] == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]


class TestTokenIdsAlone:
    """With ``detokenize=False`` vLLM decodes nothing: the text is what it would have said."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stopped", [False, True])
    def test_the_text_is_the_same(self, kind: str, stopped: bool) -> None:
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode("one two three four five", add_special_tokens=False)
        plain, sampling = answered(tokenizer, ids[:4], ids[4:], stop_token=stopped)
        bare, sampling_of_bare = answered(
            tokenizer, ids[:4], ids[4:], stop_token=stopped, detokenize=False
        )
        assert response_text(bare) is None
        pieces = response_pieces(bare, sampling_of_bare, tokenizer, None, stopped=stopped)
        assert "".join(pieces) == plain.detokenizer.output_text
        assert pieces == pieces_of(plain, sampling, tokenizer)

    def test_without_a_tokenizer_there_is_no_text(self) -> None:
        state, sampling = answered(None, [1, 2], [3, 4], detokenize=False)
        assert response_pieces(state, sampling, None, None, stopped=False) == []
        assert prompt_text(state, None, whole=False) == ""


@pytest.mark.parametrize("kind", KINDS)
class TestPrompts:
    TEXT = "The largest planet is Jupiter, and the smallest one is Mercury."

    def test_a_text_that_was_read_whole_stays_as_it_is(self, kind: str) -> None:
        tokenizer = tokenizer_of(kind)
        for ids in (tokenizer.encode(self.TEXT), tokenizer.encode(f"{self.TEXT}")):
            state, _ = answered(tokenizer, ids, [], text=self.TEXT)
            assert prompt_text(state, tokenizer, whole=False) == self.TEXT

    @pytest.mark.parametrize("kept", [slice(3, None), slice(None, 5)])
    def test_a_truncated_one_is_what_was_read(self, kind: str, kept: slice) -> None:
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(self.TEXT, add_special_tokens=False)[kept]
        state, _ = answered(tokenizer, ids, [], text=self.TEXT)
        assert prompt_text(state, tokenizer, whole=False) == tokenizer.decode(ids)

    def test_what_is_added_by_a_beam_was_read_too(self, kind: str) -> None:
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(self.TEXT, add_special_tokens=False)
        state, _ = answered(tokenizer, ids, [], text=self.TEXT[:20])
        assert prompt_text(state, tokenizer, whole=False) == tokenizer.decode(ids)

    def test_token_ids_are_decoded(self, kind: str) -> None:
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(self.TEXT, add_special_tokens=False)
        state, _ = answered(tokenizer, ids, [])
        assert prompt_text(state, tokenizer, whole=True) == tokenizer.decode(ids)
