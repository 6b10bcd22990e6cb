"""Detectors of what a replay has kept: their numbers, and that they are fitted within the folds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from activation_logging import open_store
from activation_logging.dataset.examples import select_examples
from activation_logging.detectors import DETECTORS, Options, run_study
from activation_logging.detectors.inputs import read_signals
from activation_logging.detectors.replayed import (
    all_eigenvalues,
    icr_probe,
    lens_probe,
    lookback_lens,
    mean_icr,
    mean_lens,
    mean_ratios,
    spectral_probe,
)
from activation_logging.errors import InputMissing
from activation_logging.store.derived import Derived
from tests.fixtures.planted import build

KINDS = {
    "lookback": (5, 3, 2),
    "lapeigvals": (3, 2, 10),
    "icr": (5, 3),
    "logit_lens": (5, 3, 2),
}
FAST = Options(layers=[2], positions=["response_last"], draws=100)


def put(path, values_of, *, digest=lambda number: "a", kinds=KINDS):
    """Put what ``values_of(number, shape)`` gives beside every entry."""
    with open_store(path, writable=True) as store:
        store.put_derived(
            Derived(
                entry.key,
                f"replay/{kind}",
                values_of(number, KINDS[kind]),
                {"digest": digest(number)},
            )
            for number, entry in enumerate(store.entries())
            for kind in kinds
        )


def study(path):
    with open_store(path) as store:
        return run_study(store, "facts", FAST)


def test_vectors_of_one_answer():
    rng = np.random.default_rng(0)
    ratios = rng.random((4, 3, 2)).astype(np.float16)
    wanted = [np.float64(ratios[1:, layer, head]).mean() for layer in range(3) for head in range(2)]
    np.testing.assert_allclose(mean_ratios(ratios), wanted, rtol=1e-6)
    assert mean_ratios(ratios[:1]).tolist() == ratios[0].ravel().tolist()

    scores = rng.random((4, 3)).astype(np.float32)
    np.testing.assert_allclose(mean_icr(scores), (scores[1] + scores[2] + scores[3]) / 3, rtol=1e-6)

    lens = rng.random((4, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(mean_lens(lens), sum(lens).ravel() / 4, rtol=1e-6)

    eigenvalues = rng.random((3, 2, 10)).astype(np.float32)
    assert all_eigenvalues(eigenvalues)[13] == eigenvalues[0, 1, 3]
    eigenvalues[1, 1, 9] = np.nan
    with pytest.raises(InputMissing, match="fewer than 10 tokens"):
        all_eigenvalues(eigenvalues)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    y = np.arange(90) % 2
    X = rng.normal(size=(90, 40))
    X[y == 1, :3] += 1
    return X, y, rng.normal(size=(25, 40))


def test_the_spectral_probe_is_components_and_a_balanced_regression(data):
    X, y, new = data
    y = np.where(np.arange(90) < 60, 1, y)
    components = PCA(40, random_state=0).fit(X)
    wanted = LogisticRegression(max_iter=2000, class_weight="balanced")
    wanted.fit(components.transform(X), y)
    np.testing.assert_allclose(
        spectral_probe().fit(X, y).predict_proba(new),
        wanted.predict_proba(components.transform(new)),
        atol=1e-6,
    )
    # With fewer answers than eigenvalues, as many components as answers.
    assert spectral_probe().fit(X[:30], y[60:]).predict_proba(new).shape == (25, 2)


def test_the_others_are_regressions_too(data):
    X, y, new = data
    plain = LogisticRegression(max_iter=1000).fit(X, y)
    np.testing.assert_array_equal(lookback_lens().fit(X, y).coef_, plain.coef_)
    scaler = StandardScaler().fit(X)
    scaled = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(X), y)
    np.testing.assert_allclose(
        lens_probe().fit(X, y).predict_proba(new), scaled.predict_proba(scaler.transform(new))
    )


def test_the_icr_probe_depends_on_the_seed_alone(data):
    X, y, new = data
    first, again, other = (icr_probe(seed).fit(X, y).predict_proba(new) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_they_find_what_is_there(tmp_path):
    build(tmp_path / "s", n=80)
    rng = np.random.default_rng(2)
    put(tmp_path / "s", lambda number, shape: rng.normal(2.0 * (number % 2), 1, shape).astype("f4"))
    found = study(tmp_path / "s")
    for name in ("lookback_lens", "lapeigvals", "icr", "logit_lens"):
        assert found.result(name).auroc.value > 0.9, name
        assert found.result(name).layer == ""
    assert not found.detectors_left_out.keys() & {"Lookback Lens", "LapEigvals", "ICR probe"}


def test_they_are_fitted_within_the_folds(tmp_path, monkeypatch):
    """Of noise in many dimensions, one that had seen its test answers would know all."""
    build(tmp_path / "s", n=80)
    monkeypatch.setitem(KINDS, "lookback", (2, 40, 10))
    rng = np.random.default_rng(3)
    put(tmp_path / "s", lambda _, shape: rng.normal(size=shape).astype("f4"), kinds=["lookback"])
    assert 0.3 < study(tmp_path / "s").result("lookback_lens").auroc.value < 0.7


def test_without_a_replay_they_are_left_out(tmp_path):
    build(tmp_path / "s", n=80)
    rng = np.random.default_rng(4)

    def values(number, shape):
        made = rng.normal(size=shape).astype("f4")
        made[..., -1] = np.nan if len(shape) == 3 and shape[2] == 10 else made[..., -1]
        return made

    put(tmp_path / "s", values, kinds=["lapeigvals", "icr"], digest=lambda number: str(number % 2))
    left_out = study(tmp_path / "s").detectors_left_out
    assert left_out["Lookback Lens"] == (
        "80 of 80 answers have no lookback; run `activation-logging replay`"
    )
    assert left_out["LapEigvals"] == (
        "80 of 80 answers have fewer than 10 tokens in prompt and answer"
    )
    assert "replayed with 2 models or settings" in left_out["ICR probe"]


def test_arrays_that_are_not_ours(tmp_path):
    build(tmp_path / "s", n=6)
    values = {2: np.nan, 3: 1.0}
    put(
        tmp_path / "s",
        lambda _, shape: np.full(shape, values[len(shape)], "f4"),
        digest=lambda number: [],
    )
    with open_store(tmp_path / "s") as store:
        read = []
        detectors = [DETECTORS.get(name) for name in ("length", "icr", "lookback_lens")]
        signals = read_signals(
            select_examples(store), detectors, progress=lambda what, *_: read.append(what)
        )
    # One pass over the entries gives numbers and replays.
    assert set(read) == {"reading answers"}
    assert signals.missing["icr"] == "6 of 6 answers have icr with numbers that are not finite"
    assert signals.features["lookback_lens"].shape == (6, 6)
