"""Fitting a probe by itself, its calibration and thresholds, and trying it on other labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")
from sklearn.metrics import average_precision_score, roc_auc_score

from activation_logging import Span, open_store
from activation_logging.detectors import Options, SavedProbe, fit_answer_probe, fit_probe, run_study
from activation_logging.detectors.drift import Reference
from activation_logging.detectors.fitted_on import prompts_of
from activation_logging.detectors.metrics import Bootstrap
from activation_logging.detectors.operating import (
    SMALLEST_SLOPE,
    calibrate,
    calibration_error,
    operating_points,
)
from activation_logging.detectors.probe_evaluation import evaluate_probe
from activation_logging.errors import DatasetError, ProbeError
from tests.fixtures.claims import Claims, build_claims
from tests.fixtures.planted import build

OPTIONS: dict[str, Any] = {"draws": 100, "positions": ["prompt_last", "response_last"]}


def other_prompts(number: int, document: dict[str, Any]) -> None:
    document["prompt"] = f"<user>Who is person {number}?<bot>"
    document["tags"]["entity"] = f"person {number}"


def same_things(number: int, document: dict[str, Any]) -> None:
    document["prompt"] = f"<user>Once more: what is thing number {number}?<bot>"


def claims(path: Path) -> Path:
    """Each answer's last word is a claim, of the class of the answer."""
    with open_store(path, writable=True) as store:
        for key in list(store):
            entry = store[key]
            wrong = entry.evaluations["facts"].label == "hallucinated"
            label = "contradicted" if wrong else "supported"
            span = Span(0, len(entry.response) - 1, label, claim="city")
            store.put_evaluation(key, name="spans", label="correct", spans=[span])
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fit") / "s", n=100, signal=3.0)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same signal in answers to other prompts."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return claims(build(folder / "s", n=80, signal=3.0, change=other_prompts))


@pytest.fixture(scope="module")
def probe(path: Path) -> SavedProbe:
    with open_store(path) as store:
        return fit_answer_probe(store, "facts", Options(**OPTIONS))


class TestFitting:
    def test_it_knows_what_it_is(self, path: Path, probe: SavedProbe) -> None:
        assert (probe.kind, probe.form) == ("answer", "linear")
        assert (probe.sources, probe.position) == ((2,), "response_last")
        assert probe.report["auroc"]["low"] > 0.8
        assert probe.report["over_text"]["value"] == pytest.approx(
            probe.report["auroc"]["value"] - probe.report["text_only"]["auroc"]["value"]
        )
        controls = probe.report["controls"]
        assert {"text_only", "prompt_only", "length", "min_logprob"} <= controls.keys()
        assert controls["text_only"] == probe.report["text_only"]
        best = max(controls, key=lambda name: controls[name]["auroc"]["value"])
        assert probe.report["best_control"] == best
        assert probe.report["over_best_control"]["value"] == pytest.approx(
            probe.report["auroc"]["value"] - controls[best]["auroc"]["value"]
        )
        assert list(probe.report["recall_at"]) == ["0.01", "0.05", "0.1"]
        assert 0 < probe.report["aurc"]["value"] < 0.5
        spread = Reference.of_probe(probe)
        assert spread.number == 100
        # Half of the answers are wrong, and the probe knows which.
        assert spread.at(0.25) < 0.3 < 0.7 < spread.at(0.75)
        assert probe.data["answers"] == 100
        assert probe.data["hallucinated"] == probe.data["correct"] == 50
        with open_store(path) as store:
            assert probe.prompts.tolist() == prompts_of(store).tolist()

    def test_the_same_seed_gives_the_same(self, path: Path, probe: SavedProbe) -> None:
        with open_store(path) as store:
            again = fit_answer_probe(store, "facts", Options(**OPTIONS))
        assert again.as_json() == probe.as_json()

    def test_it_is_split_as_the_options_say(self, path: Path) -> None:
        with (
            open_store(path) as store,
            pytest.raises(DatasetError, match="folds by 'day' are not known"),
        ):
            fit_answer_probe(store, "facts", Options(**OPTIONS, folds_by="day"))

    def test_a_study_gives_the_same(self, path: Path, probe: SavedProbe) -> None:
        with open_store(path) as store:
            found = fit_probe(run_study(store, "facts", Options(**OPTIONS)))
        assert found.as_json() == probe.as_json()

    def test_it_reports_what_was_held_out(self, path: Path, probe: SavedProbe) -> None:
        """With its layer and position chosen in each training part, as the table's row."""
        with open_store(path) as store:
            row = run_study(store, "facts", Options(**OPTIONS)).result("linear_probe")
        assert probe.report["auroc"] == row.auroc._asdict()
        assert probe.report["auprc"] == row.auprc._asdict()

    def test_labels_by_chance_are_not_found(self, tmp_path: Path) -> None:
        path = build(tmp_path / "s", n=100, signal=0.0)
        with open_store(path) as store:
            found = fit_answer_probe(store, "facts", Options(**OPTIONS))
        assert found.report["auroc"]["low"] < 0.5 < found.report["auroc"]["high"] + 0.1
        assert found.calibration.a > 0


class TestOperating:
    def test_calibration_finds_the_curve(self) -> None:
        rng = np.random.default_rng(0)
        odds = rng.normal(size=20_000) * 3
        y = (rng.random(20_000) < 1 / (1 + np.exp(-(0.4 * odds - 1)))).astype(np.int64)
        a, b = calibrate(odds, y)
        assert a == pytest.approx(0.4, abs=0.02)
        assert b == pytest.approx(-1, abs=0.05)
        folds = [np.arange(i, 20_000, 4) for i in range(4)]
        bootstrap = Bootstrap(np.arange(20_000).astype(str), draws=100)
        assert calibration_error(odds, y, folds, bootstrap).value < 0.02

    def test_odds_that_point_the_wrong_way(self) -> None:
        y = np.array([0, 1] * 50)
        a, b = calibrate(np.where(y == 1, -1.0, 1.0), y)
        assert (a, b) == (SMALLEST_SLOPE, 0.0)

    def test_thresholds_keep_their_promise(self) -> None:
        rng = np.random.default_rng(1)
        y = (rng.random(2000) < 0.3).astype(np.int64)
        p = np.clip(rng.normal(0.4 + 0.2 * y, 0.1), 0, 1)
        points = operating_points(y, p, Bootstrap(np.arange(2000).astype(str), draws=100))
        for point, rate in zip(points, (0.01, 0.05, 0.1), strict=True):
            assert point.false_positive_rate == rate
            share = (p[y == 0] >= point.threshold).mean()
            assert share <= rate
            # One more negative would be too many.
            assert share > rate - 2 / (y == 0).sum()
            assert point.recall["value"] == pytest.approx((p[y == 1] >= point.threshold).mean())
            assert point.recall["low"] < point.recall["value"] < point.recall["high"]

    def test_few_negatives_let_none_pass(self) -> None:
        y = np.array([0] * 10 + [1] * 10)
        p = np.r_[np.linspace(0, 0.6, 10), np.linspace(0.5, 1, 10)]
        (point,) = operating_points(y, p, Bootstrap(y.astype(str), draws=100), [0.05])
        assert not (p[y == 0] >= point.threshold).any()
        assert (p[y == 1] >= point.threshold).sum() == 8

    def test_a_share_of_all_lets_all_pass(self) -> None:
        y, p = np.array([0, 1] * 10), np.linspace(0.2, 0.9, 20)
        (point,) = operating_points(y, p, Bootstrap(y.astype(str), draws=100), [1.0])
        assert 0 <= point.threshold <= 0.2
        assert point.recall["value"] == 1.0

    def test_equal_scores(self) -> None:
        y, p = np.array([0, 1] * 20), np.full(40, 0.5)
        (point,) = operating_points(y, p, Bootstrap(y.astype(str), draws=100), [0.1])
        assert point.threshold > 0.5
        assert point.recall["value"] == 0.0


class TestElsewhere:
    def test_answers(self, probe: SavedProbe, elsewhere: Path) -> None:
        with open_store(elsewhere) as store:
            found = evaluate_probe(store, probe, "facts", draws=100)
            p = np.array([probe.score(entry) for entry in store.entries()])
            wrong = np.array(
                [entry.evaluations["facts"].label == "hallucinated" for entry in store.entries()]
            )
        (level,) = found.levels.values()
        assert (level.positives, level.negatives) == (40, 40)
        above = (p[wrong][:, None] > p[~wrong][None]).mean()
        assert level.auroc.value == pytest.approx(above)
        assert above > 0.8
        assert level.accuracy.value == pytest.approx(((p >= probe.threshold) == wrong).mean())
        for point, own in zip(level.points, probe.operating_points, strict=True):
            assert point.recall.value == pytest.approx((p[wrong] >= own.threshold).mean())
            assert point.false_positive_rate.value == (p[~wrong] >= own.threshold).mean()
        assert {"text_only", "prompt_only", "length", "min_logprob"} <= level.controls.keys()
        assert level.best_control is not None
        best = max(control.value for control in level.controls.values())
        assert level.controls[level.best_control].value == best
        assert level.over_best_control is not None
        # Both within the folds of the controls.
        difference = level.auroc.value - best
        assert level.over_best_control.value == pytest.approx(difference, abs=0.02)
        assert list(found.controls_left_out) == [
            "Log-probability of the answer's own tokens",
            "Minimum log-probability of the answer's own tokens",
        ]
        assert not found.warnings
        told = found.as_json()
        assert told["levels"]["answer"]["recall_at"].keys() == {"0.01", "0.05", "0.1"}
        # Of an even order of all answers the risk is one half at every coverage.
        assert 0 < level.aurc.low < level.aurc.value < level.aurc.high < 0.5

    def test_the_very_answers_are_refused(self, probe: SavedProbe, path: Path) -> None:
        with open_store(path) as store, pytest.raises(ProbeError, match="fitted on these 100"):
            evaluate_probe(store, probe, "facts")

    def test_the_same_prompts_are_refused(self, probe: SavedProbe, tmp_path: Path) -> None:
        with (
            open_store(build(tmp_path / "s", n=50, signal=3.0, seed=1)) as store,
            pytest.raises(ProbeError, match="fitted on the prompts of these 50 answers"),
        ):
            evaluate_probe(store, probe, "facts")

    def test_some_of_its_prompts_are_left_out(self, probe: SavedProbe, tmp_path: Path) -> None:
        path = build(tmp_path / "s", n=30, signal=3.0)
        build(path, n=60, signal=3.0, change=other_prompts, prefix="b-")
        with open_store(path) as store:
            found = evaluate_probe(store, probe, "facts", draws=100)
        (level,) = found.levels.values()
        assert level.positives + level.negatives == 60
        assert found.left_out == {"to prompts that the probe was fitted on": 30}
        assert not found.warnings
        old = replace(probe, subjects=np.empty(0, np.uint64))
        with open_store(path) as store:
            found = evaluate_probe(store, old, "facts", draws=100)
        assert any("left out 30" in warning for warning in found.warnings)

    def test_what_it_was_fitted_on_is_left_out_in_other_words(
        self, probe: SavedProbe, tmp_path: Path
    ) -> None:
        path = build(tmp_path / "s", n=30, signal=3.0, change=same_things)
        with (
            open_store(path) as store,
            pytest.raises(ProbeError, match="the prompts or the subjects of these 30 answers"),
        ):
            evaluate_probe(store, probe, "facts")
        build(path, n=60, signal=3.0, change=other_prompts, prefix="b-")
        claims(path)
        of_tokens = replace(
            probe, kind="token", position=None, positive="contradicted", negative="supported"
        )
        about = "about something that the probe was fitted on"
        for kind, label, why in (
            (probe, "facts", about),
            (of_tokens, "spans", f"tokens of answers {about}"),
        ):
            kind.save(tmp_path / label)
            loaded = SavedProbe.load(tmp_path / label)
            with open_store(path) as store:
                found = evaluate_probe(store, loaded, label, draws=100)
            level = found.levels["answer"]
            assert level.positives + level.negatives == 60
            assert list(found.left_out) == [why]

    def test_things_are_known_by_the_tags_of_the_fit(self, tmp_path: Path) -> None:
        """Whatever the answers here are grouped by."""

        def with_country(number: int, document: dict[str, Any]) -> None:
            document["tags"]["country"] = f"country {number}"

        def others(number: int, document: dict[str, Any]) -> None:
            other_prompts(number, document)
            with_country(number, document)

        with open_store(build(tmp_path / "fit", n=60, signal=3.0, change=with_country)) as store:
            probe = fit_answer_probe(store, "facts", Options(**OPTIONS, group=("country",)))
        with (
            open_store(build(tmp_path / "s", n=60, signal=3.0, change=others)) as store,
            pytest.raises(ProbeError, match="the prompts or the subjects of these 60 answers"),
        ):
            evaluate_probe(store, probe, "facts", group=("entity",))

    def test_a_probe_that_does_not_know_its_prompts(
        self, probe: SavedProbe, elsewhere: Path
    ) -> None:
        old = replace(probe, prompts=np.empty(0, np.uint64))
        # Recalibrated, it knows the prompts of the later labels alone.
        moved = replace(probe, data={})
        for one in (old, moved):
            with open_store(elsewhere) as store:
                found = evaluate_probe(store, one, "facts", draws=100)
            assert any("may be among it" in warning for warning in found.warnings)

    def test_claims(self, probe: SavedProbe, elsewhere: Path) -> None:
        of_tokens = replace(
            probe, kind="token", position=None, positive="contradicted", negative="supported"
        )
        with open_store(elsewhere) as store:
            found = evaluate_probe(store, of_tokens, "spans", draws=100)
            entries = list(store.entries())
            y, span, first, answer = [], [], [], []
            for entry in entries:
                rows, prompt = of_tokens.score_rows(entry), entry.num_tokens[0]
                (one,) = entry.evaluations["spans"].spans
                own = rows[prompt + entry.span_tokens(one)]
                y.append(one.label == "contradicted")
                span.append(own.max())
                first.append(own[0])
                answer.append(of_tokens.score(entry))
        assert list(found.levels) == ["span", "first", "token", "answer"]
        wrong = np.array(y)
        for name, said in (("span", span), ("first", first), ("answer", answer)):
            p = np.array(said)
            above = (p[wrong][:, None] > p[~wrong][None]).mean()
            level = found.levels[name]
            assert level.auroc.value == pytest.approx(above, abs=1e-6), name
            assert level.best_control in level.controls
            assert level.over_best_control is not None
        assert {"claim_text", "claim_type", "min_logprob"} <= found.levels["span"].controls.keys()

    def test_a_claim_counts_once_however_long_it_is(self, probe: SavedProbe, path: Path) -> None:
        """As at the level of tokens in a study."""
        store_path = build_claims(path.parent / "claims", Claims(n=60, prefix="more "))
        of_tokens = replace(
            probe, kind="token", position=None, positive="contradicted", negative="supported"
        )
        of_tokens = replace(of_tokens, prompts=np.empty(0, np.uint64))
        with open_store(store_path) as store:
            level = evaluate_probe(store, of_tokens, "profiles", draws=100).levels["token"]
            y, p, weight = [], [], []
            for entry in store.entries():
                rows, prompt = of_tokens.score_rows(entry), entry.num_tokens[0]
                for one in entry.evaluations["profiles"].spans:
                    own = rows[prompt + entry.span_tokens(one)]
                    if one.label != "unverifiable":
                        y += [one.label == "contradicted"] * len(own)
                        p += own.tolist()
                        weight += [1 / len(own)] * len(own)
        assert set(weight) == {0.5, 1.0}
        told = {"sample_weight": weight}
        assert level.auroc.value == pytest.approx(roc_auc_score(y, p, **told), abs=1e-6)
        assert level.auprc.value == pytest.approx(average_precision_score(y, p, **told), abs=1e-6)
        flagged = np.array(p) >= of_tokens.threshold
        right = np.average(flagged == np.array(y), weights=weight)
        assert level.accuracy.value == pytest.approx(right)

    @pytest.mark.parametrize(
        ("label", "fields", "error", "said"),
        [
            ("facts", {"model": "org/other"}, DatasetError, "no labelled answer is by 'org/other'"),
            (
                "facts",
                {"sources": (3,)},
                ProbeError,
                "none of the 80 answers has what the probe reads, 3",
            ),
            ("facts", {"num_layers": 9}, ProbeError, "fitted on 9 layers of 16"),
            ("spans", {"model": "org/other"}, DatasetError, "org/other"),
            ("spans", {"sources": (3,)}, DatasetError, "layer 3"),
            (
                "spans",
                {"num_layers": 9},
                ProbeError,
                "fitted on 9 layers of 16, these answers have 4 of 16",
            ),
        ],
    )
    def test_other_stores(
        self,
        probe: SavedProbe,
        elsewhere: Path,
        label: str,
        fields: dict[str, Any],
        error: type[Exception],
        said: str,
    ) -> None:
        kind = {"kind": "token", "position": None} if label == "spans" else {}
        other = replace(probe, **kind, **fields)
        with open_store(elsewhere) as store, pytest.raises(error, match=said):
            evaluate_probe(store, other, label)

    def test_too_few(self, probe: SavedProbe, tmp_path: Path) -> None:
        path = build(tmp_path / "s", n=20, change=other_prompts)
        with open_store(path) as store, pytest.raises(DatasetError, match="only 10 answers are"):
            evaluate_probe(store, probe, "facts")
