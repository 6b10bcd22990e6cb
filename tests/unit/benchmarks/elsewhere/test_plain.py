"""JSON lines and CSV: how answers are found, and what is said of a line that labels nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activation_logging import Span, open_store
from activation_logging.benchmarks.elsewhere.apply import label_from
from activation_logging.benchmarks.entries import Labels, ServerLabels, StoreLabels
from activation_logging.errors import LabelsFileError, SettingsError
from activation_logging.store import StoreWriter, layout
from tests.fixtures.answers import put_answer
from tests.fixtures.logging_server import logging_server

PROMPT = "<user>Who was Ada?<assistant>"
MESSAGES = [{"role": "user", "content": "Who was Ada?"}]


def fill(writer: StoreWriter) -> None:
    """Two answers to a chat, two equal ones to a completion, two choices, and one broken off."""
    put_answer(writer, "chat-1", prompt=PROMPT, messages=MESSAGES, response="A poet.")
    put_answer(writer, "chat-2", prompt=PROMPT, messages=MESSAGES, response="A programmer.")
    put_answer(writer, "same-1", prompt="2 + 2 =", response=" 4")
    put_answer(writer, "same-2", prompt="2 + 2 =", response=" 4")
    for choice, text in enumerate(("Yes", "No")):
        name = {"request_id": "both", "choice": choice}
        put_answer(writer, f"both-{choice}", prompt="Well?", response=text, **name)
    put_answer(writer, "left", prompt="Gone?", response="I", finish_reason="abort")
    put_answer(writer, "thinks", prompt="Deep?", response="<think>Hm.</think>So.", content="So.")
    writer.flush()


@pytest.fixture
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Labels]:
    path = tmp_path / "s.lmdb"
    if getattr(request, "param", "store") == "http":
        with logging_server(path, lambda question: "") as server:
            fill(server.writer)
            yield ServerLabels(server.base_url)
        return
    writer = StoreWriter(path, role="test")
    fill(writer)
    writer.close()
    yield StoreLabels(path)


both_ways = pytest.mark.parametrize("labels", ["store", "http"], indirect=True)
Give = Callable[..., Any]


@pytest.fixture
def give(labels: Labels, tmp_path: Path) -> Give:
    """Write lines to a file, and label by them."""

    def label(*lines: Any, name: str = "mine.jsonl", **options: Any) -> Any:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return label_from(path, labels, **options)

    return label


def labelled(tmp_path: Path, evaluator: str = "mine") -> dict[str, str]:
    with open_store(tmp_path / "s.lmdb") as store:
        found = {entry: entry.evaluations for entry in store.entries()}
        return {
            f"{entry.request_id}/{entry.choice}" if entry.choice else entry.request_id: said[
                evaluator
            ].label
            for entry, said in found.items()
            if evaluator in said
        }


def reasons(outcome: Any) -> list[str]:
    return [problem.reason for problem in outcome.problems]


KEY = layout.prompt_key(PROMPT)


@both_ways
@pytest.mark.parametrize(
    ("where", "which"),
    [
        ({"request_id": "chat-1"}, ["chat-1"]),
        ({"key": KEY}, ["chat-1"]),
        ({"key": f"{KEY}#1"}, ["chat-2"]),
        ({"key": KEY, "response": "A programmer."}, ["chat-2"]),
        ({"prompt": PROMPT, "response": "A poet."}, ["chat-1"]),
        ({"prompt": "Who was Ada?", "response": "A poet."}, ["chat-1"]),
        ({"prompt": "Who was Ada?"}, None),
        ({"prompt": "2 + 2 ="}, ["same-1", "same-2"]),
        ({"request_id": "same-2"}, ["same-2"]),
        ({"request_id": "both", "response": "No"}, ["both/1"]),
        ({"request_id": "both", "choice": 1}, ["both/1"]),
        ({"request_id": "both"}, None),
        ({"request_id": "thinks", "response": "So."}, ["thinks"]),
        ({"key": "0" * 64, "prompt": "2 + 2 =", "response": " 4"}, ["same-1", "same-2"]),
    ],
)  # fmt: skip
def test_how_an_answer_is_found(
    give: Give, tmp_path: Path, where: dict[str, Any], which: list[str] | None
) -> None:
    outcome = give({**where, "label": "correct"})
    assert labelled(tmp_path) == dict.fromkeys(which or (), "correct")
    if which is None:
        assert reasons(outcome) == ["it has 2 answers; say which by its `response`"]


def test_the_keys_of_a_store_lead_back_to_its_entries(give: Give, tmp_path: Path) -> None:
    with open_store(tmp_path / "s.lmdb") as store:
        keys = {entry.key: entry.request_id for entry in store.entries()}
    outcome = give(*({"key": key, "label": "correct", "details": {"id": key}} for key in keys))
    assert reasons(outcome) == ["its answer ended with 'abort'"]
    with open_store(tmp_path / "s.lmdb") as store:
        found = {entry.key: entry.evaluations for entry in store.entries()}
    told = {key: said["mine"].details["id"] for key, said in found.items() if said}
    assert told == {key: key for key, name in keys.items() if name != "left"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"request_id": "none"}, "no entry has this request id"),
        ({"request_id": "none", "prompt": "2 + 2 ="}, "no entry has this request id"),
        ({"key": "0" * 64}, "no entry has this key"),
        ({"prompt": "Who was Bob?"}, "no entry has this prompt"),
        ({"request_id": "chat-1", "response": "A poem."}, "its entry holds another text"),
        ({"request_id": "both", "choice": 2}, "its request has no choice 2"),
        ({"request_id": "left"}, "its answer ended with 'abort'"),
        ({"request_id": 7}, "request_id is 7, not text"),
        ({"request_id": "chat-1", "label": None}, "it has no label"),
        ({}, "it has none of request_id, key, prompt to find the answer by"),
        (
            {"request_id": "chat-1", "label": "bad"},
            "'bad' stands for no label; say which with --map VALUE=LABEL",
        ),
        ({"request_id": "chat-1", "score": "high"}, "score is 'high', not a number"),
        ({"request_id": "chat-1", "score": True}, "score is True, not a number"),
        ({"request_id": "chat-1", "details": "[1]"}, "details is a value of type list"),
        ({"request_id": "chat-1", "spans": "1"}, "spans is a list of spans"),
        (
            {"request_id": "chat-1", "spans": [{"start": 0, "end": 99, "label": "supported"}]},
            "the span of mine from 0 to 99 lies outside the response, which has 7 characters",
        ),
        ({"request_id": "chat-1", "name": "n" * 200}, "an evaluator's name has 1 to 128 bytes"),
    ],
)
def test_why_a_line_labels_nothing(
    give: Give, tmp_path: Path, line: dict[str, Any], reason: str
) -> None:
    before = {"request_id": "same-1", "label": "refused"}
    after = {"request_id": "same-2", "label": "invalid"}
    outcome = give(before, {"label": "correct", **line}, after)
    assert labelled(tmp_path) == {"same-1": "refused", "same-2": "invalid"}
    (problem,) = outcome.problems
    assert problem.place == "line 2"
    assert problem.reason.startswith(reason)


@both_ways
def test_everything_that_a_line_may_say(give: Give, tmp_path: Path) -> None:
    span = {"start": 0, "end": 2, "label": "contradicted", "claim": "answer", "gold": "No"}
    give(
        {
            "request_id": "thinks",
            "response": "So.",
            "label": "Hallucinated",
            "score": 0.25,
            "name": "we",
            "judge": "two of us",
            "details": {"minutes": 3},
            "spans": [span],
        }
    )
    with open_store(tmp_path / "s.lmdb") as store:
        (entry,) = store.for_request("thinks")
        label = entry.evaluations["we"]
    assert (label.label, label.score, label.judge) == ("hallucinated", 0.25, "two of us")
    assert label.details["minutes"] == 3
    # The spans are of the judged text, which is the last part of the response.
    assert label.spans == (Span(18, 20, "contradicted", "answer", "No"),)
    assert entry.response[18:20] == "So"


def test_one_answer_twice(give: Give, tmp_path: Path) -> None:
    one = {"request_id": "chat-1", "label": "correct"}
    other = {"prompt": PROMPT, "response": "A poet."}
    outcome = give(one, {**other, "label": "correct"}, {**other, "label": "refused"})
    assert labelled(tmp_path) == {"chat-1": "correct"}
    assert (outcome.written, outcome.repeated) == (1, 1)
    assert reasons(outcome) == ["it says 'refused', line 1 said 'correct'"]
    assert give({**one, "label": "refused"}).written == 1  # another try replaces its own
    assert labelled(tmp_path) == {"chat-1": "refused"}


@both_ways
def test_another_evaluators_label_stays(give: Give, tmp_path: Path) -> None:
    with open_store(tmp_path / "s.lmdb", writable=True) as store:
        (entry,) = store.for_request("chat-1")
        store.put_evaluation(entry.key, name="mine", label="refused", judge="rules/1")
    line = {"request_id": "chat-1", "label": "correct"}
    assert reasons(give(line)) == [
        "rules/1 has labelled it 'refused' as 'mine'; give another --name"
    ]
    assert labelled(tmp_path) == {"chat-1": "refused"}
    assert give(line, name="theirs.jsonl").problems == []
    assert labelled(tmp_path, "theirs") == {"chat-1": "correct"}


def test_a_name_for_all(give: Give, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    lines = [{"request_id": "chat-1", "label": "correct", "name": "x"}, {"label": "correct"}]
    outcome = give(*lines, dry_run=True, problems=path)
    assert (outcome.written, outcome.labels) == (1, {"x": {"correct": 1}})
    assert labelled(tmp_path, "x") == {}
    assert [json.loads(line)["place"] for line in path.read_text().splitlines()] == ["line 2"]


@pytest.mark.parametrize(
    ("given", "value", "label"),
    [
        (["1=hallucinated"], 1, "hallucinated"),
        (["1=hallucinated"], "1.0", "hallucinated"),
        (["yes=correct"], "Yes ", "correct"),
        (["a=b=correct"], "a=b", "correct"),
        (["x=correct", "x=refused"], "x", "correct"),
        ([">=0.5=correct", "<0.5=hallucinated"], 0.5, "correct"),
        ([">=0.5=correct", "<0.5=hallucinated"], "0.49", "hallucinated"),
        (["correct=hallucinated"], "correct", "hallucinated"),
        (["<1=refused"], True, None),
        (["<1=refused"], "nan", None),
        ([], 1, None),
    ],
)
def test_what_a_value_stands_for(
    give: Give, tmp_path: Path, given: list[str], value: Any, label: str | None
) -> None:
    give({"request_id": "chat-1", "label": value}, given=given)
    assert labelled(tmp_path) == ({"chat-1": label} if label else {})


@pytest.mark.parametrize("text", ["x", "x=good", "=correct", ">=high=correct"])
def test_a_wrong_map(give: Give, text: str) -> None:
    with pytest.raises(SettingsError, match="map: "):
        give({"request_id": "chat-1", "label": "correct"}, given=[text])


class TestText:
    """Files of every encoding and shape; the entries are the same."""

    @pytest.fixture
    def labels(self, tmp_path: Path) -> Labels:
        path = tmp_path / "s.lmdb"
        writer = StoreWriter(path, role="test")
        put_answer(writer, "one", prompt="Où est-ce ?", response="Là.")
        put_answer(writer, "two", prompt="2?", response='a,\n"b"')
        writer.close()
        return StoreLabels(path)

    @pytest.fixture
    def read(self, labels: Labels, tmp_path: Path) -> Give:
        def label(content: bytes, name: str = "mine.csv", **options: Any) -> Any:
            (tmp_path / name).write_bytes(content)
            return label_from(tmp_path / name, labels, **options)

        return label

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize(
        ("encoding", "said"),
        [
            ("utf-8", None),
            ("utf-8-sig", None),
            ("utf-8-sig", "utf-8"),
            ("utf-16", None),
            ("utf-32", None),
            ("utf-16-le", "utf-16-le"),
            ("latin-1", "latin-1"),
        ],
    )
    def test_csv(
        self, read: Give, tmp_path: Path, encoding: str, said: str | None, delimiter: str
    ) -> None:
        file = io.StringIO()
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["Prompt ", "response", "label", "score", "spans", "details", "also"])
        spans = json.dumps([{"start": 0, "end": 2, "label": "supported"}])
        rows.writerow(["Où est-ce ?", "Là.", "correct", "0.5", spans, '{"à": 1}', "à"])
        rows.writerow(["2?", 'a,\n"b"', "refused", "", "", "", ""])
        rows.writerow([])
        outcome = read(file.getvalue().encode(encoding), encoding=said)
        assert outcome.problems == []
        with open_store(tmp_path / "s.lmdb") as store:
            one, two = (store.for_request(name)[0].evaluations["mine"] for name in ("one", "two"))
        assert (one.label, one.score, one.spans[0].end) == ("correct", 0.5, 2)
        assert one.details == {"à": 1}
        assert (two.label, two.score) == ("refused", None)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"  \n\n", "is empty"),
            (bytes(range(256)), "is not text"),
            ("prompt,label\nOù,correct\n".encode("latin-1"), "is not UTF-8 at byte 14"),
            (b"prompt,label\n" + b"x,correct\n" * 300_000 + b"\xff", "not UTF-8 at byte 3000013"),
            (b"prompt,verdict\n", "has no column 'label', only 'prompt', 'verdict'"),
            (b"answer,label\n", "has none of the columns request_id, key, prompt"),
            (b"prompt,label,label\n", "has the column 'label' twice"),
            (b"Dear all,\nhello\n", "is no Inspect log, its lines are not JSON"),
            (b"[\n", "is one JSON array"),
            (b"\x1f\x8b\x08", "is gzip"),
            (b"PAR1....", "is Parquet"),
            (b"PK\x03\x04....", "Inspect cannot read"),
            (b'{\n "a": 1\n}\n', "Inspect cannot read"),
        ],
    )  # fmt: skip
    def test_no_labels_in_it(self, read: Give, content: bytes, message: str) -> None:
        with pytest.raises(LabelsFileError, match=message):
            read(content, name="labels.jsonl")

    def test_nothing_there(self, labels: Labels, tmp_path: Path) -> None:
        with pytest.raises(LabelsFileError, match="No such file"):
            label_from(tmp_path / "nothing.csv", labels)
        with pytest.raises(LabelsFileError, match="there is no encoding 'klingon'"):
            (tmp_path / "a.csv").write_text("prompt,label")
            label_from(tmp_path / "a.csv", labels, encoding="klingon")

    def test_broken_lines(self, read: Give) -> None:
        good = b'{"request_id": "one", "label": "correct"}\n'
        outcome = read(good + b"no\n[1]\n\n" + good[:20], name="labels.csv")
        assert outcome.written == 1
        assert [(p.place, p.reason) for p in outcome.problems] == [
            ("line 2", "it is not JSON"),
            ("line 3", "it is no JSON object"),
            ("line 5", "it is not JSON and ends in the middle"),
        ]

    def test_broken_rows(self, read: Give) -> None:
        outcome = read(b'request_id,label\none,correct,3\none\none,correct\n"one,correct\n')
        assert outcome.written == 1
        assert [(p.place, p.reason) for p in outcome.problems] == [
            ("line 2", "it has 3 cells where the first line has 2"),
            ("line 3", "it has 1 cells where the first line has 2"),
            ("line 5", "it is not CSV: unexpected end of data"),
        ]

    def test_progress_in_a_long_file(self, labels: Labels, tmp_path: Path) -> None:
        path = tmp_path / "long.jsonl"
        path.write_text('{"request_id": "one", "label": "correct"}\n' * 30_000)
        told: list[tuple[str, int, int]] = []
        outcome = label_from(path, labels, progress=lambda *what: told.append(what))
        assert (outcome.written, outcome.repeated) == (1, 29_999)
        done = [number for _, number, _ in told]
        assert done == sorted(done)
        assert len(set(done)) > 10
        assert told[-1][2] == path.stat().st_size // 1024
