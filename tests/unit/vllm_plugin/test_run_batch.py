"""Lines of a batch's file: checked as bodies over HTTP are, and known as requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from activation_logging.settings import MAX_TAGS_BYTES
from activation_logging.vllm_plugin.run_batch import LoggedLine

MESSAGES = [{"role": "user", "content": "Hello"}]


def line_of(custom_id: str = "mine", **body: Any) -> LoggedLine:
    whole = {"model": "m", "messages": MESSAGES, **body}
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": whole,
    }
    return LoggedLine.model_validate_json(json.dumps(line))


def tags_of(line: LoggedLine) -> dict[str, str]:
    return json.loads(line.body.vllm_xargs["activation_tags"])


def test_messages_and_the_custom_id_are_known() -> None:
    line = line_of()
    assert line._asked is not None
    assert line._asked.messages(0) == MESSAGES
    assert tags_of(line) == {"custom_id": "mine"}
    assert line._refusal is None


@pytest.mark.parametrize("form", [dict, json.dumps])
def test_tags_may_be_an_object(form: Any) -> None:
    line = line_of(vllm_xargs={"activation_tags": form({"a": "ü"}), "other": 1})
    assert tags_of(line) == {"custom_id": "mine", "a": "ü"}
    assert line.body.vllm_xargs["other"] == 1


def test_a_tag_of_that_name_is_the_users() -> None:
    line = line_of(vllm_xargs={"activation_tags": {"custom_id": "theirs"}})
    assert tags_of(line) == {"custom_id": "theirs"}


def test_no_line_is_refused_for_its_name() -> None:
    line = line_of("x" * MAX_TAGS_BYTES, vllm_xargs={"activation_tags": {"a": "b"}})
    assert line._refusal is None
    assert tags_of(line) == {"a": "b"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"activation_logging": "off"}, "activation_logging"),
        ({"Activation-Tags": {}}, "Activation-Tags"),
        ({"vllm_xargs": {"activation_foo": 1}}, "activation_foo"),
        ({"vllm_xargs": {"activation_tags": {"a": {"b": "c"}}}}, "activation_tags"),
    ],
)
def test_bad_ones_are_refused_by_name_and_alone(body: dict[str, Any], named: str) -> None:
    line = line_of(**body)
    assert line.custom_id == "mine"
    assert line._refusal is not None
    assert line._refusal.parameter == named


def test_a_token_goes_no_further() -> None:
    line = line_of(auth_token="hf_secret")
    assert "hf_secret" not in repr(line)
    assert "hf_secret" not in repr(line._asked)


@pytest.mark.parametrize("raw", ["{", "[1]", '{"custom_id": "a"}'])
def test_what_is_no_line_is_vllms_to_refuse(raw: str) -> None:
    with pytest.raises(ValueError, match="for BatchRequestInput"):
        LoggedLine.model_validate_json(raw)
