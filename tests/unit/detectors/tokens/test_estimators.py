"""Probes of tokens: equal to scikit-learn's where it has the same, with right gradients."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from scipy.optimize import check_grad
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from activation_logging.detectors.tokens import rows as rows_module
from activation_logging.detectors.tokens.fitting import Problems
from activation_logging.detectors.tokens.linear import TokenProbe
from activation_logging.detectors.tokens.losses import Runs, loss
from activation_logging.detectors.tokens.pooled import AttentionProbe, MultimaxProbe
from activation_logging.detectors.tokens.rows import InMemory, OnDisk, gather
from activation_logging.errors import DatasetError

WIDTH = 6
SPANS = np.repeat(np.arange(60), np.tile([1, 2, 3, 4], 15))
N = len(SPANS)


@pytest.fixture
def planted():
    """Rows of 60 spans, of which one token each tells the class; columns of very unlike scale."""
    rng = np.random.default_rng(1)
    y = np.repeat(rng.integers(0, 2, 60), np.bincount(SPANS))
    X = rng.normal(size=(N, WIDTH))
    last = np.r_[SPANS[1:] != SPANS[:-1], True]
    X[last, 2] += np.where(y[last], 3.0, -3.0)
    X = X * [1, 10, 0.1, 1000, 1, 1] + [0, 5, 0, 20_000, 0, 0]
    return X.astype(np.float32), y


def estimators():
    return [TokenProbe(), TokenProbe(span_max=True), AttentionProbe(), MultimaxProbe()]


@pytest.mark.parametrize("C", [0.001, 0.1, 1.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression(planted, C):
    X, y = planted
    probe = TokenProbe(C=C).fit(X, y, SPANS)
    weight = 1 / np.bincount(SPANS)[SPANS]
    scaler = StandardScaler().fit(X.astype(float), sample_weight=weight)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=1000)
    theirs.fit(scaler.transform(X.astype(float)), y, sample_weight=weight)
    expected = theirs.decision_function(scaler.transform(X.astype(float)))
    np.testing.assert_allclose(probe.decision_function(X), expected, atol=2e-3)


def test_large_log_odds_are_probabilities_all_the_same(planted):
    X, y = planted
    probe = TokenProbe().fit(X, y, SPANS)
    far = np.where(y == 1, 1, -1)[:, None] * 1e5 * np.sign(probe.coef_)
    p = probe.predict_proba(far)[:, 1]  # a warning of ours is an error
    assert np.abs(probe.decision_function(far)).min() > 800
    assert set(p) == {0.0, 1.0}


def test_many_problems_at_once_are_each_by_itself(planted):
    X, y = planted
    rng = np.random.default_rng(2)
    use = rng.random((N, 3)) < 0.7
    weight = rng.random(N)
    flipped = np.stack([y, 1 - y, y], axis=1)
    together = Problems(InMemory(X), flipped, weight, use).fit([0.01, 0.1])
    for column in range(3):
        part = use[:, column]
        for C, fitted in zip([0.01, 0.1], together, strict=True):
            alone = TokenProbe(C=C).fit(X[part], flipped[part, column], sample_weight=weight[part])
            odds = fitted.odds(InMemory(X))[:, column]
            np.testing.assert_allclose(odds, alone.decision_function(X), atol=3e-3)


def test_the_loss_is_the_papers():
    y, spans = np.array([1, 1, 0, 0, 0]), np.array([7, 7, -1, 3, 3])
    odds = np.array([[-1.0], [2.0], [0.5], [-3.0], [-0.2]])
    weight = np.full((5, 1), 0.5)
    cross = np.where(y, np.log1p(np.exp(-odds[:, 0])), np.log1p(np.exp(odds[:, 0])))
    of_spans = 1.0 * cross[1] + 0.5 * cross[2] + 1.0 * cross[4]
    value, _ = loss(y, odds, weight, Runs.of(spans), 0.3)
    assert value == pytest.approx([0.7 * 0.5 * cross.sum() + 0.3 * of_spans])


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
def test_the_slope_of_the_loss(planted, omega):
    _, y = planted
    rng = np.random.default_rng(3)
    weight, runs = rng.random((N, 1)), Runs.of(SPANS)
    off = check_grad(
        lambda z: float(loss(y, z[:, None], weight, runs, omega)[0][0]),
        lambda z: loss(y, z[:, None], weight, runs, omega)[1][:, 0],
        rng.normal(size=N),
        epsilon=1e-6,
    )
    assert off < 1e-5


@pytest.mark.parametrize("probe", [AttentionProbe(heads=2), MultimaxProbe(heads=3)], ids=str)
def test_the_gradient_of_a_pooled_probe(planted, probe):
    X, y = planted
    runs = Runs.of(SPANS)
    rows = InMemory(X)
    standard = X.mean(axis=0)[:, None].astype(float), X.std(axis=0)[:, None].astype(float)
    target = y[runs.starts], np.ones((60, 1))
    point = np.random.default_rng(4).normal(size=probe.parts * probe.heads * WIDTH + 1)

    def value(flat):
        return probe._evaluate(flat[:, None], rows, standard, runs, target)[0][0]

    def slope(flat):
        return probe._evaluate(flat[:, None], rows, standard, runs, target)[1][:, 0]

    # Rows are float32, so the differences are coarse.
    numeric = np.array(
        [
            (value(point + 1e-2 * unit) - value(point - 1e-2 * unit)) / 2e-2
            for unit in np.eye(len(point))
        ]
    )
    np.testing.assert_allclose(slope(point), numeric, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("probe", [AttentionProbe(), MultimaxProbe()], ids=str)
def test_many_pooled_probes_at_once_are_each_by_itself(planted, probe):
    X, y = planted
    runs = Runs.of(SPANS)
    weight = np.ones((60, 2))
    weight[:20, 1] = 0
    together = probe.fit_many(InMemory(X), y[runs.starts], weight, runs)
    part = SPANS >= 20
    for found, rows in zip(together, (np.ones(N, bool), part), strict=True):
        alone = clone(probe).fit(X[rows], y[rows], SPANS[rows])
        odds = alone.span_odds(X, SPANS)
        np.testing.assert_allclose(found.span_odds(X, SPANS), odds, atol=0.1)
        assert np.corrcoef(found.span_odds(X, SPANS), odds)[0, 1] > 0.999


@pytest.mark.parametrize("probe", estimators(), ids=str)
def test_as_an_estimator(planted, probe):
    X, y = planted
    again = clone(probe)
    assert again.get_params() == probe.get_params()
    probe.fit(X, y, SPANS)
    again.fit(X, y, SPANS)
    np.testing.assert_array_equal(again.decision_function(X), probe.decision_function(X))
    p = probe.predict_proba(X)
    assert p.shape == (N, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(probe.predict(X), p[:, 1] > 0.5)
    odds = probe.span_odds(X, SPANS)
    assert odds.shape == (60,)
    assert roc_auc_score(y[Runs.of(SPANS).starts], odds) > 0.9


def test_the_maximum_over_spans_finds_the_token_that_tells(planted):
    """Where one token of a span tells and the others mislead, only the maximum can follow it."""
    X, y = planted
    last = np.r_[SPANS[1:] != SPANS[:-1], True]
    X = X.copy()
    X[~last, 2] = -0.3
    of_spans = y[Runs.of(SPANS).starts]
    scores = []
    for span_max in (False, True):
        odds = TokenProbe(C=1.0, span_max=span_max).fit(X, y, SPANS).span_odds(X, SPANS)
        scores.append(np.log1p(np.exp(np.where(of_spans, -odds, odds))).mean())
    assert scores[1] < scores[0]


def test_rows_on_disk_are_those_in_memory(planted, monkeypatch):
    X, y = planted
    monkeypatch.setattr(rows_module, "CHUNK", 17)
    on_disk = gather([X[:50], X[50:51], X[51:]], N, WIDTH, memory=100)
    assert isinstance(on_disk, OnDisk)
    for _ in range(2):
        np.testing.assert_array_equal(
            np.concatenate([part.copy() for _, part in on_disk.chunks()]), X
        )
    weight, use = np.ones(N), np.ones((N, 1), bool)
    found = [
        Problems(rows, y, weight, use, Runs.of(SPANS)).fit([0.1], span_max=True)[0]
        for rows in (on_disk, gather([X], N, WIDTH))
    ]
    np.testing.assert_array_equal(found[0].weight, found[1].weight)


def test_no_room_for_rows_on_disk(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(DatasetError, match=r"/nowhere does not take them .*TMPDIR"):
        gather([np.ones((2, 2), np.float32)], 2, 2, memory=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"y": np.ones(N)}, "both 0 and 1 are needed"),
        ({"spans": np.tile([0, 1], N // 2)}, "side by side"),
        ({"spans": np.full(N, 3)}, "one class"),
        ({"spans": np.full(N, 0.5)}, "whole number"),
        ({"sample_weight": np.full(N, -1.0)}, "0 or more"),
        ({"sample_weight": np.zeros(N)}, "weight of 0"),
    ],
)
def test_bad_input(planted, change, says):
    X, y = planted
    with pytest.raises(DatasetError, match=says):
        TokenProbe().fit(**{"X": X, "y": y, "spans": SPANS, **change})


def test_states_that_are_not_finite(planted):
    X, y = planted
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        TokenProbe().fit(X, y)


def test_the_maximum_needs_spans(planted):
    with pytest.raises(DatasetError, match="spans="):
        TokenProbe(span_max=True).fit(*planted)
