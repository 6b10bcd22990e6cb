"""Logs that Inspect wrote, and the hook in it: which entry each score labels, and with what."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activation_logging import Span, open_store
from activation_logging.benchmarks import run_benchmark
from activation_logging.benchmarks.elsewhere import hook
from activation_logging.benchmarks.elsewhere.apply import label_from
from activation_logging.benchmarks.elsewhere.hook import labelled_otherwise
from activation_logging.benchmarks.entries import ServerLabels, StoreLabels
from activation_logging.errors import LabelsFileError
from tests.fixtures.canned import Canned, canned
from tests.fixtures.logging_server import LoggingServer, logging_server
from tests.unit.benchmarks.elsewhere.toy_task import toy

GRADES = {"correct": 2, "hallucinated": 1}


def answer(question: str) -> str:
    """Right, except about threes."""
    if question == "Are you sure?":
        return "Yes, I am."
    if not (sum_of := re.match(r"What is (\d)", question)):
        return "Nobody knows."
    number = int(sum_of[1])
    return f"It is {2 * number + (number == 3)}."


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoggingServer]:
    with logging_server(tmp_path / "s.lmdb", answer) as running:
        yield running


def evaluate(server: LoggingServer | Canned, folder: Path, task: Any = None, **options: Any) -> Any:
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    model = get_model(
        f"openai-api/served/{server.model}",
        base_url=server.base_url,
        api_key="EMPTY",
        memoize=False,
    )
    given = {"display": "none", "log_dir": str(folder), "score_display": False, **options}
    log = inspect_eval(task or toy(), model=model, **given)[0]
    assert log.status == "success", log.error
    if isinstance(server, LoggingServer):
        server.writer.flush()
    return log


@pytest.fixture
def log(server: LoggingServer, tmp_path: Path) -> Path:
    with labelled_otherwise():
        return Path(evaluate(server, tmp_path / "logs").location)


def labels_of(server: LoggingServer, evaluator: str) -> dict[str, str]:
    """Label by answer."""
    with open_store(server.path) as store:
        return {
            entry.response: entry.evaluations[evaluator].label
            for entry in store.entries()
            if evaluator in entry.evaluations
        }


def counts(outcome: Any) -> dict[str, dict[str, int]]:
    return {name: dict(found) for name, found in outcome.labels.items()}


RIGHT = {"It is 2.": "correct", "It is 4.": "correct", "It is 7.": "hallucinated"}


@pytest.mark.parametrize("way", ["store", "http"])
def test_each_score_labels_the_answer_it_is_about(
    server: LoggingServer, log: Path, way: str
) -> None:
    labels = StoreLabels(server.path) if way == "store" else ServerLabels(server.base_url)
    tried = label_from(log, labels, dry_run=True)
    assert labels_of(server, "includes") == {}
    outcome = label_from(log, labels)
    assert counts(outcome) == counts(tried) == {"includes": GRADES}
    assert labels_of(server, "includes") == RIGHT
    reasons = {problem.reason for problem in outcome.problems}
    assert reasons == {
        "the score 'parts' has several values (short, right); choose with --metric",
        "0.5 stands for no label; say which with --map VALUE=LABEL",
    }
    with open_store(server.path) as store:
        (wrong,) = (entry for entry in store.entries() if entry.response == "It is 7.")
        label = wrong.evaluations["includes"]
    assert (label.score, label.judge) == (1.0, "inspect/includes")
    assert label.details["sample_id"] == "3 and 3"
    assert label.details["gold"] == "6"
    assert (label.details["task"], label.details["value"]) == ("toy", "I")
    assert (label.details["inspect_log"], label.details["epoch"]) == (log.name, 1)


def test_a_part_of_a_score(server: LoggingServer, log: Path) -> None:
    outcome = label_from(log, StoreLabels(server.path), metric="parts.right", name="mine")
    assert labels_of(server, "mine") == RIGHT
    assert outcome.problems == []
    label_from(log, StoreLabels(server.path), metric="short")
    assert set(labels_of(server, "parts.short").values()) == {"correct"}
    nothing = label_from(log, StoreLabels(server.path), metric="nothing")
    assert nothing.written == 0
    assert nothing.problems[0].reason.startswith("it has no score 'nothing', only includes, parts")


def test_bounds_and_spans(server: LoggingServer, log: Path) -> None:
    label_from(log, StoreLabels(server.path), metric="share", given=[">=0.5=correct"])
    with open_store(server.path) as store:
        for entry in store.entries():
            assert entry.evaluations["share"].spans == (Span(0, 2, "supported"),)
            assert entry.evaluations["share"].details["words"] == "half of it"


def test_the_last_of_several_calls_of_every_epoch(server: LoggingServer, tmp_path: Path) -> None:
    with labelled_otherwise():
        log = evaluate(server, tmp_path / "logs", toy(twice=True, epochs=2))
    outcome = label_from(Path(log.location), StoreLabels(server.path), metric="includes")
    assert outcome.written == 6
    with open_store(server.path) as store:
        assert len(store) == 12
        labelled = [entry for entry in store.entries() if entry.evaluations]
        assert {entry.response for entry in labelled} == {"Yes, I am."}
        assert len(labelled) == 6


def test_of_several_choices_the_first(server: LoggingServer, tmp_path: Path) -> None:
    with labelled_otherwise():
        log = evaluate(server, tmp_path / "logs", num_choices=2)
    assert label_from(Path(log.location), StoreLabels(server.path), metric="includes").written == 3
    with open_store(server.path) as store:
        assert {entry.choice for entry in store.entries() if entry.evaluations} == {0}
        assert len(store) == 6


def test_json_and_a_name_that_says_nothing(
    server: LoggingServer, log: Path, tmp_path: Path
) -> None:
    from inspect_ai.log import read_eval_log, write_eval_log

    write_eval_log(read_eval_log(str(log)), str(tmp_path / "log.json"))
    shutil.copy(tmp_path / "log.json", tmp_path / "log.txt")
    shutil.copy(log, tmp_path / "log.csv")
    for number, name in enumerate(("log.json", "log.txt", "log.csv")):
        outcome = label_from(tmp_path / name, StoreLabels(server.path), name=f"n{number}")
        assert outcome.format == "Inspect log"
        assert labels_of(server, f"n{number}") == RIGHT


def test_a_run_that_was_broken_off(server: LoggingServer, log: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log, write_eval_log

    whole = read_eval_log(str(log))
    whole.status, whole.samples = "cancelled", whole.samples[:2]
    whole.samples[1].scores = None
    write_eval_log(whole, str(tmp_path / "broken.eval"))
    outcome = label_from(tmp_path / "broken.eval", StoreLabels(server.path), metric="includes")
    assert outcome.written == 1
    assert [(p.place, p.reason) for p in outcome.problems] == [
        ("sample 2 and 2", "it has no score"),
        ("the log", "its run ended with 'cancelled'; 2 samples are in it"),
    ]


def test_half_a_log(server: LoggingServer, log: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.eval"
    half.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    with pytest.raises(LabelsFileError, match=r"Inspect cannot read .*half.eval"):
        label_from(half, StoreLabels(server.path))


def test_another_evaluator_of_that_name_is_left_alone(server: LoggingServer, log: Path) -> None:
    with open_store(server.path, writable=True) as store:
        keys = list(store)
        store.put_evaluation(keys[0], name="includes", label="refused", judge="me")
    outcome = label_from(log, StoreLabels(server.path), metric="includes")
    assert outcome.written == 2
    assert outcome.problems[0].reason == (
        "me has labelled it 'refused' as 'includes'; give another --name"
    )
    again = label_from(log, StoreLabels(server.path), metric="includes")
    assert (again.written, len(again.problems)) == (2, 1)


class TestHook:
    @pytest.mark.parametrize("way", ["store", "http"])
    def test_any_task_labels_its_answers(
        self, server: LoggingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        if way == "store":
            monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(server.path))
        else:
            monkeypatch.delenv("ACTIVATION_LMDB_PATH", raising=False)
        log = evaluate(server, tmp_path / "logs")
        assert labels_of(server, "includes") == RIGHT
        with open_store(server.path) as store:
            labels = [entry.evaluations["includes"] for entry in store.entries()]
        assert {one.details["inspect_log"] for one in labels} == {Path(log.location).name}

    def test_a_server_that_does_not_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(tmp_path / "nowhere.lmdb"))
        monkeypatch.setattr(hook._LOG, "disabled", False)  # others' imports may have done so
        with (
            canned(lambda body: "It is 2.") as server,
            caplog.at_level(logging.INFO, hook._LOG.name),
        ):
            evaluate(server, tmp_path / "logs")
        ours = [r for r in caplog.records if r.name.startswith("activation_logging")]
        assert [record.levelname for record in ours] == ["INFO"]
        assert (
            ours[0]
            .getMessage()
            .endswith(
                f"answers are not labelled: the server has no {server.base_url}/activations: "
                "it does not log"
            )
        )
        assert not (tmp_path / "nowhere.lmdb").exists()

    def test_an_answer_that_was_not_logged(
        self,
        server: LoggingServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Said in one line, after a while, and in the way of nothing else."""
        monkeypatch.setattr(hook, "WAIT_S", 0.5)
        monkeypatch.setattr(hook._LOG, "disabled", False)
        monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(server.path))
        with (
            canned(lambda body: "It is 2.") as other,
            caplog.at_level(logging.INFO, hook._LOG.name),
        ):
            evaluate(other, tmp_path / "logs")
        ours = [r for r in caplog.records if r.name.startswith("activation_logging")]
        assert [record.levelname for record in ours] == ["INFO", "WARNING"]
        assert "9 of 9 scores labelled no answer" in ours[1].getMessage()

    def test_it_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert hook.LabelHook().enabled()
        monkeypatch.setenv("ACTIVATION_LOGGING", "0")
        assert not hook.LabelHook().enabled()

    def test_what_labels_itself_is_not_labelled(
        self, server: LoggingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(server.path))
        with labelled_otherwise():
            evaluate(server, tmp_path / "logs")
        assert labels_of(server, "includes") == {}


def test_a_benchmark_of_ours_is_labelled_once_and_by_its_run(
    server: LoggingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels say what only the run knows, and its log has nothing to add to them."""
    from inspect_ai.log import read_eval_log

    monkeypatch.setenv("ACTIVATION_LMDB_PATH", str(server.path))
    result = run_benchmark(
        "short_facts",
        model=server.model,
        base_url=server.base_url,
        output_base_dir=tmp_path / "out",
        store=server.path,
        n=1,
    )
    (log,) = (result.folder / "inspect").glob("*.eval")
    with open_store(server.path) as store:
        entries = {entry.request_id: entry for entry in store.entries()}
        labels = [entry.evaluations["short_facts"] for entry in entries.values()]
    assert len(labels) == result.labels.written
    # From an entry to its sample, and back.
    samples = {(one.id, one.epoch): one for one in read_eval_log(str(log)).samples}
    for label, request_id in zip(labels, entries, strict=True):
        assert label.details["inspect_log"] == log.name
        sample = samples[label.details["sample_id"], label.details["epoch"]]
        assert sample.metadata["request_id"] == request_id
    assert all(label.details["run"] and label.judge == "gold/5" for label in labels)
    outcome = label_from(log, StoreLabels(server.path), dry_run=True)
    assert outcome.written == len(labels)
    assert outcome.problems == []
