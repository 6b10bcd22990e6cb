"""A probe's probabilities and thresholds, moved to labels that came later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import Derived, open_store
from activation_logging.detectors.drift import Reference
from activation_logging.detectors.fitted_on import subjects_among
from activation_logging.detectors.recalibration import (
    Recalibrated,
    RecalibrationOptions,
    recalibrate,
)
from activation_logging.detectors.saved_probe import Calibration, OperatingPoint, SavedProbe
from activation_logging.errors import DatasetError
from activation_logging.records import Evaluation
from tests.fixtures.claims import Claims, build_claims
from tests.fixtures.planted import HIDDEN, build
from tests.unit.detectors.test_saved_probe import answers, make

N = 400
TRUE = Calibration(0.5, -1.0)
"""What the labels of the store of scores were drawn by, from the log-odds of the scores."""
OPTIONS = RecalibrationOptions("p", draws=100)


def scored(path: Path, probe: SavedProbe, *, name: str = "p", seed: int = 0) -> np.ndarray:
    """A store without rows, as one whose rows are not kept: scores, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=N) * 3
    wrong = rng.random(N) < 1 / (1 + np.exp(-(TRUE.a * odds + TRUE.b)))
    build(path, n=N, without_rows=frozenset(range(N)), label_of=lambda i: None)
    with open_store(path, writable=True) as store:
        items, labels = [], []
        for i, p in enumerate(probe.probability(odds)):
            (entry,) = store.for_request(f"req-{i}-0")
            rows = np.full(entry.num_rows_expected, np.nan, np.float32)
            rows[-1] = p
            label = "hallucinated" if wrong[i] else "correct"
            labels.append((entry.key, Evaluation.checked("facts", label)))
            items.append(Derived(entry.key, f"score/{name}", rows, {"digest": probe.digest}))
        store.put_derived(items)
        store.put_evaluations(labels)
    return wrong


PROBE = answers(
    "response_last", calibration=Calibration(1.5, 0.5), report={"auroc": {"value": 0.9}}
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feedback") / "s"
    scored(path, PROBE)
    return path


def run(
    path: Path, probe: SavedProbe = PROBE, label: str | None = None, **options: Any
) -> Recalibrated:
    with open_store(path) as store:
        return recalibrate(store, probe, label, replace(OPTIONS, **options))


class TestCurve:
    def test_it_finds_what_the_labels_were_drawn_by(self, path: Path) -> None:
        found = run(path)
        assert found.probe.calibration.a == pytest.approx(TRUE.a, abs=0.12)
        assert found.probe.calibration.b == pytest.approx(TRUE.b, abs=0.3)
        assert found.after.brier.value < found.before.brier.value - 0.02
        assert found.gain.low > 0
        assert found.gain.value == pytest.approx(found.before.brier.value - found.after.brier.value)
        assert found.after.ece.value < 0.07 < found.before.ece.value
        assert found.positives + found.negatives == N

    def test_the_weights_stay(self, path: Path) -> None:
        found = run(path).probe
        assert all(np.array_equal(found.tensors[k], PROBE.tensors[k]) for k in PROBE.tensors)
        assert found.digest != PROBE.digest
        told = found.provenance["recalibrated"]
        assert (told["from"], told["label"], told["answers"]) == (PROBE.digest, "facts", N)
        assert told["calibration_before"] == PROBE.calibration._asdict()
        assert found.report["auroc"] == PROBE.report["auroc"]
        assert found.report["recalibration"]["gain"]["value"] > 0
        assert len(found.prompts) == N

    def test_again_on_the_same_labels_there_is_nothing(self, path: Path, tmp_path: Path) -> None:
        """Its own labels are among what it was fitted on."""
        found = run(path).probe
        found.save(tmp_path / "new")
        with pytest.raises(DatasetError, match="to prompts that the probe was fitted on: 400"):
            run(path, SavedProbe.load(tmp_path / "new"))

    def test_other_questions_about_the_same_things_are_left_out(
        self, path: Path, tmp_path: Path
    ) -> None:
        """The weights know what an answer is about, whatever the question's words."""
        known = replace(PROBE, subjects=subjects_among([{"entity": "thing 0"}], ["entity"]))
        found = run(path, known)
        about = "about something that the probe was fitted on"
        assert found.left_out == {about: 1}

        def again(number: int, document: dict[str, Any]) -> None:
            document["prompt"] = f"<user>Once more: what is thing number {number}?<bot>"

        build(tmp_path / "s", n=60, change=again)
        with pytest.raises(DatasetError, match=f"{about}: 60"):
            run(tmp_path / "s", found.probe)

    def test_the_training_scores_move_with_it(self, path: Path) -> None:
        """So the drift is the same distance as before."""
        spread = Reference.of(np.linspace(0.05, 0.95, 100))
        known = replace(PROBE, report=spread.as_json())
        found = run(path, known).probe
        moved = Reference.of_probe(found)
        assert moved.number == 100
        odds = (np.log(spread.quantiles / (1 - spread.quantiles)) - 0.5) / 1.5
        assert moved.quantiles == pytest.approx(found.probability(odds))

    def test_scores_at_the_ends(self, tmp_path: Path) -> None:
        """A float32 of 1 is no infinite log-odds."""
        sharp = replace(PROBE, calibration=Calibration(40.0, 0.0))
        scored(tmp_path / "s", sharp)
        found = run(tmp_path / "s", sharp)
        assert np.isfinite(found.probe.calibration).all()
        assert found.gain.low > 0


class TestThreshold:
    def test_without_points_it_is_the_best_f1(self, path: Path) -> None:
        found = run(path)
        assert found.at == "the best F1"
        rates = [point.false_positive_rate for point in found.probe.operating_points]
        assert rates == [0.01, 0.05, 0.1]

    def test_it_stays_at_its_operating_point(self, tmp_path: Path) -> None:
        points = tuple(OperatingPoint(rate, 0.9 - rate, {}) for rate in (0.01, 0.05, 0.1))
        probe = replace(PROBE, operating_points=points, threshold=points[1].threshold)
        wrong = scored(tmp_path / "s", probe)
        found = run(tmp_path / "s", probe)
        assert found.at == "0.05 of the negatives above it"
        assert found.probe.threshold == found.probe.operating_points[1].threshold
        with open_store(tmp_path / "s") as store:
            p = [store.for_request(f"req-{i}-0")[0].scores["p"][-1] for i in range(N)]
        odds = (np.log(p) - np.log1p(-np.array(p)) - probe.calibration.b) / probe.calibration.a
        flagged = found.probe.probability(odds) >= found.probe.threshold
        assert 0.03 < flagged[~wrong].mean() <= 0.05

    def test_another_share(self, path: Path) -> None:
        found = run(path, rate=0.2)
        assert found.at == "0.2 of the negatives above it"
        rates = [point.false_positive_rate for point in found.probe.operating_points]
        assert rates == [0.01, 0.05, 0.1, 0.2]
        assert found.probe.threshold == found.probe.operating_points[-1].threshold


class TestClaims:
    def test_a_probe_of_tokens_learns_from_claims(self, tmp_path: Path) -> None:
        claims = build_claims(tmp_path / "s", Claims(n=100))
        # The direction that the claims were planted in.
        direction = np.random.default_rng(0).normal(size=HIDDEN)
        probe = make(
            tensors={"weight": direction / np.linalg.norm(direction), "bias": np.zeros(1)},
            positive="contradicted",
            negative="supported",
            calibration=Calibration(0.05, 2.0),
        )
        found = run(claims, probe, "profiles")
        assert found.positives + found.negatives == 200
        assert found.left_out == {"claims that are unverifiable": 100}
        assert found.gain.low > 0
        assert found.probe.calibration.a > 0.2

    def test_labels_of_answers_alone_are_none(self, path: Path) -> None:
        probe = make(positive="contradicted", negative="supported")
        scored(path.parent / "tokens", probe)
        with pytest.raises(DatasetError, match="no usable claims; a probe of tokens learns from"):
            run(path.parent / "tokens", probe)


class TestRefused:
    def test_too_few_of_a_class(self, tmp_path: Path) -> None:
        probe = answers("response_last")
        build(tmp_path / "s", n=60, label_of=lambda i: "hallucinated" if i < 12 else "correct")
        with pytest.raises(DatasetError, match="only 12 answers are hallucinated"):
            run(tmp_path / "s", probe)

    def test_labels_that_say_the_opposite(self, tmp_path: Path) -> None:
        mirrored = replace(PROBE, positive="correct", negative="hallucinated")
        scored(tmp_path / "s", mirrored)
        with pytest.raises(DatasetError, match="do not rise with the label correct of 'facts'"):
            run(tmp_path / "s", mirrored)

    def test_other_labels_are_left_out(self, path: Path) -> None:
        with open_store(path, writable=True) as store:
            for key in list(store)[:7]:
                store.put_evaluation(key, name="mine", label="refused")
        with pytest.raises(DatasetError, match=r"by 'mine' .*\(labelled refused: 7\)"):
            run(path, label="mine")

    def test_an_evaluator_that_is_none(self, path: Path) -> None:
        with pytest.raises(DatasetError, match="nothing is labelled by 'nobody'"):
            run(path, label="nobody")

    def test_scores_of_another_name(self, path: Path) -> None:
        with pytest.raises(DatasetError, match="without scores of this probe called 'q': 400"):
            run(path, label="facts", name="q")
