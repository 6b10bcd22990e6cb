"""Splits leak nothing; figures of merit equal scikit-learn's, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from activation_logging.detectors import metrics
from activation_logging.detectors.metrics import Bootstrap
from activation_logging.detectors.splits import check_no_leak, make_folds
from activation_logging.errors import DatasetError, LeakError

ALL = [np.arange(200)]


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 200)
    # Rounded, so that there are ties.
    p = np.clip(np.round(0.35 * y + rng.normal(0.3, 0.25, 200), 2), 0, 1)
    return y, p, rng


def weights_of(rng, n=200, draws=20):
    return rng.integers(0, 4, (draws, n)).astype(float)


@pytest.mark.parametrize(
    ("ours", "theirs", "rtol"),
    [
        (metrics.auroc, reference.roc_auc_score, 1e-12),
        (metrics.auprc, reference.average_precision_score, 1e-9),
    ],
    ids=["auroc", "auprc"],
)
def test_weights_and_ties(scored, ours, theirs, rtol):
    y, p, rng = scored
    w = weights_of(rng)
    wanted = [theirs(y, p, sample_weight=row) for row in w]
    np.testing.assert_allclose(ours(y, p, w, ALL), wanted, rtol=rtol)


def test_auroc_compares_within_folds(scored):
    y, p, _ = scored
    folds = [np.arange(0, 80), np.arange(80, 200)]
    shifted = p + np.where(np.arange(200) < 80, 10.0, 0.0)
    ones = np.ones((1, 200))
    pairs = [y[f].sum() * (1 - y[f]).sum() for f in folds]
    each = [reference.roc_auc_score(y[f], p[f]) for f in folds]
    wanted = np.average(each, weights=pairs)
    np.testing.assert_allclose(metrics.auroc(y, shifted, ones, folds), [wanted], rtol=1e-12)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
def test_recall_at_a_false_positive_rate(scored, fpr):
    y, p, rng = scored
    weights = weights_of(rng)
    wanted = []
    for row in weights:
        false, true, _ = reference.roc_curve(y, p, sample_weight=row, drop_intermediate=False)
        wanted.append(true[false <= fpr + 1e-9].max())
    np.testing.assert_allclose(metrics.recall_at_fpr(y, p, weights, ALL, fpr), wanted)


def test_recall_is_within_folds_and_a_lower_bound():
    y, p = np.array([1, 1, 0, 0, 1, 0]), np.array([0.9, 0.5, 0.7, 0.1, -3.0, -4.0])
    folds = [np.arange(4), np.arange(4, 6)]
    ones = np.ones((1, 6))
    # In the first fold one positive is above both negatives, in the second the only one is.
    assert metrics.recall_at_fpr(y, p, ones, folds, 0.1) == pytest.approx([2 / 3])
    assert metrics.recall_at_fpr(y, p, ones, folds, 0.5) == pytest.approx([1.0])
    assert np.isnan(metrics.recall_at_fpr(y, p, np.array([[1.0, 1, 0, 0, 1, 0]]), folds, 0.1))


def test_accuracy_and_threshold(scored):
    y, p, rng = scored
    threshold = metrics.best_f1_threshold(y, p)
    wanted = max(reference.f1_score(y, p >= t) for t in np.unique(p))
    assert reference.f1_score(y, p >= threshold) == pytest.approx(wanted, abs=1e-12)
    called = (p >= threshold).astype(int)
    w = weights_of(rng)
    each = [reference.accuracy_score(y, called, sample_weight=row) for row in w]
    np.testing.assert_allclose(metrics.accuracy(y, called, w), each)


def test_threshold_of_equal_scores_calls_all_or_none():
    y = np.array([1, 0, 1, 0])
    assert metrics.best_f1_threshold(y, np.full(4, 0.5)) <= 0.5


def test_calibration_error_by_hand(scored):
    y, p, rng = scored
    p = np.clip(p + rng.uniform(-1e-3, 1e-3, 200), 0, 1)  # no score on the edge of a bin
    frequency, mean = calibration_curve(y, p, n_bins=10)
    counts = np.histogram(p, np.linspace(0, 1, 11))[0]
    wanted = (np.abs(frequency - mean) * counts[counts > 0]).sum() / 200
    found = metrics.expected_calibration_error(y, p, np.ones((1, 200)))
    np.testing.assert_allclose(found, [wanted], atol=1e-6)


def test_bootstrap_resamples_whole_groups_and_repeats_itself(scored):
    y, p, _ = scored
    groups = np.repeat([f"g{i}" for i in range(50)], 4)
    bootstrap = Bootstrap(groups, draws=300, seed=7)
    seen = []
    bootstrap.interval(lambda w: (seen.append(w), w.sum(axis=1))[1])
    draws = np.concatenate(seen[1:])
    assert draws.shape == (300, 200)
    assert (draws.reshape(300, 50, 4) == draws.reshape(300, 50, 4)[:, :, :1]).all()
    assert (draws.sum(axis=1) == 200).all()
    once, again = (
        Bootstrap(groups, draws=300, seed=7).interval(lambda w: metrics.auroc(y, p, w, ALL))
        for _ in range(2)
    )
    assert once == again
    assert once.low < once.value < once.high


def test_bootstrap_interval_has_the_width_that_theory_says():
    """Hanley and McNeil's standard error of an AUROC, for independent answers."""
    rng = np.random.default_rng(0)
    n = 2000
    y = np.arange(n) % 2
    p = y + rng.normal(0, 1.5, n)
    groups = np.array([str(i) for i in range(n)])
    found = Bootstrap(groups, seed=0).interval(lambda w: metrics.auroc(y, p, w, [np.arange(n)]))
    a, m = found.value, n / 2
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (m - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)) / (m * m))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_folds_keep_groups_together_and_classes_in_proportion():
    rng = np.random.default_rng(0)
    groups = np.array([f"e{i}" for i in rng.integers(0, 100, 400)])
    y = (rng.random(400) < 0.3).astype(np.int64)
    folds = make_folds(y, groups, folds=5, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(400))
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert not set(groups[fold.fit]) & set(groups[fold.validation])
        assert set(fold.fit) | set(fold.validation) == set(fold.train)
        # The oldest scikit-learn that is allowed balances a little less well: 0.062.
        assert abs(y[fold.test].mean() - y.mean()) < 0.07
    again = make_folds(y, groups, folds=5, seed=1)
    assert all((a.test == b.test).all() for a, b in zip(folds, again, strict=True))
    other = make_folds(y, groups, folds=5, seed=2)
    assert any(
        len(a.test) != len(b.test) or (a.test != b.test).any()
        for a, b in zip(folds, other, strict=False)
    )


def test_a_planted_leak_is_refused():
    groups = np.array(["Rome", "Oslo", "Lima", "Rome"])
    with pytest.raises(LeakError, match="Rome"):
        check_no_leak(groups, np.array([0, 1]), np.array([2, 3]))
    check_no_leak(groups, np.array([0, 3]), np.array([1, 2]))


def test_fewer_than_twenty_of_a_class_are_refused():
    groups = np.array([str(i) for i in range(119)])
    y = (np.arange(119) < 19).astype(np.int64)
    with pytest.raises(DatasetError, match="only 19 answers"):
        make_folds(y, groups)


def test_too_few_entities_are_refused():
    y = np.arange(100) % 2
    with pytest.raises(DatasetError, match="different entities"):
        make_folds(y, np.array([f"e{i % 6}" for i in range(100)]))
