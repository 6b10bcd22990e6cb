"""The prompts file of ``activation-logging generate``, and what is asked again; no engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.errors import (
    ActivationLoggingError,
    PromptsError,
    RequestOptionError,
    SettingsError,
)
from activation_logging.generate import (
    LINE_TAG,
    RUN_TAG,
    answered_lines,
    generate,
    read_prompts,
    run_name,
)
from activation_logging.store import StoreWriter
from tests.fixtures.answers import make_capture, make_document, make_segment


def write(path: Path, *lines: Any) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


class TestReading:
    def test_prompts_messages_and_tags(self, tmp_path: Path) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        path = write(
            tmp_path / "p.jsonl",
            {"prompt": "One", "tags": {"split": "test"}},
            "",
            {"messages": messages},
        )
        first, second = read_prompts(path)
        assert (first.number, first.prompt, first.tags) == (1, "One", {"split": "test"})
        assert (second.number, second.prompt, second.messages) == (3, None, messages)

    def test_ids_are_of_the_content_alone(self, tmp_path: Path) -> None:
        one, two = {"prompt": "One"}, {"prompt": "Two"}
        before = read_prompts(write(tmp_path / "a.jsonl", one, two))
        after = read_prompts(write(tmp_path / "b.jsonl", {"prompt": "New"}, two, one))
        assert [line.id for line in before] == [after[2].id, after[1].id]

    def test_equal_lines_are_asked_each(self, tmp_path: Path) -> None:
        lines = read_prompts(write(tmp_path / "p.jsonl", *[{"prompt": "Same"}] * 3))
        assert len({line.id for line in lines}) == 3

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{nonsense", "not valid JSON"),
            ("[1]", "not a JSON object"),
            ({"prompt": "a", "messages": []}, "either 'prompt' or 'messages'"),
            ({"tags": {}}, "either 'prompt' or 'messages'"),
            ({"prompt": ""}, "not a text"),
            ({"prompt": 7}, "not a text"),
            ({"promt": "a"}, "unknown field 'promt'"),
            ({"messages": "Hi"}, "not a list of messages"),
            ({"messages": [{"content": "Hi"}]}, "'role'"),
            ({"messages": [{"role": "user", "content": 5}]}, "'content'"),
            ({"prompt": "a", "tags": {"n": 1}}, "must be a string"),
            ({"prompt": "a", "tags": ["x"]}, "not a JSON object of strings"),
            ({"prompt": "a", "tags": {"x": "y" * 20_000}}, "longer than"),
            ({"prompt": "a", "tags": {RUN_TAG: "x"}}, RUN_TAG),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: Any, reason: str) -> None:
        path = write(tmp_path / "p.jsonl", {"prompt": "good"}, line)
        with pytest.raises(PromptsError, match="line 2: ") as caught:
            read_prompts(path)
        assert reason in str(caught.value)

    def test_many_bad_lines_are_counted(self, tmp_path: Path) -> None:
        with pytest.raises(PromptsError, match="and 15 more"):
            read_prompts(write(tmp_path / "p.jsonl", *["x"] * 25))

    def test_no_file_and_no_prompts(self, tmp_path: Path) -> None:
        with pytest.raises(PromptsError, match="No such file"):
            read_prompts(tmp_path / "none.jsonl")
        with pytest.raises(PromptsError, match="no prompts"):
            read_prompts(write(tmp_path / "p.jsonl", ""))
        (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(PromptsError, match="UTF-8"):
            read_prompts(tmp_path / "b.jsonl")

    def test_errors_are_the_packages(self) -> None:
        assert issubclass(PromptsError, ActivationLoggingError)


def test_a_run_is_of_one_model_and_sampling() -> None:
    path = Path("some/questions.jsonl")
    name = run_name(path, "org/m", {"temperature": 0})
    assert name.startswith("questions-")
    assert name == run_name(path, "org/m", {"temperature": 0})
    assert name != run_name(path, "org/m", {"temperature": 1})
    assert name != run_name(path, "org/n", {"temperature": 0})


def test_only_whole_answers_of_the_run_count(tmp_path: Path) -> None:
    path = tmp_path / "s.lmdb"
    writer = StoreWriter(path, role="test")
    endings = {"a": "length", "b": "abort", "c": "stop", "d": "stop", "e": "stop", "f": "stop"}
    for name, reason in endings.items():
        tags = {RUN_TAG: "other" if name == "e" else "mine", LINE_TAG: name}
        writer.put_entry(make_document(name, finish_reason=reason, tags=tags))
        if name == "f":  # As ACTIVATION_KEEP wants it.
            writer.put_capture(replace(make_capture(name, []), unkept="its score is low"))
        elif name != "d":  # Killed before its rows came.
            writer.put_capture(make_capture(name, [make_segment(name, 4)]))
    # Anybody may use the name of the tag.
    writer.put_entry(make_document("g", tags={RUN_TAG: "mine"}))
    writer.put_capture(make_capture("g", [make_segment("g", 4)]))
    writer.close()
    with open_store(path) as store:
        assert answered_lines(store, "mine") == {"a", "c", "f"}
        assert answered_lines(store, "nothing") == set()


def test_logging_switched_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVATION_LOGGING", "0")
    path = write(tmp_path / "p.jsonl", {"prompt": "a"})
    with pytest.raises(SettingsError, match="ACTIVATION_LOGGING=0"):
        generate(path, model="m", sampling={})


def test_a_stop_on_a_probe_that_is_not_served_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"})
    sampling = {"extra_args": {"activation_stop": {"probe": "b", "above": 0.5}}}
    with pytest.raises(RequestOptionError, match="no probes; start it with --activation-probe"):
        generate(path, model="m", sampling=sampling)
    monkeypatch.setenv("ACTIVATION_PROBES", "a=x,b=y:shadow")
    with pytest.raises(RequestOptionError, match="no probe 'b'; choose among a"):
        generate(path, model="m", sampling=sampling)
