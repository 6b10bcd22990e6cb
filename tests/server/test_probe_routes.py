"""Probes that change while a server with two API servers answers, and what its metrics say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_logging.detectors.drift import Reference
from activation_logging.detectors.saved_probe import SavedProbe
from tests.fixtures.server import RunningServer
from tests.fixtures.tiny import LAYERS
from tests.server.told import client

DOCS = Path(__file__).parents[2] / "docs" / "grafana"
RNG = np.random.default_rng(0)
WIDTH = 128
ROUTE = "/v1/activations/probes"


def make(**fields: Any) -> SavedProbe:
    """A probe of the tiny model, which says anything."""
    given: dict[str, Any] = {
        "kind": "token",
        "form": "linear",
        "tensors": {"weight": RNG.normal(size=WIDTH) / 10, "bias": np.zeros(1)},
        "sources": (2,),
        "position": None,
        "threshold": 0.5,
        "model": "tiny",
        "num_layers": LAYERS,
        "label": "facts",
        "positive": "contradicted",
        "negative": "supported",
        "report": Reference.of(RNG.random(500)).as_json(),
    }
    return SavedProbe(**(given | fields))


PROBES = {
    "span": make(),
    "other": make(),
    "mean": make(kind="answer", position="response_mean"),
    "before": make(kind="answer", position="prompt_last"),
}
REFUSED = {
    "layer": (make(sources=(1,)), "reads layer 1, and this server keeps scores of layer 2"),
    "model": (make(model="big"), "was fitted on big"),
    "depth": (make(num_layers=5), "with 5 layers"),
    "width": (make(tensors={"weight": np.ones(7), "bias": np.zeros(1)}), "reads 7 numbers"),
    "place": (make(kind="answer", position=-1), "looks at -1"),
    "many": (
        make(
            kind="answer",
            form="multimax",
            tensors={"weight": np.ones((65, WIDTH)), "bias": np.zeros(1)},
        ),
        "is one too many",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "probes"
    for name, probe in {**PROBES, **{name: one for name, (one, _) in REFUSED.items()}}.items():
        probe.save(folder / name)
    make().save(folder.parent / "outside")
    return folder


@pytest.fixture(scope="module")
def started(serve: Callable[..., Any], folder: Path) -> Iterator[RunningServer]:
    env = {
        "ACTIVATION_PROBES": f"span={folder}/span,hidden={folder}/mean:shadow",
        "ACTIVATION_PROBE_FOLDER": str(folder),
        "VLLM_API_KEY": "k",
    }
    with serve("--api-server-count", "2", env=env, model="tiny") as server:
        server.key = "k"
        yield server


@pytest.fixture
def server(started: RunningServer) -> RunningServer:
    """With the probes that it was started with."""
    names = [one["name"] for one in listed(started) if one["name"] not in {"span", "hidden"}]
    change(started, set={"span": "span", "hidden": {"file": "mean", "shadow": True}}, remove=names)
    return started


def listed(server: RunningServer) -> list[dict[str, Any]]:
    answer = server.get(ROUTE)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def change(server: RunningServer, **asked: Any) -> dict[str, dict[str, Any]]:
    answer = server.post(ROUTE, asked)
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["data"]}


def refusal(server: RunningServer, asked: Any) -> str:
    before = [(one["name"], one["digest"], one["shadow"]) for one in listed(server)]
    answer = server.post(ROUTE, asked)
    assert answer.status_code == 400, answer.text
    assert [(one["name"], one["digest"], one["shadow"]) for one in listed(server)] == before
    return answer.json()["error"]["message"]


def ask(server: RunningServer, number: int, names: str | None = None) -> Any:
    extra = {"vllm_xargs": {"activation_scores": names}} if names else {}
    body = {"model": "tiny", "prompt": f"What is thing number {number}?", "max_tokens": 6, **extra}
    return server.post("/v1/completions", {**body, "ignore_eos": True})


def answered(server: RunningServer, probe: str) -> float:
    """How many answers were counted, by both API servers. Each counts a moment after the end."""
    time.sleep(2)
    labels = f'{{place="answer",probe="{probe}"}}'
    return server.samples().get(f"activation_logging_score_count{labels}", 0)


class TestList:
    def test_what_it_was_started_with(self, server: RunningServer, folder: Path) -> None:
        span, hidden = listed(server)
        assert (span["name"], span["kind"], span["shadow"]) == ("span", "token", False)
        assert (hidden["name"], hidden["position"], hidden["shadow"]) == (
            "hidden",
            "response_mean",
            True,
        )
        assert span["digest"] == PROBES["span"].digest
        assert (span["sources"], span["model"], span["threshold"]) == ([2], "tiny", 0.5)
        files = server.get(ROUTE).json()["files"]
        assert files == sorted([*PROBES, *REFUSED])

    def test_only_with_the_key(self, server: RunningServer) -> None:
        without = replace(server, key=None)
        assert without.get(ROUTE).status_code == 401
        assert without.post(ROUTE, {"remove": ["span"]}).status_code == 401


class TestChange:
    def test_every_api_server_learns_it(self, server: RunningServer) -> None:
        found = change(server, set={"known": "before"})
        assert list(found) == ["span", "hidden", "known"]
        for number in range(12):  # each on a connection of its own
            answer = ask(server, number, "known")
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["activation_scores"]["known"]["prompt"] is not None
        assert all(len(listed(server)) == 3 for _ in range(12))
        assert list(change(server, remove=["known"])) == ["span", "hidden"]
        for number in range(12):
            answer = ask(server, number, "known")
            assert answer.status_code == 400
            assert "no probe 'known'; choose among span" in answer.text

    def test_scores_are_by_the_probe_that_is_there(self, server: RunningServer) -> None:
        """Live, in the store, and of its rows; also for a prompt whose rows are cached."""
        for file in ("span", "other", "span"):
            change(server, set={"span": file})
            answer = ask(server, 1, "span").json()
            (entry,) = server.entries_of(answer)
            assert entry.score_digests["span"] == PROBES[file].digest
            own = PROBES[file].score_rows(entry)
            told = answer["choices"][0]["activation_scores"]["span"]["tokens"]
            assert told[:-1] == pytest.approx(own[entry.num_tokens[0] :], abs=1e-7)
            assert np.array_equal(entry.scores["span"], own, equal_nan=True)

    def test_a_shadow_is_stored_and_told_to_nobody(self, server: RunningServer) -> None:
        answer = ask(server, 2, "all").json()
        assert list(answer["choices"][0]["activation_scores"]) == ["span"]
        refused = ask(server, 2, "hidden")
        assert refused.status_code == 400
        assert "no probe 'hidden'; choose among span" in refused.text
        (entry,) = server.entries_of(answer)
        assert entry.scores["hidden"][-1] == pytest.approx(PROBES["mean"].score(entry), rel=1e-6)
        change(server, set={"hidden": "mean"})
        assert "hidden" in ask(server, 2, "all").json()["choices"][0]["activation_scores"]

    def test_all_of_them_may_go(self, server: RunningServer) -> None:
        assert change(server, remove=["span", "hidden"]) == {}
        answers = [ask(server, number) for number in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        for answer in answers:
            (entry,) = server.entries_of(answer.json())
            assert (entry.status, entry.scores) == ("complete", {})
        assert "this server has no probes" in ask(server, 4, "all").text
        change(server, set={"span": "span"})
        told = ask(server, 5, "span").json()["choices"][0]["activation_scores"]["span"]
        assert told["prompt"] is not None

    def test_probes_that_stay_go_on_telling(self, server: RunningServer) -> None:
        """An answer that is on its way notices only that another one was replaced."""
        for _ in range(5):  # on a slow machine the change may come after the last token
            told = self.told_while_another_is_replaced(server)
            assert len(told["span"]) == len(told["other"]) == 800
            assert None not in told["span"][:-1]
            replaced = told["other"].index(None)
            assert replaced > 0
            assert set(told["other"][replaced:]) == {None}
            if replaced < 799:
                return
        pytest.fail("five answers ended before the change came")

    def told_while_another_is_replaced(self, server: RunningServer) -> dict[str, list[Any]]:
        """The scores of two probes, one of which is replaced when three tokens are there."""
        change(server, set={"other": "other"})
        body = {"vllm_xargs": {"activation_scores": "span,other"}, "ignore_eos": True}
        stream = client(server).completions.create(
            model="tiny", prompt="On and on", max_tokens=800, stream=True, extra_body=body
        )
        told: dict[str, list[Any]] = {"span": [], "other": []}
        for number, chunk in enumerate(stream):
            if number == 3:
                change(server, set={"other": "span"})
            for name, found in (chunk.choices[0].model_extra or {})["activation_scores"].items():
                told[name] += found["tokens"]
        return told

    def test_while_requests_are_on_their_way(self, server: RunningServer) -> None:
        """None of them fails, all of their rows are there, and every answer is counted once."""
        before = answered(server, "span")
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda number: ask(server, number), range(100, 160))
            for _ in range(5):
                change(server, set={"more": "span"})
                change(server, remove=["more"])
            found = [answer.json() for answer in answers]
        assert len({answer["id"] for answer in found}) == 60
        server.flush()
        with server.store() as store:
            assert {store.for_request(one["id"])[0].status for one in found} == {"complete"}
        # The last message of an answer is read when its API server is asked something.
        deadline = time.monotonic() + 120
        while answered(server, "span") < before + 60 and time.monotonic() < deadline:
            ask(server, 0)
            before += 1
        assert answered(server, "span") == before + 60


class TestRefused:
    @pytest.mark.parametrize("file", REFUSED)
    def test_a_probe_that_does_not_fit(self, server: RunningServer, file: str) -> None:
        reason = refusal(server, {"set": {"new": file, "fine": "other"}})
        assert reason.startswith("the probe new ")
        assert REFUSED[file][1] in reason

    def test_a_file_that_was_replaced_by_a_broken_one(
        self, server: RunningServer, folder: Path
    ) -> None:
        notes = folder / "other.json"
        whole = notes.read_text()
        change(server, set={"other": "other"})
        try:
            for text in ("{", whole.replace('"a": 1.0', '"a": 2.0'), ""):
                notes.write_text(text)
                assert refusal(server, {"set": {"other": "other"}}).startswith("the probe other: ")
            # What is there goes on, and a change of another needs no file of it.
            assert list(change(server, set={"new": "before"})) == ["span", "hidden", "other", "new"]
            assert ask(server, 3, "other,new").status_code == 200
        finally:
            notes.write_text(whole)

    @pytest.mark.parametrize(
        ("asked", "reason"),
        [
            ({}, "nothing to change"),
            ({"set": {}, "remove": []}, "nothing to change"),
            ([], "valid dictionary"),
            ({"probes": {}}, "Extra inputs are not permitted"),
            ({"set": {"new": "../outside"}}, "is not the name of a probe's file"),
            ({"set": {"new": "/etc/passwd"}}, "is not the name of a probe's file"),
            ({"set": {"new": "nothing"}}, "there is no nothing.safetensors"),
            ({"set": {"a b": "other"}}, "'a b' is not the name of a probe"),
            ({"set": {"new": {"file": "other", "path": "/"}}}, "Extra inputs are not permitted"),
            ({"set": {"new": {"file": "other", "shadow": "yes"}}}, "valid boolean"),
            ({"set": {f"n{i}": "other" for i in range(1000)}}, "at most 256"),
            ({"set": {f"n{i}": "other" for i in range(70)}}, "is one too many"),
            ({"remove": ["nobody"]}, "there is no probe 'nobody' to remove"),
            ({"set": {"span": "other"}, "remove": ["span"]}, "to be set and removed"),
            ({"set": {"new": "other"}, "remove": ["nobody"]}, "there is no probe 'nobody'"),
        ],
    )
    def test_bad_input(self, server: RunningServer, asked: Any, reason: str) -> None:
        assert reason in refusal(server, asked)


class TestMetrics:
    @pytest.fixture
    def names(self, server: RunningServer) -> set[str]:
        """Of all samples, once there is something to compare."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: ask(server, number), range(60)))
        server.flush()
        return {name.partition("{")[0] for name in server.samples()}

    def test_the_dashboard_asks_for_what_there_is(self, names: set[str]) -> None:
        dashboard = json.loads((DOCS / "dashboard.json").read_text())
        asked = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
        asked += [one.get("definition", "") for one in dashboard["templating"]["list"]]
        found = set(re.findall(r"activation_logging_\w+", " ".join(asked)))
        assert len(found) >= 15
        assert found <= names

    def test_the_rules_ask_for_what_there_is(self, names: set[str]) -> None:
        text = (DOCS / "alerts.yaml").read_text()
        found = set(re.findall(r"activation_logging_\w+", text))
        assert {"activation_logging_score_drift", "activation_logging_score_window"} <= found
        assert found <= names

    def test_every_metric_of_scores_is_on_the_dashboard(self, names: set[str]) -> None:
        text = (DOCS / "dashboard.json").read_text()
        parts = ("score", "flagged", "probe", "store")
        ours = {n for n in names if n.startswith(tuple(f"activation_logging_{p}" for p in parts))}
        ours -= {"activation_logging_score_sum", "activation_logging_store_entries"}
        assert {name for name in ours if name not in text} == set()

    def test_labels_are_few(self, server: RunningServer, names: set[str]) -> None:
        """As many series after more answers, and after a probe has come and gone."""
        before = {name for name in server.samples() if name.startswith("activation_logging")}
        for number in range(10):
            ask(server, number)
        after = {name for name in server.samples() if name.startswith("activation_logging")}
        assert after == before

    def test_what_probes_said_is_counted(self, server: RunningServer, names: set[str]) -> None:
        counted = answered(server, "span")
        told = {one["name"]: one for one in listed(server)}
        assert told["span"]["scored"] == counted >= 60
        flagged = server.samples()['activation_logging_flagged_total{probe="span"}']
        assert told["span"]["flagged"] == flagged
        assert server.samples()['activation_logging_probe_threshold{probe="hidden",shadow="true"}']
