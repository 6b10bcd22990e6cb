"""Scores as metrics: what is counted, what of the last hour, and no more names than a limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from prometheus_client import REGISTRY

from activation_logging.detectors.drift import Reference
from activation_logging.vllm_plugin import score_metrics
from activation_logging.vllm_plugin.score_metrics import (
    EDGES,
    MAX_NAMES,
    OTHERS,
    WINDOW_S,
    Told,
    Window,
    gauges,
    observe,
    observe_all,
    told_by,
)
from tests.fixtures.live_probes import probe, serve

RNG = np.random.default_rng(0)
SPREAD = Reference.of(RNG.beta(2, 5, 1000))


def told() -> dict[str, Told]:
    return told_by(REGISTRY.collect())


def counted(scores: np.ndarray) -> Told:
    at = np.searchsorted(EDGES, scores, "left")
    return Told(np.bincount(at, minlength=len(EDGES) + 1))


class TestCounted:
    def test_by_bucket_and_place(self) -> None:
        for prompt, answer in ((0.2, 0.01), (None, 0.011), (0.5, None), (float("nan"), 0.999)):
            observe("one", prompt, answer, flagged=answer == 0.999)
        found = told()["one"]
        assert found.number == 3
        assert found.flagged == 1
        # A bucket's upper bound belongs to it.
        assert np.flatnonzero(found.counts).tolist() == [0, 1, len(EDGES)]
        labels = {"probe": "one", "place": "prompt"}
        assert REGISTRY.get_sample_value("activation_logging_score_count", labels) == 2

    def test_what_all_probes_said(self) -> None:
        served = serve(low=probe(threshold=0.2), high=probe(threshold=0.8), shadow=probe())
        observe_all(served, {"low": (None, 0.2), "high": (0.1, 0.2), "shadow": (None, None)})
        found = told()
        assert [found[name].flagged for name in served] == [1, 0, 0]
        assert [found[name].number for name in served] == [1, 1, 0]

    def test_a_probe_that_was_removed_meanwhile(self) -> None:
        observe_all(serve(), {"gone": (None, 0.9)})
        assert (told()["gone"].number, told()["gone"].flagged) == (1, 0)

    def test_no_more_names_than_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(score_metrics, "_names", {"known"})
        for number in range(MAX_NAMES + 10):
            observe(f"n{number}", None, 0.5, flagged=False)
        observe("known", None, 0.5, flagged=False)
        found = told()
        assert found[OTHERS].number == 11
        assert found["known"].number == 1
        assert f"n{MAX_NAMES - 2}" in found
        assert f"n{MAX_NAMES - 1}" not in found

    def test_several_processes_are_summed(self, tmp_path: Path) -> None:
        """As vLLM's API servers do, in a folder that all of them share."""
        code = (
            "from activation_logging.vllm_plugin.score_metrics import observe, told_by\n"
            "observe('p', 0.5, 0.25, flagged=True)\n"
            "from prometheus_client import CollectorRegistry\n"
            "from prometheus_client.multiprocess import MultiProcessCollector\n"
            "found = told_by(MultiProcessCollector(CollectorRegistry()).collect())['p']\n"
            "print(found.number, found.flagged, found.counts.nonzero()[0])\n"
        )
        env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
        said = [
            subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
            for _ in range(2)
        ]
        assert said == ["1 1 [5]", "2 2 [5]"]


class TestWindow:
    SERVED = serve(p=probe(report=SPREAD.as_json()))

    def moved(self, window: Window, now: float, *scores: np.ndarray, served: Any = None) -> Any:
        found = window.moved(
            self.SERVED if served is None else served, {"p": counted(np.concatenate(scores))}, now
        )
        return found["p"]

    def test_the_same_has_not_moved(self) -> None:
        found = self.moved(Window(0.0), 60.0, RNG.beta(2, 5, 3000))
        assert found.number == 3000
        assert found.psi < 0.05
        assert found.ks < 0.06

    def test_what_is_older_than_the_window_is_not_compared(self) -> None:
        """Scores like the training data's for an hour, and others after it."""
        window, usual, others = Window(0.0), RNG.beta(2, 5, 500), RNG.beta(5, 2, 500)
        assert self.moved(window, WINDOW_S / 2, usual[:250]).psi < 0.2
        assert self.moved(window, WINDOW_S, usual).number == 500
        mixed = self.moved(window, 1.4 * WINDOW_S, usual, others)
        assert mixed.number == 1000
        late = self.moved(window, 2 * WINDOW_S, usual, others)
        assert late.number == 500
        assert late.psi > 2 > mixed.psi
        assert self.moved(window, 3.1 * WINDOW_S, usual, others).number == 0

    def test_many_questions_keep_little(self) -> None:
        window = Window(0.0)
        for now in np.arange(0, 2 * WINDOW_S, 5.0):
            self.moved(window, now, np.zeros(0))
        assert len(window._seen["p"][1]) <= 242

    def test_too_few_are_not_compared(self) -> None:
        found = self.moved(Window(0.0), 60.0, RNG.beta(5, 2, 49))
        assert found == (49, None, None)

    def test_another_probe_of_the_name_begins_anew(self) -> None:
        window, scores = Window(0.0), RNG.beta(5, 2, 200)
        self.moved(window, 10.0, scores[:100])
        other = serve(p=probe(report=SPREAD.as_json(), sources=(3,)))
        assert self.moved(window, 20.0, scores[:100], served=other).number == 0
        assert self.moved(window, 30.0, scores, served=other).number == 100
        assert window.moved(serve(), {}, 40.0) == {}
        # It comes back, and what others said under its name is not its own.
        assert self.moved(window, 50.0, scores).number == 0

    def test_a_probe_without_training_scores(self) -> None:
        found = self.moved(Window(0.0), 60.0, RNG.beta(2, 5, 99), served=serve(p=probe()))
        assert found == (99, None, None)

    def test_as_gauges(self) -> None:
        served = serve(p=probe(report=SPREAD.as_json(), threshold=0.25), shadow=probe())
        moved = Window(0.0).moved(served, {"p": counted(RNG.beta(5, 2, 99))}, 60.0)
        lines = gauges(served, moved).decode().splitlines()
        assert 'activation_logging_probe_threshold{probe="p",shadow="false"} 0.25' in lines
        assert 'activation_logging_probe_threshold{probe="shadow",shadow="true"} 0.5' in lines
        assert 'activation_logging_score_window{probe="p"} 99.0' in lines
        drift = [line for line in lines if line.startswith("activation_logging_score_drift{")]
        assert [line.split()[0].partition("{")[2] for line in drift] == [
            'measure="psi",probe="p"}',
            'measure="ks",probe="p"}',
        ]
