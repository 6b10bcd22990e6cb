"""What one request may ask for, what it leaves in the store, and what it is refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from activation_logging import Entry
from activation_logging.settings import Settings
from tests.fixtures.server import RunningServer
from tests.server.test_fidelity import story, wait_for_entry

SECRET = "hf_thisIsASecretThatNobodyMaySee"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class TestEntries:
    def test_completion(self, server: RunningServer) -> None:
        prompt = "The largest planet is"
        answer = server.complete(prompt, logprobs=3, seed=5)
        (entry,) = server.entries_of(answer)
        choice = answer["choices"][0]
        assert entry.key == sha256(prompt) or entry.key.startswith(sha256(prompt) + "#")
        assert entry.prompt == prompt
        assert entry.response == choice["text"]
        assert entry.model == "smol"
        assert entry.messages is None
        assert entry.request_id == answer["id"]
        assert entry.finish_reason == choice["finish_reason"]
        assert entry.logprobs == pytest.approx(choice["logprobs"]["token_logprobs"])
        assert entry.sampling["temperature"] == 0
        assert entry.sampling["seed"] == 5
        assert "".join(entry.response_tokens or []) == entry.response
        assert entry.activations.shape == (len(entry.positions), entry.hidden_size)
        assert entry.activations.dtype == np.float32
        assert entry.response_activations.shape[0] == len(entry.response_token_ids)
        assert np.array_equal(entry.layer(30), entry.activations)

    def test_same_prompt_again_keeps_every_answer(self, server: RunningServer) -> None:
        prompt = "Again and again:"
        answers = [server.complete(prompt, max_tokens=3 + i) for i in range(3)]
        server.flush()
        entries = server.store().for_prompt(prompt)
        key = sha256(prompt)
        assert [entry.key for entry in entries] == [key, f"{key}#1", f"{key}#2"]
        assert [entry.request_id for entry in entries] == [answer["id"] for answer in answers]

    def test_chat_keeps_the_rendered_prompt_and_the_messages(self, server: RunningServer) -> None:
        (entry,) = server.entries_of(server.chat("Say hello.", request_id="mine"))
        assert entry.request_id == "chatcmpl-mine"
        assert entry.messages == [{"role": "user", "content": "Say hello."}]
        assert "<|im_start|>user\nSay hello.<|im_end|>" in entry.prompt
        assert entry.key.startswith(sha256(entry.prompt))

    def test_responses_api(self, server: RunningServer) -> None:
        body = {"model": "smol", "input": "Name a colour.", "max_output_tokens": 8}
        answer = server.post("/v1/responses", body)
        assert answer.status_code == 200, answer.text
        (entry,) = server.entries_of(answer.json())
        assert "Name a colour." in entry.prompt
        assert entry.messages == [{"role": "user", "content": "Name a colour."}]

    def test_list_of_prompts_with_choices(self, server: RunningServer) -> None:
        prompts = ["A cat", "A dog", "A bird"]
        answer = server.complete(prompts, n=2, temperature=1.0, seed=3, max_tokens=4)
        entries = server.entries_of(answer)
        assert [entry.choice for entry in entries] == [0, 1, 2, 3, 4, 5]
        assert [entry.prompt for entry in entries] == [p for p in prompts for _ in range(2)]
        assert [entry.response for entry in entries] == [c["text"] for c in answer["choices"]]

    def test_token_id_prompt_is_its_decoded_text(self, server: RunningServer) -> None:
        (text,) = server.entries_of(server.complete("Water boils at"))
        (ids,) = server.entries_of(server.complete(text.prompt_token_ids))
        assert ids.prompt_token_ids == text.prompt_token_ids
        assert ids.prompt == "Water boils at"
        assert ids.key.partition("#")[0] == text.key.partition("#")[0]

    @pytest.mark.parametrize(
        "prompt",
        ["x", "Emoji 🦊🇨🇭 and 漢字", "NUL \x00 inside", "tail\u2028\u200b ", '"quotes" \\ back'],
    )
    def test_any_text(self, server: RunningServer, prompt: str) -> None:
        answer = server.complete(prompt, max_tokens=1)
        (entry,) = server.entries_of(answer)
        assert entry.prompt == prompt
        assert len(entry.response_token_ids) == 1
        assert len(entry.positions) == len(entry.prompt_token_ids)
        assert server.store().for_prompt(prompt)[-1].request_id == answer["id"]

    def test_empty_answer(self, server: RunningServer, reference: Any) -> None:
        # The end-of-text token is forced: a response of one token and no text.
        end = 2
        answer = server.complete("Say nothing.", logit_bias={str(end): 100}, max_tokens=5)
        (entry,) = server.entries_of(answer)
        assert (entry.response, entry.response_token_ids) == ("", [end])
        assert reference.worst_error(entry, 30) < 2e-5

    def test_echo(self, server: RunningServer) -> None:
        answer = server.complete("Echo this", echo=True, max_tokens=4)
        (entry,) = server.entries_of(answer)
        assert entry.prompt + entry.response == answer["choices"][0]["text"]

    def test_long_prompt(self, server: RunningServer, reference: Any) -> None:
        # Not one word over and over: there float32 alone is off by 1e-4 against float64.
        (entry,) = server.entries_of(server.complete(story(1900, seed=42), max_tokens=3))
        assert len(entry.prompt_token_ids) >= 1900
        assert reference.worst_error(entry, 30) < 2e-5

    def test_shared_prefix_is_stored_once(self, server: RunningServer) -> None:
        common = "You are a careful librarian who never guesses. " * 60
        entries = []
        before = []
        for question in ("Who?", "What?", "When?"):
            before.append(_bytes_written(server))
            entries += server.entries_of(server.complete(f"{common}{question}", max_tokens=4))
        first = before[1] - before[0]
        second = before[2] - before[1]
        assert second < first / 2, (first, second)
        kept = [entry.activations.copy() for entry in entries]
        with_delete = server.store().path
        from activation_logging import open_store

        with open_store(with_delete, writable=True) as store:
            store.delete(entries[0].key)
        again = [server.store()[entry.key].activations for entry in entries[1:]]
        assert all(np.array_equal(a, b) for a, b in zip(kept[1:], again, strict=True))


def _bytes_written(server: RunningServer) -> int:
    server.flush()
    return int(server.get("/v1/activations/counters").json()["totals"]["bytes"])


class TestOptions:
    @staticmethod
    def ask(server: RunningServer, prompt: str, **options: Any) -> list[Entry]:
        return server.entries_of(server.complete(prompt, vllm_xargs=options))

    def test_off(self, server: RunningServer) -> None:
        assert self.ask(server, "Off the record.", activation_logging="off") == []
        assert server.store().for_prompt("Off the record.") == []

    def test_tokens(self, server: RunningServer) -> None:
        prompt = "Only a part of this:"
        whole, response, only = (
            self.ask(server, prompt, activation_tokens=tokens)[0]
            for tokens in ("all", "response", "prompt")
        )
        p, r = len(whole.prompt_token_ids), len(whole.response_token_ids)
        assert list(response.positions) == list(range(p - 1, p + r - 1))
        assert list(only.positions) == list(range(p))
        close = {"rtol": 1e-3, "atol": 1e-3}
        assert np.allclose(response.activations, whole.activations[p - 1 :], **close)
        assert np.allclose(only.activations, whole.activations[:p], **close)
        assert np.allclose(response.response_activations, whole.response_activations, **close)

    def test_layers(self, server: RunningServer) -> None:
        (entry,) = self.ask(server, "One layer only.", activation_layers="15")
        assert entry.layers == (15,)
        with pytest.raises(LookupError, match="last"):
            _ = entry.activations

    @pytest.mark.parametrize("form", [dict, json.dumps])
    def test_tags(self, server: RunningServer, form: Callable[[Any], Any]) -> None:
        tags = {"dataset": "d", "sample": "ü 1"}
        (entry,) = self.ask(server, f"Tagged by {form}.", activation_tags=form(tags))
        assert entry.tags == tags

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"activation_foo": "1"}, "activation_foo"),
            ({"activation_logging": "maybe"}, "activation_logging"),
            ({"activation_tokens": "some"}, "activation_tokens"),
            ({"activation_layers": "7"}, "activation_layers"),
            ({"activation_layers": "x"}, "activation_layers"),
            ({"activation_tags": "{not json"}, "activation_tags"),
            ({"activation_tags": '["a"]'}, "activation_tags"),
            ({"activation_tags": {"a": 1}}, "activation_tags"),
            ({"activation_tags": '{"a": "\\ud800"}'}, "activation_tags"),
            ({"activation_tags": json.dumps({"a": "b" * 10_000_000})}, "activation_tags"),
            ({"activation_tags": "[" * 5000}, "activation_tags"),
            ({"activation_tags": {"a": {"b": {}}}}, "activation_tags"),
            ({"activation_layers": "999"}, "activation_layers"),
            ({"activation_layers": ",".join(["0-10000"] * 1000)}, "activation_layers"),
            ({"activation_layers": "9" * 5000}, "activation_layers"),
            ({"activation_layers": [15] * 1000}, "activation_layers"),
            ({"activation_layers": True}, "activation_layers"),
            ({"activation_layers": [1.5]}, "activation_layers"),
            ({"activation_layers": {}}, "activation_layers"),
            ({"activation_logging": []}, "activation_logging"),
            ({"activation_logging": False}, "activation_logging"),
            ({"activation_tokens": {"a": []}}, "activation_tokens"),
            ({"Activation-Logging": "off"}, "Activation-Logging"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_bad_ones_are_refused_by_name(
        self, server: RunningServer, options: dict[str, Any], named: str, stream: bool
    ) -> None:
        entries = len(server.store())
        body = {"model": "smol", "prompt": "Never asked.", "stream": stream, "vllm_xargs": options}
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == named
        assert named in error["message"]
        assert len(error["message"]) < 400
        server.flush()
        assert len(server.store()) == entries

    def test_a_layer_that_is_none_is_told_which_there_are(self, server: RunningServer) -> None:
        body = {"model": "smol", "prompt": "x", "vllm_xargs": {"activation_layers": "999"}}
        message = server.post("/v1/completions", body).json()["error"]["message"]
        assert "this model has layers 0 to 30" in message

    @pytest.mark.parametrize(
        "name", ["activation_logging", "activation_tags", "activation_foo", "Activation-Layers"]
    )
    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
    def test_beside_vllm_xargs_they_are_not_ignored(
        self, server: RunningServer, name: str, path: str
    ) -> None:
        entries = len(server.store())
        messages = [{"role": "user", "content": "Off the record."}]
        asked = {"messages": messages} if "chat" in path else {"prompt": "Off the record."}
        answer = server.post(path, {"model": "smol", "max_tokens": 1, **asked, name: "off"})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == name
        assert "put it into vllm_xargs" in error["message"]
        server.flush()
        assert len(server.store()) == entries

    def test_other_peoples_arguments_are_left_alone(self, server: RunningServer) -> None:
        assert self.ask(server, "Not ours.", something_else="1")[0].status == "complete"


class TestSecrets:
    def test_auth_token_leaves_no_trace(self, server: RunningServer) -> None:
        answer = server.complete("Gated?", auth_token=SECRET)
        bad = {"model": "smol", "prompt": 1.5, "auth_token": SECRET}
        refused = server.post("/v1/completions", bad)
        assert refused.status_code == 400
        assert SECRET not in refused.text
        server.entries_of(answer)
        assert SECRET not in server.get("/metrics").text
        for file in (server.log, server.lmdb_path / "data.mdb"):
            assert SECRET.encode() not in file.read_bytes(), file

    @pytest.mark.parametrize(
        "body",
        [
            f'{{"auth_token": "{SECRET}", "a": 1}}',
            f'{{"auth_token": "{SECRET}", "auth_token": null}}',
            f'{{"auth_token": ["{SECRET}"], "vllm_xargs": 7}}',
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/activations/x/evaluations", "/any"])
    def test_whatever_the_body_nobody_else_sees_it(self, body: str, path: str) -> None:
        status, seen = passed_on(body.encode(), path)
        assert status == 200
        assert "auth_token" not in json.loads(seen)
        assert SECRET.encode() not in seen

    def test_a_body_too_deep_to_be_written_again(self) -> None:
        answers = set()
        # How deep is too deep differs between versions of Python.
        for depth in (*range(700, 1000), 5_000, 20_000, 200_000):
            deep = "[" * depth + "]" * depth
            status, seen = passed_on(f'{{"auth_token": "{SECRET}", "a": {deep}}}'.encode(), "/any")
            answers.add(status)
            assert SECRET.encode() not in seen
        assert answers == {200, 400}


def passed_on(body: bytes, path: str) -> tuple[int, bytes]:
    """What the middleware lets through to the application behind it, and the answer's status."""
    from fastapi import FastAPI

    from activation_logging.asgi import read_body
    from activation_logging.vllm_plugin.middleware import RequestMiddleware
    from activation_logging.vllm_plugin.probe_desk import ProbeDesk

    seen, statuses = [], []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await read_body(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "app": FastAPI()}
    middleware = RequestMiddleware(application, Settings(layers="all"), ProbeDesk(None), 30)
    asyncio.run(middleware(scope, receive, send))
    return statuses[0], b"".join(seen)


class TestRoutes:
    def test_list_show_and_label(self, server: RunningServer) -> None:
        tag = {"activation_tags": {"suite": "routes"}}
        answer = server.complete("Listed.", vllm_xargs=tag)
        (entry,) = server.entries_of(answer)
        listed = server.get("/v1/activations", params={"tag": "suite=routes"}).json()
        assert [row["key"] for row in listed["data"]] == [entry.key]
        path = f"/v1/activations/{entry.key.replace('#', '%23')}"
        label = {"name": "refusal", "label": "correct", "score": 0.5, "details": {"why": "so"}}
        assert server.post(f"{path}/evaluations", label).status_code == 201
        shown = server.get(path).json()
        assert shown["evaluations"]["refusal"]["label"] == "correct"
        assert shown["activations"]["shape"] == list(entry.activations.shape)
        assert server.store()[entry.key].evaluations["refusal"].details == {"why": "so"}
        filtered = server.get("/v1/activations", params={"label": "refusal=correct"}).json()
        assert entry.key in [row["key"] for row in filtered["data"]]

    def test_pages(self, server: RunningServer) -> None:
        for n in range(3):
            server.complete(f"Page {n}", max_tokens=1)
        server.flush()
        keys = []
        offset: int | None = 0
        while offset is not None:
            page = server.get("/v1/activations", params={"limit": 7, "offset": offset}).json()
            keys += [row["key"] for row in page["data"]]
            offset = page["next"]
        assert sorted(keys) == sorted(server.store())

    @pytest.mark.parametrize("layer", ["last", "15"])
    def test_tensor(self, server: RunningServer, layer: str) -> None:
        from safetensors.numpy import load

        (entry,) = server.entries_of(server.complete("As a tensor."))
        expected = entry.layer("last" if layer == "last" else int(layer))
        path = f"/v1/activations/{entry.key.replace('#', '%23')}/tensor"
        npy = server.get(path, params={"layer": layer})
        assert np.array_equal(np.load(io.BytesIO(npy.content)), expected)
        tensors = load(server.get(path, params={"layer": layer, "format": "safetensors"}).content)
        assert np.array_equal(tensors["activations"], expected)
        assert np.array_equal(tensors["positions"], entry.positions)

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v1/activations/nothing", 404),
            ("/v1/activations/..%2F..%2Fetc%2Fpasswd", 404),
            ("/v1/activations/~meta", 404),
            ("/v1/activations?limit=0", 400),
            ("/v1/activations?limit=1000000", 400),
            ("/v1/activations?label=nonsense", 400),
            ("/v1/activations?status=nonsense", 400),
        ],
    )
    def test_bad_input(self, server: RunningServer, path: str, status: int) -> None:
        assert server.get(path).status_code == status

    def test_bad_labels(self, server: RunningServer) -> None:
        (entry,) = server.entries_of(server.complete("To be labelled."))
        path = f"/v1/activations/{entry.key.replace('#', '%23')}/evaluations"
        for body in (
            {"name": "x", "label": "wrong"},
            {"name": "", "label": "correct"},
            {"name": "x" * 500, "label": "correct"},
            {"name": "a\0b", "label": "correct"},
            {"name": "x", "label": "correct", "details": {"much": "x" * 70_000}},
        ):
            assert server.post(path, body).status_code == 400, body
        deep = "[" * 99 + "]" * 99
        for more in ('"score": NaN', '"score": Infinity', '"details": {"a": NaN}',
                     f'"details": {{"a": {deep}}}'):  # fmt: skip
            answer = httpx.post(
                f"{server.root_url}{path}",
                content=f'{{"name": "x", "label": "correct", {more}}}',
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 400, more
        missing = {"name": "x", "label": "correct"}
        assert server.post("/v1/activations/none/evaluations", missing).status_code == 404
        assert server.store()[entry.key].evaluations == {}

    def test_counters_and_metrics(self, server: RunningServer) -> None:
        server.entries_of(server.complete("Counted."))
        counters = server.get("/v1/activations/counters").json()
        assert counters["entries"] == len(server.store())
        assert server.metric("activation_logging_entries_total") == counters["totals"]["entries"]


def test_a_request_for_too_much_is_no_entry(server: RunningServer) -> None:
    """VLLM refuses it before it accepts it: nothing to log, nothing broken."""
    entries = len(server.store())
    assert (
        server.post("/v1/completions", {"model": "smol", "prompt": "word " * 5000}).status_code
        == 400
    )
    server.flush()
    assert len(server.store()) == entries


def test_abort_before_the_first_token(server: RunningServer) -> None:
    """A client that leaves at once still gets its entry."""
    body = {"model": "smol", "prompt": "word " * 1800, "max_tokens": 200, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.base_url}/completions", json={**body, "request_id": "gone"}, timeout=0.3
        )
    entry = wait_for_entry(server, "cmpl-gone")
    assert entry.finish_reason == "abort"
    assert entry.status == "complete"
