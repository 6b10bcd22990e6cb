"""What a client sends breaks no reader: records that hold any JSON under every name."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activation_logging import open_store
from activation_logging.store import StoreWriter
from tests.fixtures.answers import make_capture, make_document, make_segment
from tests.fixtures.planted import build
from tests.fixtures.readers import command, read_quickly, read_slowly, strict

OURS = (
    *("model", "request_id", "prompt", "response", "prompt_token_ids", "response_token_ids"),
    *("created", "vllm_version", "tokens", "error", "capture"),
)
"""What the front end makes itself; an entry without it cannot be read."""
ANYTHING = (
    *("messages", "tags", "sampling", "logprobs", "top_logprobs", "response_tokens", "choice"),
    *("finish_reason", "evaluations", "status", "layers", "positions", "scores", "unknown", "n"),
    *("shared_characters", "spans"),
)
"""What may come from a client, or merely look like ours."""
DEEP: Any = json.loads("[" * 400 + "]" * 400)
WRONG = (
    *(
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        float("nan"),
        float("-inf"),
        1e999,
        "",
        "x",
        "\0",
        "[bold]x[/]",
    ),
    *("\ud800", "\x1b[31m", [], [[]], ["a"], [None], [True], [{}], [1, "a"], [float("nan")] * 4),
    *({}, {"a": 1}, {"a": "[/x]"}, {"\ud800": "\n"}, {"gold": "[" * 100_000}, {"gold": 5}, DEEP),
    *([{"role": "user"}], [{"role": ["user"], "content": "x"}], [{"role": "user", "content": 5}]),
    *([{"role": "user", "content": [{"type": "text", "text": None}]}], [{"a": DEEP}]),
    *(
        [{"1": 0.5}] * 3,
        [{"x": 0.5}],
        [{"1": "x"}],
        [{"1": None}],
        [{"9" * 50: -1.0}],
        [{"-1": -1}],
    ),
)

_keys = st.sampled_from(
    ["role", "content", "user", "1", "-1", "gold", "temperature", "\ud800", "[/]"]
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.sampled_from(["user", "stop", "[/x]", "[b]", "\n", "\0", "\ud800", "שלום", "\x1b]0;x\x07"])
    | st.text(max_size=5)
)
any_json = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from(ANYTHING), any_json, min_size=1, max_size=6)


def put(writer: StoreWriter, name: str, fields: dict[str, Any]) -> None:
    """One whole answer, with these fields in its document."""
    segment = make_segment(name, 4)
    writer.put_capture(make_capture(name, [segment]))
    # One request, so that one `show` shows them all.
    document = make_document(name, prompt=name, request_id="all")
    writer.put_entry({**document, **fields})


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(fields, min_size=6, max_size=6))
def test_any_json_under_every_name(drawn: list[dict[str, Any]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        writer = StoreWriter(folder / "s", role="test")
        for number, given_fields in enumerate(drawn):
            put(writer, f"r{number}", given_fields)
        writer.close()
        with open_store(folder / "s") as store:
            assert len(store) == len(drawn)
        read_quickly(folder / "s")
    finally:
        shutil.rmtree(folder)


CASES = [(name, value) for name in ANYTHING[:9] for value in WRONG]


def test_every_wrong_value_under_every_name(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", role="test")
    for number, (name, value) in enumerate(CASES):
        put(writer, f"r{number}", {name: value})
    writer.close()
    read_quickly(tmp_path / "s")


def test_a_report_on_wrong_values(tmp_path: Path) -> None:
    """Labelled answers: in each, one name that a client may fill holds one wrong value."""

    def spoil(number: int, document: dict[str, Any]) -> None:
        name, value = CASES[number]
        document[name] = value

    build(tmp_path / "s", n=len(CASES), change=spoil)
    read_slowly(tmp_path / "s", tmp_path)


def test_what_does_not_fit_reads_as_none(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", role="test")
    wrong: dict[str, Any] = {
        "messages": ["a"],
        "tags": {"good": "yes", "bad": 5},
        "sampling": [1],
        "logprobs": ["x", None],
        "top_logprobs": [{"x": 1.0}],
        "response_tokens": [1, 2],
        "choice": "first",
        "finish_reason": 7,
    }
    put(writer, "wrong", wrong)
    infinite = [float("nan"), float("-inf")]
    right = {"logprobs": infinite, "top_logprobs": [{4: -0.5, 9: float("nan")}, {5: -1}]}
    put(writer, "right", right)
    writer.close()
    with open_store(tmp_path / "s") as store:
        (entry,) = store.for_prompt("wrong")
        assert (entry.messages, entry.logprobs, entry.top_logprobs) == (None, None, None)
        assert (entry.response_tokens, entry.choice, entry.finish_reason) == (None, None, None)
        assert (entry.tags, entry.sampling) == ({"good": "yes"}, {})
        assert entry.document["messages"] == ["a"], "the record is as it was stored"
        (entry,) = store.for_prompt("right")
        assert entry.logprobs == [None, None]
        assert entry.top_logprobs == [{4: -0.5}, {5: -1.0}]
        raw = store.snapshot().get(b"", entry.key.encode())
        assert strict(bytes(raw))["logprobs"] == [None, None], "the store holds strict JSON too"


@pytest.mark.parametrize("name", OURS)
def test_what_cannot_be_read_is_not_written(tmp_path: Path, name: str) -> None:
    """It is counted and logged, and hides no other entry."""
    wrong = [value for value in WRONG if type(value) not in (str, type(None), float, int)]
    if name != "created":
        wrong += [5, 1.5]
    writer = StoreWriter(tmp_path / "s", role="test")
    for number, value in enumerate(wrong):
        writer.put_entry({**make_document(f"r{number}", prompt=f"p{number}"), name: value})
    put(writer, "right", {})
    writer.close()
    strict(command("ls", tmp_path / "s", "--json"))
    with open_store(tmp_path / "s") as store:
        assert store.for_prompt("right")
    assert writer.stats.lost >= len(wrong) - 2
