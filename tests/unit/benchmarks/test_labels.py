"""Spans of a judged text, on their way to the entry whose response holds that text."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from activation_logging import Span, open_store, routes
from activation_logging.benchmarks.journal import Journal
from activation_logging.benchmarks.labels import LabelReport, Labels, apply_labels, reach
from activation_logging.errors import PluginError
from activation_logging.judges import Answer, Verdict
from activation_logging.judges.registry import Judge
from activation_logging.store import StoreWriter
from tests.fixtures.answers import put_answer

TEXT = "Born in 1867."
SPAN = Span(8, 12, "contradicted", claim="birth year", gold="1868", source="a list")


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The routes of a server that logs, over HTTP; their base URL."""
    app = FastAPI()
    routes.add_to(app, str(path))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["store", "server"])
def labels(request: pytest.FixtureRequest, store_path: Path) -> Iterator[Labels]:
    """Both ways to the entries of ``store_path``."""
    open_store(store_path, writable=True).close()
    if request.param == "store":
        yield reach(store_path, None)
        return
    pytest.importorskip("openai", reason="the extra 'eval' is not installed")
    with served(store_path) as url:
        yield reach(None, url)


def label(labels: Labels, path: Path, folder: Path, response: str, **fields: Any) -> LabelReport:
    """Log a response, judge its text, and write the label beside the entry."""
    writer = StoreWriter(path, role="test")
    content = {name: fields.pop(name) for name in ("content",) if name in fields}
    put_answer(writer, "one", response=response, **content)
    writer.close()
    answer = Answer("a", "p", "n", "t", request_id="one", **{"generation": TEXT, **fields})
    journal = Journal(folder, None)
    journal.add_answer(answer)
    details = {"answer_start": SPAN.start, "answer_end": SPAN.end, "value": 1867}
    verdict = Verdict.on(answer, "hallucinated", "j", "w", spans=[SPAN], details=details)
    journal.add_verdict(verdict)
    return apply_labels(labels, Journal(folder, None), evaluator="e", run={}, wait_s=5)


@pytest.mark.parametrize(
    ("response", "fields"),
    [
        (TEXT, {}),
        (f"<think>1867?</think>\n\n{TEXT}", {"content": TEXT}),
        # The reasoning quotes the answer.
        (f"<think>{TEXT} Yes.</think>{TEXT}", {"content": TEXT}),
        (f"<think>\nIt is so.\n</think>\n{TEXT}", {"reasoning": "\nIt is so.\n"}),
        (f"{TEXT}<tool_call>{{}}</tool_call>", {"content": TEXT}),
    ],
)
def test_spans_move_to_the_text(
    response: str, fields: dict[str, Any], labels: Labels, store_path: Path, tmp_path: Path
) -> None:
    report = label(labels, store_path, tmp_path / "run", response, **fields)
    assert (report.written, report.note) == (1, None)
    with open_store(store_path) as store:
        (entry,) = store.entries()
        found = entry.evaluations["e"]
    (span,) = found.spans
    assert entry.response[span.start : span.end] == "1867"
    assert span.start == response.rindex("1867")
    assert (found.details["answer_start"], found.details["answer_end"]) == (span.start, span.end)
    assert (span.label, span.claim, span.gold, span.source) == (
        "contradicted",
        "birth year",
        "1868",
        "a list",
    )
    assert (found.label, found.judge) == ("hallucinated", "j")


def test_spans_of_a_text_that_is_nowhere_are_left_out(
    labels: Labels, store_path: Path, tmp_path: Path
) -> None:
    response = "Born <tool_call>{}</tool_call>in 1867."
    report = label(labels, store_path, tmp_path / "run", response, content=TEXT)
    assert report.written == 1
    assert report.without_spans == ("a",)
    assert str(report.note).startswith("1 labels have no spans")
    with open_store(store_path) as store:
        (entry,) = store.entries()
        assert entry.evaluations["e"].label == "hallucinated"
        assert entry.evaluations["e"].spans == ()
        assert not {"answer_start", "answer_end"} & entry.evaluations["e"].details.keys()


@pytest.mark.parametrize("span", [Span(0, 99, "supported"), Span(3, 2, "supported")])
def test_a_judge_that_gives_wrong_spans(span: Span) -> None:
    def decide(answer: Answer) -> Verdict:
        return Verdict.on(answer, "correct", "bad/1", "w", spans=[span])

    with pytest.raises(PluginError, match="'bad/1' gave invalid spans"):
        asyncio.run(Judge("bad/1", decide)(Answer("a", "p", "n", "t", TEXT)))
