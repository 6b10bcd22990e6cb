"""How scores were spread, how far others are from that, and what chance alone does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from activation_logging import Derived, open_store
from activation_logging.detectors.drift import (
    LEAST,
    Reference,
    bin_shares,
    compare,
    stability_index,
)
from activation_logging.detectors.fitted_on import prompts_of
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.store_drift import drift_in
from activation_logging.detectors.store_scores import score_store
from activation_logging.errors import DatasetError, ProbeError
from tests.fixtures.planted import build
from tests.unit.detectors.test_saved_probe import answers, make

RNG = np.random.default_rng(0)
SCORES = RNG.beta(2, 5, 2000)


class TestReference:
    @given(arrays(np.float64, st.integers(1, 300), elements=st.sampled_from(np.arange(0, 1, 0.05))))
    def test_shares_are_those_of_the_scores(self, scores: np.ndarray) -> None:
        """Whether there are few, many, or many equal ones."""
        spread = Reference.of(scores)
        for at in (-1.0, 0.0, 0.1, 0.5, 0.95, 2.0):
            # Between two quantiles that lie apart the share is drawn as a line.
            near = 0.005 + 1 / len(scores)
            found = spread.share_up_to(at)
            assert (scores < at).mean() - near <= found <= (scores <= at).mean() + near

    def test_of_many_scores(self) -> None:
        spread = Reference.of(SCORES)
        at = np.linspace(0, 1, 50)
        exact = (at[:, None] >= SCORES).mean(axis=1)
        assert spread.share_up_to(at) == pytest.approx(exact, abs=0.005)

    def test_nan_is_no_score(self) -> None:
        assert Reference.of([0.5, np.nan, 0.25]).number == 2

    def test_a_probe_keeps_it(self, tmp_path: Path) -> None:
        spread = Reference.of(SCORES)
        make(report=spread.as_json()).save(tmp_path / "p")
        loaded = Reference.of_probe(SavedProbe.load(tmp_path / "p"))
        assert loaded.number == 2000
        assert np.array_equal(loaded.quantiles, spread.quantiles)

    def test_a_probe_of_an_earlier_release(self) -> None:
        with pytest.raises(ProbeError, match="does not know how its scores were spread"):
            Reference.of_probe(make())

    @pytest.mark.parametrize(
        "told",
        [
            5,
            {},
            {"number": 0, "quantiles": [0, 1]},
            {"number": 5, "quantiles": [1, 0]},
            {"number": 5, "quantiles": [0.5]},
            {"number": 5, "quantiles": [[0, 1], [0, 1]]},
            {"number": 5, "quantiles": ["x", 1]},
            {"number": 5, "quantiles": [0, None, 1]},
            {"number": 10**400, "quantiles": None},
        ],
    )
    def test_notes_that_are_none(self, told: Any) -> None:
        with pytest.raises(ProbeError, match="is broken"):
            Reference.of_probe(make(report={"scores": told}))


class TestCompare:
    def test_the_figures_are_the_definitions(self) -> None:
        stats = pytest.importorskip("scipy.stats", reason="the extra 'detect' is not installed")
        now = RNG.beta(2, 3, 500)
        found = compare(Reference.of(SCORES), now)
        exact = stats.ks_2samp(SCORES, now)
        assert found.ks == pytest.approx(exact.statistic, abs=0.006)
        edges = np.quantile(SCORES, np.linspace(0.1, 0.9, 9))
        p, q = (
            np.bincount(np.searchsorted(edges, x), minlength=10) / len(x) for x in (SCORES, now)
        )
        assert found.psi == pytest.approx(float(((q - p) * np.log(q / p)).sum()), abs=0.02)
        assert found.verdict == "large"

    def test_chance_explains_what_is_the_same(self) -> None:
        """In one case of twenty each of the two figures exceeds what chance gives."""
        spread = Reference.of(SCORES)
        found = [compare(spread, RNG.beta(2, 5, 200)) for _ in range(200)]
        assert 0.01 < np.mean([one.psi > one.psi_by_chance for one in found]) < 0.12
        assert 0.005 < np.mean([one.ks > one.ks_by_chance for one in found]) < 0.12
        assert np.mean([one.verdict == "none" for one in found]) > 0.8

    def test_a_small_move_is_some(self) -> None:
        found = compare(Reference.of(SCORES), RNG.beta(2.2, 5, 4000))
        assert found.verdict == "some"

    def test_scores_that_are_all_equal(self) -> None:
        spread = Reference.of(np.full(100, 0.5))
        assert compare(spread, np.full(100, 0.5))[1:] == pytest.approx((0, 0, 0, 0.192), abs=0.001)
        moved = compare(spread, np.full(100, 0.75))
        assert moved.ks == 1.0
        assert moved.verdict == "large"

    def test_too_few(self) -> None:
        with pytest.raises(DatasetError, match=f"49 scores are too few .* {LEAST} are needed"):
            compare(Reference.of(SCORES), [*SCORES[:49], np.nan])

    def test_bins(self) -> None:
        shares = bin_shares(Reference.of([0.1] * 50 + [0.9] * 50), np.array([0.1, 0.5]))
        assert shares == pytest.approx([0.5, 0.0, 0.5], abs=0.02)
        assert float(stability_index([10, 0], [10, 0])) == 0.0
        assert np.isfinite(stability_index([10, 0], [0, 10]))


class TestStore:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return build(tmp_path / "s", n=80, without_rows=frozenset({5}))

    @pytest.mark.parametrize("made", [make(), answers("response_mean")], ids=["tokens", "answers"])
    def test_rows_and_scores_beside_say_the_same(
        self, path: Path, tmp_path: Path, made: SavedProbe
    ) -> None:
        """Also where the rows are gone, or never were."""
        with open_store(path) as store:
            entries = [entry for entry in store.entries() if entry.status == "complete"]
            said = np.array([made.score(entry) for entry in entries])
            probe = replace(made, report=Reference.of(said).as_json())
            first = drift_in(store, probe, "p")
        probe.save(tmp_path / "p")
        score_store(path, tmp_path / "p")
        with open_store(path, writable=True) as store:
            (lost,) = store.for_request("req-5-0")
            rows = np.full(lost.num_rows_expected, np.nan, np.float32)
            rows[-1] = 0.5
            store.put_derived([Derived(lost.key, "score/p", rows, {"digest": probe.digest})])
            second = drift_in(store, probe, "p")
        assert first.drift.verdict == second.drift.verdict == "none"
        assert (first.now.number, second.now.number) == (79, 80)
        assert first.flagged[1] == (said >= probe.threshold).mean()
        reasons = {"without rows, and without scores of this probe called 'p'": 1}
        assert (first.left_out, second.left_out) == (reasons, {})

    def test_a_model_that_answers_otherwise(self, path: Path) -> None:
        probe = make(report=Reference.of(SCORES / 10).as_json())
        with open_store(path) as store:
            found = drift_in(store, probe, "p")
        assert found.drift.verdict == "large"
        told = found.as_json()
        assert told["now"]["quantiles"]["0.5"] > told["before"]["quantiles"]["0.5"]
        assert (told["now"]["answers"], told["before"]["answers"]) == (79, 2000)

    def test_what_it_was_fitted_on_is_left_out(self, path: Path) -> None:
        with open_store(path) as store:
            known = prompts_of(list(store)[:20])
            probe = make(report=Reference.of(SCORES).as_json(), prompts=known)
            assert (
                drift_in(store, probe, "p").left_out["to prompts that the probe was fitted on"]
                == 20
            )

    def test_too_few_say_why(self, path: Path) -> None:
        probe = make(report=Reference.of(SCORES).as_json())
        with open_store(path) as store:
            with pytest.raises(DatasetError, match=r"0 answers have a score .*80 with other tags"):
                drift_in(store, probe, "p", tags={"a": "b"})
            with pytest.raises(DatasetError, match=r"0 answers .*80 by org/tiny; the probe was"):
                drift_in(store, replace(probe, model="other"), "p")
            with pytest.raises(DatasetError, match="0 answers"):
                drift_in(store, probe, "p", since=4e9)
