"""Route by route: what the model read and answered, what the client got, and under which id.

The model is tiny and has a tokenizer as Llama 2 and Mistral do: marks for blanks, bytes where
letters lack. The server takes reasoning and tool calls out of answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from activation_logging import Entry, open_store
from tests.fixtures import tokenizers
from tests.fixtures.server import RunningServer

KIND = "llama"
TEXT = "The largest planet is Jupiter, and the smallest one is"
MESSAGES = [{"role": "user", "content": "What is the smallest one?"}]
THOUGHT = [{"role": "user", "content": "<think>Hm.</think> Look!"}]
"""After this the server takes what comes for the answer itself."""
CREATIVE: dict[str, Any] = {"temperature": 1.0, "seed": 3}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
]


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[RunningServer]:
    flags = ("--reasoning-parser", "deepseek_r1", "--enable-auto-tool-choice", "--enable-scale-out")
    with serve(*flags, "--tool-call-parser", "hermes", model=KIND) as started:
        yield started


@cache
def tokenizer() -> Any:
    return tokenizers.fast(KIND)


class Got(NamedTuple):
    """What a client has of one choice; None for what the route does not say."""

    id: str
    choice: int
    content: str | None
    text: str | None = None


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a streamed answer."""
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    answer = server.post(path, {"model": server.model, **body})
    assert answer.status_code == 200, answer.text
    return answer


def completions(server: RunningServer, **body: Any) -> list[Got]:
    body = {"prompt": TEXT, "max_tokens": 12, **CREATIVE, **body}
    answer = post(server, body.pop("path", "/v1/completions"), **body)
    if not body.get("stream"):
        whole = answer.json()
        return [Got(whole["id"], c["index"], c["text"], c["text"]) for c in whole["choices"]]
    texts: dict[int, str] = {}
    for event in events(answer):
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            name = event["id"]
    return [Got(name, index, text, text) for index, text in sorted(texts.items())]


def chat(server: RunningServer, **body: Any) -> list[Got]:
    body = {"messages": MESSAGES, "max_tokens": 24, **CREATIVE, **body}
    answer = post(server, body.pop("path", "/v1/chat/completions"), **body)
    if not body.get("stream"):
        whole = answer.json()
        return [
            Got(whole["id"], c["index"], c["message"]["content"] or "") for c in whole["choices"]
        ]
    texts: dict[int, str] = {}
    for event in events(answer):
        for choice in event["choices"]:
            said = choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + said
            name = event["id"]
    return [Got(name, index, text) for index, text in sorted(texts.items())]


def responses(server: RunningServer, **body: Any) -> list[Got]:
    body = {"input": "What is it?", "max_output_tokens": 24, "temperature": 1.0, **body}
    answer = post(server, "/v1/responses", **body)
    whole = events(answer)[-1]["response"] if body.get("stream") else answer.json()
    parts = [part for item in whole["output"] for part in item.get("content") or ()]
    said = [part["text"] for part in parts if part["type"] == "output_text"]
    return [Got(whole["id"], 0, "".join(said))]


def anthropic(server: RunningServer, **body: Any) -> list[Got]:
    body = {"messages": MESSAGES, "max_tokens": 24, "temperature": 1.0, **body}
    answer = post(server, "/v1/messages", **body)
    if not body.get("stream"):
        whole = answer.json()
        said = [block["text"] for block in whole["content"] if block["type"] == "text"]
        return [Got(whole["id"], 0, "".join(said))]
    told = events(answer)
    name = next(event["message"]["id"] for event in told if event["type"] == "message_start")
    deltas = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    return [Got(name, 0, "".join(delta.get("text", "") for delta in deltas))]


def generate(server: RunningServer, **body: Any) -> list[Got]:
    ids = tokenizer().encode(TEXT)
    sampling = {"max_tokens": 12, "temperature": 1.0, "seed": 3, **body}
    whole = post(server, "/inference/v1/generate", token_ids=ids, sampling_params=sampling).json()
    texts = [text_after(ids, choice["token_ids"], skip=True) for choice in whole["choices"]]
    return [
        Got(whole["request_id"], choice["index"], text, text)
        for choice, text in zip(whole["choices"], texts, strict=True)
    ]


def text_after(prompt: Sequence[int], ids: Sequence[int], *, skip: bool) -> str | None:
    """What tokens say behind a prompt; None where some of their bytes are no character.

    Such bytes come to a client one by one, where decoding takes a whole run of bytes for broken.
    """
    whole = tokenizer().decode([*prompt, *ids], skip_special_tokens=skip)
    before = tokenizer().decode(list(prompt), skip_special_tokens=skip)
    return None if "�" in whole else whole[len(before) :]


IDS = [1, 300, 301, 302, 303]
CASES: dict[str, tuple[Callable[..., list[Got]], dict[str, Any]]] = {
    "completions": (completions, {}),
    "completions, stream": (completions, {"stream": True}),
    "completions, prompts and choices": (completions, {"prompt": [TEXT, "one two"], "n": 2}),
    "completions, n as a text": (completions, {"prompt": [TEXT, "one two"], "n": "2"}),
    "completions, prompts and choices, stream": (
        completions,
        {"prompt": [TEXT, "one two"], "n": 2, "stream": True},
    ),
    "completions, token ids": (completions, {"prompt": IDS}),
    "completions, lists of token ids": (completions, {"prompt": [IDS, IDS[:3]], "n": 2}),
    "completions, special tokens": (completions, {"skip_special_tokens": False}),
    "completions, no blanks between them": (
        completions,
        {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    ),
    "completions, stop": (completions, {"stop": ["e", "a"], "max_tokens": 40}),
    "completions, stop told": (
        completions,
        {"stop": ["e", "a"], "include_stop_str_in_output": True, "max_tokens": 40},
    ),
    "completions, end": (completions, {"logit_bias": {"2": 100}, "min_tokens": 3}),
    "completions, messages beside": (completions, {"messages": ["a"]}),
    "completions, objects beside": (completions, {"messages": MESSAGES, "input": "x"}),
    "completions, own id": (completions, {"request_id": "cmpl-a-1_2", "n": 2}),
    "chat": (chat, {}),
    "chat, stream": (chat, {"stream": True}),
    "chat, choices": (chat, {"n": 3}),
    "chat, choices, stream": (chat, {"n": 3, "stream": True}),
    "chat, a tool must be called": (
        chat,
        {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "messages": THOUGHT},
    ),
    "chat, special tokens": (chat, {"skip_special_tokens": False}),
    "chat, turns without content": (
        chat,
        {
            "messages": [
                *MESSAGES,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call-1",
                            "type": "function",
                            "function": {"name": "look", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call-1", "content": "Mercury"},
            ]
        },
    ),
    "batch": (
        chat,
        {
            "path": "/v1/chat/completions/batch",
            "messages": [MESSAGES, [{"role": "user", "content": "one"}], MESSAGES],
        },
    ),
    "responses": (responses, {}),
    "responses, stream": (responses, {"stream": True}),
    "responses, own id": (responses, {"request_id": "resp_a_1"}),
    "responses, messages": (responses, {"input": MESSAGES, "instructions": "Be short."}),
    "messages": (anthropic, {}),
    "messages, stream": (anthropic, {"stream": True}),
    "messages, system": (anthropic, {"system": "Be short."}),
    "generate": (generate, {}),
    "generate, choices": (generate, {"n": 2}),
    "invocations, completions": (completions, {"path": "/invocations"}),
    "invocations, chat": (chat, {"path": "/invocations"}),
}


def think_a_little(case: str, body: dict[str, Any]) -> dict[str, Any]:
    """Let a random model close its thoughts somewhere: of a few tokens, that is one."""
    ask = CASES[case][0]
    words = tokenizer().encode(" one two three", add_special_tokens=False)
    close = tokenizer().convert_tokens_to_ids("</think>")
    if ask is chat and "tools" not in body:
        # Long enough to come to it, whatever a version of vLLM makes of a seed.
        return {**body, "allowed_token_ids": [close, *words, 2], "min_tokens": 16}
    return body


@pytest.fixture(scope="module")
def answers(server: RunningServer) -> dict[str, tuple[list[Got], list[Entry]]]:
    """Every case's answer, and its entries in the order of the choices."""
    got = {case: ask(server, **think_a_little(case, body)) for case, (ask, body) in CASES.items()}
    server.flush()
    store = server.store()
    return {
        case: (found, sorted(store.for_request(found[0].id), key=lambda entry: entry.choice))
        for case, found in got.items()
    }


@pytest.mark.core
@pytest.mark.parametrize("case", CASES)
class TestRoutes:
    def test_the_id_and_the_choices_join(self, answers: Any, case: str) -> None:
        got, entries = answers[case]
        assert [entry.choice for entry in entries] == [choice.choice for choice in got]
        assert {entry.request_id for entry in entries} == {got[0].id}

    def test_response_and_content_are_what_came(self, answers: Any, case: str) -> None:
        for choice, entry in zip(*answers[case], strict=True):
            if choice.content is not None:
                assert entry.content == choice.content
            if choice.text is not None:
                assert entry.response == choice.text
            if "stop" not in case and "blanks" not in case:
                ids = entry.response_token_ids
                ids = ids[:-1] if ids[-1] == tokenizers.END else ids
                skip = not {"special", "tool"} & set(case.split())
                text = text_after(entry.prompt_token_ids, ids, skip=skip)
                assert text is None or entry.response == text

    def test_pieces_join_to_the_response(self, answers: Any, case: str) -> None:
        for entry in answers[case][1]:
            assert "".join(entry.response_tokens) == entry.response
            assert len(entry.response_tokens) == len(entry.response_token_ids)

    def test_the_prompt_is_what_the_model_read(self, answers: Any, case: str) -> None:
        for entry in answers[case][1]:
            if "ids" in case or "generate" in case:
                assert entry.prompt == tokenizer().decode(entry.prompt_token_ids)
                continue
            ids = tokenizer().encode(entry.prompt, add_special_tokens=False)
            assert [i for i in entry.prompt_token_ids if i > 2] == [i for i in ids if i > 2]

    def test_messages_are_those_of_a_chat(self, answers: Any, case: str) -> None:
        route, body = CASES[case]
        for number, entry in enumerate(answers[case][1]):
            if route in (completions, generate):
                assert entry.messages is None
            elif route is responses:
                asked = body.get("input", "What is it?")
                whole = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
                assert entry.messages == whole
            else:
                asked = body.get("messages", MESSAGES)
                assert entry.messages == (asked[number] if case == "batch" else asked)


@pytest.mark.core
def test_thoughts_were_taken_out_somewhere(answers: Any) -> None:
    """The cases above are no test of parsing unless some answer is longer than its content."""
    for case in ("chat, choices", "chat, choices, stream", "batch"):
        whole = [(entry.content, entry.response) for entry in answers[case][1]]
        assert any(content and content != response for content, response in whole), whole
    (called,) = answers["chat, a tool must be called"][1]
    assert "".join(called.response.split()).startswith('<tool_call>{"name":"look"')
    assert called.content == ""


def test_scores_join_too(server: RunningServer) -> None:
    body = {"query": "one", "items": ["two", "three"], "label_token_ids": [300, 301]}
    answer = post(server, "/generative_scoring", **body).json()
    server.flush()
    entries = server.store().for_request(answer["id"])
    assert sorted(entry.choice for entry in entries) == [0, 1]
    assert all(entry.messages is None for entry in entries)


class TestTruncation:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_of_a_text(self, server: RunningServer, side: str) -> None:
        body = {"truncate_prompt_tokens": 6, "truncation_side": side, "max_tokens": 2}
        (got,) = completions(server, **body)
        server.flush()
        (entry,) = server.store().for_request(got.id)
        assert len(entry.prompt_token_ids) == 6
        assert entry.prompt == tokenizer().decode(entry.prompt_token_ids)
        assert entry.response == got.text

    def test_that_cuts_nothing_changes_nothing(self, server: RunningServer) -> None:
        (got,) = completions(server, truncate_prompt_tokens=500, max_tokens=2)
        server.flush()
        (entry,) = server.store().for_request(got.id)
        assert entry.prompt == TEXT

    def test_of_a_chat(self, server: RunningServer) -> None:
        (got,) = chat(server, truncate_prompt_tokens=5, max_tokens=2)
        server.flush()
        (entry,) = server.store().for_request(got.id)
        assert entry.prompt == tokenizer().decode(entry.prompt_token_ids)
        assert entry.messages == MESSAGES


def test_echo(server: RunningServer) -> None:
    (got,) = completions(server, echo=True)
    server.flush()
    (entry,) = server.store().for_request(got.id)
    assert entry.prompt + entry.response == got.text


def test_beams_are_no_choices(server: RunningServer) -> None:
    (got, *_) = completions(server, use_beam_search=True, n=2, max_tokens=3)
    server.flush()
    entries = server.store().for_request(got.id)
    assert {entry.choice for entry in entries} == {None}
    for entry in entries:
        ids = tokenizer().encode(entry.prompt, add_special_tokens=False)
        read = [i for i in entry.prompt_token_ids if i > 2]
        assert read == [i for i in ids if i > 2] or entry.prompt == tokenizer().decode(
            entry.prompt_token_ids
        )


@pytest.mark.parametrize(
    "options",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "[a-z]{3}"}},
        {"response_format": {"type": "json_object"}},
        {"min_tokens": 2},
    ],
    ids=str,
)
def test_what_shapes_logits_is_kept(server: RunningServer, options: dict[str, Any]) -> None:
    from activation_logging.verify.alignment import is_greedy

    (got,) = completions(server, **{**options, "temperature": 0, "seed": None, "max_tokens": 4})
    server.flush()
    (entry,) = server.store().for_request(got.id)
    assert not is_greedy(entry.sampling), entry.sampling


@pytest.mark.parametrize("name", ["activation_logging", "activation_tags", "Activation-Sites"])
@pytest.mark.parametrize(
    "path",
    [
        *("/v1/completions", "/v1/chat/completions", "/v1/chat/completions/batch"),
        *("/v1/responses", "/v1/messages", "/inference/v1/generate", "/invocations"),
        *("/cohere/v2/chat", "/v1/systemone", "/tokenize"),
    ],
)
def test_names_beside_vllm_xargs_are_refused(server: RunningServer, path: str, name: str) -> None:
    answer = server.post(path, {"model": server.model, "prompt": "x", name: "off"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize("case", ["completions", "chat", "batch", "responses", "messages"])
def test_options_hold_on_every_route(server: RunningServer, case: str) -> None:
    ask, body = CASES[case]
    tags = {"route": case}
    got = ask(server, **body, vllm_xargs={"activation_tags": tags, "other": "1"})
    off = ask(server, **body, vllm_xargs={"activation_logging": "off", "other": "1"})
    server.flush()
    entries = server.store().for_request(got[0].id)
    assert entries
    assert all(entry.tags == tags for entry in entries)
    assert server.store().for_request(off[0].id) == []


def test_labels_join_where_reasoning_is_taken_out(server: RunningServer, tmp_path: Path) -> None:
    from activation_logging.benchmarks import run_benchmark

    result = run_benchmark(
        "nonsense_mixed_entities",
        model=server.model,
        base_url=server.base_url,
        output_base_dir=tmp_path,
        store=server.lmdb_path,
        exp="nonsense_medicine",
        n=2,
        max_tokens=30,
    )
    assert result.labels.written == 4
    store = server.store()
    for answer in result.journal.answers.values():
        (entry,) = store.for_request(answer.request_id)
        assert entry.content == answer.generation != entry.response
        assert list(entry.evaluations) == ["refusal"]


def run(command: Sequence[str], store: Path) -> None:
    environment = {
        **os.environ,
        "ACTIVATION_LMDB_PATH": str(store),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_run_batch(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    """Every line keeps its messages and its custom id, and joins by the id of its answer."""
    bodies: dict[str, dict[str, Any]] = {
        "plain": {},
        "tagged": {"vllm_xargs": {"activation_tags": {"split": "train"}}, "n": 2},
        "misplaced": {"activation_logging": "off"},
        "off": {"vllm_xargs": {"activation_logging": "off"}},
    }
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": KIND, "messages": MESSAGES, "max_tokens": 5, **body},
        }
        for name, body in bodies.items()
    ]
    asked, said = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store_path = tmp_path / "s.lmdb"
    run(
        [
            *(str(Path(sys.executable).parent / "vllm"), "run-batch"),
            *("-i", str(asked), "-o", str(said), "--model", str(folder_of(KIND))),
            *("--served-model-name", KIND, "--dtype", "float32", "--enforce-eager"),
        ],
        store_path,
    )
    answers = {line["custom_id"]: line for line in map(json.loads, said.read_text().splitlines())}
    assert answers["misplaced"]["response"]["status_code"] == 400
    assert "put it into vllm_xargs" in json.dumps(answers["misplaced"]["error"])
    with open_store(store_path) as store:
        assert len(store) == 3
        for name in ("plain", "tagged"):
            body = answers[name]["response"]["body"]
            entries = store.for_request(body["id"])
            assert [entry.choice for entry in entries] == [c["index"] for c in body["choices"]]
            for entry, choice in zip(entries, body["choices"], strict=True):
                assert entry.messages == MESSAGES
                assert entry.tags["custom_id"] == name
                assert entry.response == choice["message"]["content"]
                assert "".join(entry.response_tokens) == entry.response
                assert entry.status == "complete"
        assert entries[0].tags["split"] == "train"


OFFLINE = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=512)
    chats = [[{"role": "user", "content": text}] for text in ("one", "two", "one two")]
    few = SamplingParams(max_tokens=6, temperature=0)
    bare = SamplingParams(max_tokens=6, temperature=0, detokenize=False)
    said = [o.outputs[0].text for o in llm.chat(chats, few, use_tqdm=False)]
    text = "one two three four five six seven"
    (plain,) = llm.generate([text], few, use_tqdm=False)
    llm.generate([text], bare, use_tqdm=False)
    cut = {"truncate_prompt_tokens": 4}
    llm.generate([text], few, use_tqdm=False, tokenization_kwargs=cut)
    json.dump([chats, said, plain.outputs[0].text], open(sys.argv[2], "w"))
    llm.llm_engine.engine_core.shutdown(timeout=30.0)

if __name__ == "__main__":
    main()
"""


@pytest.mark.core
def test_offline(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    out, store_path = tmp_path / "out.json", tmp_path / "s.lmdb"
    program = tmp_path / "offline.py"
    program.write_text(OFFLINE)
    run([sys.executable, str(program), str(folder_of(KIND)), str(out)], store_path)
    chats, said, text = json.loads(out.read_text())
    with open_store(store_path) as store:
        entries = sorted(store.entries(), key=lambda entry: entry.created)
        assert [entry.messages for entry in entries] == [*chats, None, None, None]
        assert [entry.response for entry in entries[:4]] == [*said, text]
        plain, bare, cut = entries[3:]
        assert (bare.response, bare.response_tokens) == (plain.response, plain.response_tokens)
        assert plain.prompt == "one two three four five six seven"
        assert cut.prompt == tokenizer().decode(cut.prompt_token_ids)
        assert len(cut.prompt_token_ids) == 4
        for entry in entries:
            assert "".join(entry.response_tokens) == entry.response
