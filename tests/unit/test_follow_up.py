"""Follow-up questions that cannot be asked, or whose replies go elsewhere; each is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra 'eval' is not installed")

from typer.testing import CliRunner

from activation_logging import follow_up, open_store
from activation_logging.cli import _app
from activation_logging.detectors.follow_ups import question_about, tags_of
from activation_logging.errors import BenchmarkError
from activation_logging.follow_up import ask_follow_ups
from activation_logging.store import StoreWriter
from tests.fixtures.answers import put_answer
from tests.fixtures.canned import canned
from tests.fixtures.planted import MODEL, build

WORDS = ["True", " True", "False", "B"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is what comes after the last try."""
    monkeypatch.setattr(follow_up, "_WAIT_S", 0.0)
    monkeypatch.setattr(follow_up, "_RETRIES", 0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build(tmp_path / "s", n=12, samples=2)


@pytest.fixture
def server() -> Iterator[Any]:
    with canned(lambda body: "True", vocabulary=WORDS) as running:
        yield running


def test_replies_that_are_logged_elsewhere(store: Path, server: Any) -> None:
    with pytest.raises(BenchmarkError, match=r"24 of 24 replies are not in .* merge"):
        ask_follow_ups(store, "p_true", base_url=server.base_url)
    assert len(server.asked) == 24
    for body in server.asked:
        tags = json.loads(body["vllm_xargs"]["activation_tags"])
        assert (tags["kind"], tags["true"], tags["false"]) == ("p_true", "[0, 1]", "[2, 3]")


def test_equal_texts_are_asked_about_once(tmp_path: Path, server: Any) -> None:
    same = {"response": "It is Rome.", "response_tokens": None}
    path = build(tmp_path / "t", n=3, samples=4, change=lambda i, d: d.update(same))
    with pytest.raises(BenchmarkError, match="3 of 3 replies"):
        ask_follow_ups(path, "p_true", base_url=server.base_url)
    # Nor is it asked whether they mean the same.
    report = ask_follow_ups(path, "entails", base_url=server.base_url)
    assert (report.subjects, report.asked) == (0, 0)


@pytest.mark.parametrize(("kind", "asked"), [("p_true", 22), ("entails", 11)])
def test_what_is_deleted_meanwhile_is_not_asked_about(
    store: Path, server: Any, kind: Any, asked: int
) -> None:
    server.reply = lambda body: "False"
    with open_store(store, writable=True) as writing:
        keys = [entry.key for entry in writing.entries()][4:6]  # two answers to one prompt

        def delete(what: str, done: int, total: int) -> None:
            if (what, done) == ("asking", 0):
                assert writing.delete_all(keys) == 2

        with pytest.raises(BenchmarkError, match=f"{asked} of {asked} replies are not in"):
            ask_follow_ups(store, kind, base_url=server.base_url, progress=delete)
    assert len(server.asked) == asked


def test_failures_are_listed_and_end_the_run(store: Path) -> None:
    with canned(lambda body: 500, vocabulary=WORDS) as server:
        report = ask_follow_ups(store, "p_true", base_url=server.base_url, max_connections=2)
        assert report.asked == 0
        # It goes on after one, but not for ever.
        assert 8 <= len(report.failures) <= 10
        assert "500" in report.failures[0].reason
        options = ["--ask", "p_true", "--base-url", server.base_url, "--max-connections", "1"]
        done = CliRunner().invoke(_app, ["follow-up", str(store), *options])
    assert done.exit_code == 1
    assert "failed with 500" in " ".join(done.output.split())
    assert "are left for the same command" in " ".join(done.output.split())


def test_a_server_that_goes_away(store: Path) -> None:
    """Its failures are listed, and what it replied before is counted."""
    replies = iter(["True"] * 5)
    with canned(lambda body: next(replies, 503), vocabulary=WORDS) as server:
        report = ask_follow_ups(store, "p_true", base_url=server.base_url, max_connections=1)
    assert (report.asked, report.done, report.unlogged) == (5, 5, 5)
    assert len(report.failures) == 8


def test_a_key_is_sent_and_never_shown(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret-of-mine")
    with canned(lambda body: 401, vocabulary=WORDS) as server:
        report = ask_follow_ups(store, "p_true", base_url=server.base_url)
    assert report.failures
    assert "secret" not in str(report) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("p_true", {"by": "org/judge"}, "what a model says of its own answers"),
        ("p_true", {"label": "nobody"}, "no complete answer to ask about"),
        ("p_true", {"tags": {"a": "b"}}, "no complete answer to ask about"),
        ("entails", {"model": "org/other"}, "no complete answer to ask about"),
        ("entails", {"model": "org/other", "by": MODEL}, "no complete answer to ask about"),
        ("entails", {"by": "org/judge"}, "does not serve the model 'org/judge'"),
    ],
)
def test_what_cannot_be_asked(store: Path, server: Any, kind: Any, options: Any, says: str) -> None:
    with pytest.raises(BenchmarkError, match=says):
        ask_follow_ups(store, kind, base_url=server.base_url, **options)


def test_servers_that_cannot_be_asked(store: Path) -> None:
    with pytest.raises(BenchmarkError, match="no server answers"):
        ask_follow_ups(store, "p_true", base_url="http://127.0.0.1:9/v1")
    with (
        canned(lambda body: "True", owner="somebody") as other,
        pytest.raises(BenchmarkError, match="is not vLLM"),
    ):
        ask_follow_ups(store, "p_true", base_url=other.base_url)
    with (
        canned(lambda body: "True", vocabulary=["True"]) as wordless,
        pytest.raises(BenchmarkError, match="no tokens for the words True and False"),
    ):
        ask_follow_ups(store, "p_true", base_url=wordless.base_url)


def test_two_models_in_one_store(tmp_path: Path, server: Any) -> None:
    path = build(tmp_path / "s", n=4)
    build(path, n=4, prefix="b", change=lambda i, d: d.update(model="org/other"))
    with pytest.raises(BenchmarkError, match=r"by 2 models \(org/other, org/tiny\)"):
        ask_follow_ups(path, "p_true", base_url=server.base_url)
    with pytest.raises(BenchmarkError, match="4 of 4 replies"):
        ask_follow_ups(path, "p_true", base_url=server.base_url, model="tiny")


def test_whoever_is_named_is_asked_whatever_others_have_said(tmp_path: Path, server: Any) -> None:
    path = build(tmp_path / "s", n=1, samples=2)
    with open_store(path) as opened:
        one, other = opened.entries()
        asked = [tags_of("entails", pair, [0], [2]) for pair in ((one, other), (other, one))]
    writer = StoreWriter(path, role="test")
    for tags in asked:
        said = {"tags": tags, "top_logprobs": [{0: -0.1}], "response_ids": [0], "response": "True"}
        put_answer(writer, tags["about"], prompt=tags["about"], model="org/other", **said)
    writer.close()
    report = ask_follow_ups(path, "entails", base_url=server.base_url)
    assert (report.known, report.asked) == (1, 0)
    report = ask_follow_ups(path, "entails", base_url=server.base_url, by=MODEL)
    # Its first reply has no word among the likeliest, so the other direction does not matter.
    assert (report.known, report.asked, report.undecided) == (0, 1, 1)


def test_a_question_shows_the_question_and_the_answers(store: Path) -> None:
    with open_store(store) as opened:
        one, other, *_ = opened.entries()
        assert one.model == MODEL
        text = question_about("p_true", [one])
        assert one.question in text
        assert one.response in text
        text = question_about("entails", [one, other])
        assert text.index(one.response) < text.index(other.response)
