"""Each detector against an independent computation on a small case."""

from __future__ import annotations

import importlib
import math
from contextlib import ExitStack

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from scipy.spatial.distance import mahalanobis
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from activation_logging import open_store
from activation_logging.detectors import DETECTORS, Detector
from activation_logging.detectors.calibration import Calibrated, logistic_curve
from activation_logging.detectors.distance import MahalanobisDetector, nearest_neighbours
from activation_logging.detectors.inputs import read_signals
from activation_logging.detectors.linear import LinearProbe, MassMeanProbe
from activation_logging.detectors.network import saplma
from activation_logging.detectors.registry import load_detectors
from activation_logging.detectors.samples import (
    Samples,
    disagreement,
    eigenscore,
    normalise_answer,
    samples_to,
    semantic_entropy,
)
from activation_logging.detectors.signals import token_entropy
from activation_logging.detectors.text import text_only
from activation_logging.errors import InputMissing, PluginError
from tests.fixtures import planted
from tests.fixtures.damage import cut_off
from tests.fixtures.planted import build


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    y = np.arange(120) % 2
    X = rng.normal(size=(120, 6)).astype(np.float32) * [1, 5, 1, 1, 0.1, 1] + 3
    X[y == 1, :2] += 1.5
    return X.astype(np.float32), y, rng.normal(3, 2, (30, 6)).astype(np.float32)


def test_linear_probe_is_scikit_learns_logistic_regression(data):
    X, y, new = data
    probe = LinearProbe(C=0.5).fit(X, y)
    wanted = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-8)).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(new), wanted.predict_proba(new), atol=2e-3)
    np.testing.assert_allclose(
        probe.decision_function(new), new.astype(float) @ probe.coef_[0] + probe.intercept_
    )


def test_mass_mean_is_the_difference_of_means(data):
    X, y, new = data
    probe = Calibrated(MassMeanProbe()).fit(X, y)
    wanted = X[y == 1].mean(0, dtype=float) - X[y == 0].mean(0, dtype=float)
    np.testing.assert_allclose(probe.estimator_.direction_, wanted, rtol=1e-6)
    order = np.argsort(new @ wanted)
    assert (np.diff(probe.predict_proba(new)[order, 1]) >= 0).all()


def test_a_curve_is_fitted_on_answers_that_were_held_out(data):
    """The procedure of CalibratedClassifierCV; its smoothed targets alone give other numbers."""
    X, y, new = data
    ours = Calibrated(MassMeanProbe()).fit(X, y).predict_proba(new)[:, 1]
    parts = StratifiedKFold(5, shuffle=True, random_state=0)
    wanted = CalibratedClassifierCV(MassMeanProbe(), cv=parts, ensemble=False).fit(X, y)
    theirs = wanted.predict_proba(new)[:, 1]
    np.testing.assert_array_equal(np.argsort(ours), np.argsort(theirs))
    np.testing.assert_allclose(ours, theirs, atol=0.03)


def test_a_curve_is_fitted_on_answers_about_other_things():
    """Of five samples of an answer, which differ little, each is known from the others."""
    wanted = Calibrated(MassMeanProbe(whiten=True))
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(80), 5)
    y = rng.integers(0, 2, 80)[group]
    X = rng.normal(size=(80, 128))[group] + 0.3 * rng.normal(size=(400, 128))
    train, test = group < 60, group >= 60
    found = clone(wanted).fit(X[train], y[train], groups=group[train])
    # The states know nothing, and the curve knows that.
    sure = np.abs(found.predict_proba(X[test])[:, 1] - 0.5).mean()
    assert sure < 0.2 < np.abs(wanted.fit(X[train], y[train]).predict_proba(X[test]) - 0.5).mean()
    # With one thing of a class there is no other to learn from.
    assert clone(wanted).fit(X[:40], np.repeat([0, 1], [5, 35]), groups=group[:40]).curve_


def test_the_order_of_the_answers_does_not_turn_a_curve_round():
    """Answers come in order of their kind, and each kind has a rate of its own.

    Parts in that order would each be scored by a direction that never saw their kinds.
    """
    kind = np.repeat(np.arange(10), 20)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = (rng.random(200) < rng.permutation(np.linspace(0.1, 0.9, 10))[kind]).astype(int)
        X = 3 * rng.normal(size=(10, 16))[kind] + rng.normal(size=(200, 16))
        probe = Calibrated(MassMeanProbe()).fit(X, y)
        in_order = probe.predict_proba(X)[np.argsort(X @ probe.estimator_.direction_), 1]
        assert in_order[-1] > in_order[0]


def test_whitened_mass_mean_is_linear_discriminant_analysis(data):
    X, y, _ = data
    probe = MassMeanProbe(whiten=True).fit(X, y)
    within = X.astype(float) - np.stack([X[y == k].mean(0, dtype=float) for k in (0, 1)])[y]
    scale = np.diag(X.std(0, dtype=float))
    shrunk = LedoitWolf(assume_centered=True).fit(within @ np.linalg.inv(scale)).covariance_
    covariance = scale @ shrunk @ scale
    apart = X[y == 1].mean(0, dtype=float) - X[y == 0].mean(0, dtype=float)
    wanted = np.linalg.inv(covariance) @ apart
    # In units of the spread within a class.
    wanted /= np.sqrt(wanted @ covariance @ wanted)
    np.testing.assert_allclose(probe.direction_, wanted, rtol=1e-5)
    # With little shrinkage it points where scikit-learn's discriminant analysis does.
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y).coef_[0]
    cosine = probe.direction_ @ lda / np.linalg.norm(probe.direction_) / np.linalg.norm(lda)
    assert cosine > 0.98


@pytest.mark.parametrize("relative", [False, True])
def test_mahalanobis_distance_is_scipys(data, relative):
    X, y, new = data
    found = MahalanobisDetector(relative).fit(X, y).decision_function(new)

    def squared(rows):
        scale = X.std(0, dtype=float)
        model = LedoitWolf().fit(rows / scale)
        inverse = np.linalg.inv(model.covariance_)
        return [mahalanobis(row / scale, model.location_, inverse) ** 2 for row in new]

    wanted = np.array(squared(X[y == 0])) - (np.array(squared(X)) if relative else 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_nearest_neighbours_by_hand(data):
    X, y, new = data
    found = nearest_neighbours(5).fit(X, y).predict_proba(new)[:, 1]
    mean, scale = X.mean(0, dtype=float), X.std(0, dtype=float)

    def unit(rows):
        z = (rows - mean) / scale
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    distance = np.linalg.norm(unit(new)[:, None] - unit(X)[None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :5]
    votes = 1 / np.take_along_axis(distance, nearest, axis=1)
    np.testing.assert_allclose(found, (votes * y[nearest]).sum(1) / votes.sum(1), rtol=1e-4)


def test_saplma_has_the_papers_shape_and_repeats_itself(data):
    X, y, new = data
    first, second = (saplma(seed=3).fit(X, y) for _ in range(2))
    assert [w.shape[1] for w in first[-1].coefs_] == [256, 128, 64, 1]
    assert first[-1].n_iter_ == 5
    np.testing.assert_array_equal(first.predict_proba(new), second.predict_proba(new))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_may_point_either_way(data, sign):
    X, y, _ = data
    number = sign * X[:, :1]
    p = logistic_curve().fit(number, y).predict_proba(number)[:, 1]
    assert (np.diff(p[np.argsort(sign * number[:, 0])]) >= 0).all()
    # The mean of a logistic regression's probabilities is the share of positives.
    assert p.mean() == pytest.approx(y.mean(), abs=1e-3)


@pytest.mark.parametrize(
    "detector", [d for d in DETECTORS if d.needs == "state"], ids=lambda d: d.name
)
def test_all_are_scikit_learn_classifiers(data, detector):
    X, y, new = data
    known = {"groups": np.arange(len(y)).astype(str), "semantic_entropy": y + X[:, 0] / 100}
    model = clone(detector.make(0)).fit(X, y, **{name: known[name] for name in detector.fit_with})
    p = model.predict_proba(new)
    assert p.shape == (30, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert ((p >= 0) & (p <= 1)).all()
    assert (model.predict(new) == (p[:, 1] > 0.5)).all()
    assert model.score(X, y) > 0.6
    assert list(model.classes_) == [0, 1]


def test_text_only_sees_words_and_nothing_else():
    texts = np.array([["capital?", f"it is {w}"] for w in ("yes", "no") * 30], dtype=object)
    y = np.arange(60) % 2
    assert text_only().fit(texts, y).score(texts, y) == 1
    blind = text_only(answer=False).fit(texts, y)
    assert len(set(blind.predict_proba(texts)[:, 1].round(9))) == 1


def test_text_only_reads_answers_without_a_word():
    texts = np.array([["1 + 1 = 2?", sign] for sign in ("✓", "✗!") * 30], dtype=object)
    y = np.arange(60) % 2
    assert text_only().fit(texts, y).score(texts, y) == 1


def test_signals_by_hand(tmp_path):
    build(tmp_path / "s", n=6)
    with open_store(tmp_path / "s") as store:
        examples = store.dataset(layer=2).examples
        signals = read_signals(examples, DETECTORS)
        for i, key in enumerate(examples.keys):
            entry = store[key]
            assert signals.values["mean_logprob"][i] == pytest.approx(
                math.fsum(entry.logprobs) / len(entry.logprobs)
            )
            assert signals.values["min_logprob"][i] == min(entry.logprobs)
            assert signals.values["length"][i] == len(entry.response_token_ids)
        # Every prompt was asked once, and nobody has said or computed anything about the answers.
        needed = {DETECTORS.get(name).needs for name in signals.missing}
        assert needed == {"samples", "given", "follow_up", "replay"}
        assert signals.texts.tolist() == [
            [store[k].prompt, store[k].response] for k in examples.keys
        ]


def test_missing_logprobs_are_named(tmp_path):
    build(tmp_path / "s", n=6, change=lambda i, d: d.update(logprobs=None) if i == 2 else None)
    with open_store(tmp_path / "s") as store:
        signals = read_signals(store.dataset(layer=2).examples, DETECTORS)
    assert "1 of 6 answers have no log-probabilities" in signals.missing["mean_logprob"]
    assert "length" in signals.values
    assert "token_entropy" in signals.values


def test_minus_infinity_is_cut_off(tmp_path):
    def change(i, document):
        document["logprobs"][0] = -9999.0

    build(tmp_path / "s", n=6, change=change)
    with open_store(tmp_path / "s") as store:
        signals = read_signals(store.dataset(layer=2).examples, DETECTORS)
    assert (signals.values["min_logprob"] == -100).all()


@pytest.fixture
def answers(tmp_path):
    """A store's entries with these fields, oldest first; everything else is planted."""
    with ExitStack() as stack:

        def make(*documents):
            path = build(
                tmp_path / "s", n=len(documents), change=lambda i, d: d.update(documents[i])
            )
            return list(stack.enter_context(open_store(path)).entries())

        yield make


def test_token_entropy_by_hand(answers):
    top = {1: math.log(0.5), 2: math.log(0.25)}  # the last quarter was not logged
    certain = {1: 0.0, 2: -9999.0}
    wanted = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    one, two, *others = answers(
        {"top_logprobs": [top]},
        {"top_logprobs": [top, certain]},
        {"top_logprobs": [{1: -0.1}]},
        {"top_logprobs": None},
    )
    assert token_entropy(one) == pytest.approx(wanted)
    assert token_entropy(two) == pytest.approx(wanted / 2)
    for other in others:
        with pytest.raises(InputMissing, match="top_logprobs"):
            token_entropy(other)


def test_semantic_entropy_and_agreement_by_hand(answers):
    texts = ["Paris", "paris.", "The Paris", "Rome", "PARIS"]
    *entries, loud = answers(*({"response": text} for text in texts))
    samples = Samples(entries, layer=2)
    assert normalise_answer("The  Pâris!") == "paris"
    # Signs, and the letter of a choice that is an article, too.
    assert len({normalise_answer(text) for text in ("✓", "✗", "A", "B", "")}) == 5
    wanted = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert semantic_entropy(entries[0], samples) == pytest.approx(wanted)
    assert disagreement(loud, samples) == pytest.approx(0.25)
    assert disagreement(entries[3], samples) == pytest.approx(0.75)


def test_eigenscore_by_hand(answers):
    entries = answers({}, {}, {}, {})
    states = np.stack([entry.layer(2)[-1] for entry in entries])
    centred = states.astype(float) - states.mean(axis=1, keepdims=True, dtype=float)
    covariance = centred @ centred.T / (states.shape[1] - 1) + 1e-3 * np.eye(4)
    found = eigenscore(entries[0], Samples(entries, layer=2))
    assert found == pytest.approx(np.linalg.slogdet(covariance)[1] / 4)
    assert eigenscore(entries[0], Samples([entries[0]] * 4, layer=2)) < found
    with pytest.raises(InputMissing, match="layer 3 is not there for every sample"):
        eigenscore(entries[0], Samples(entries, layer=3))


def test_a_detector_says_what_it_reads():
    with pytest.raises(PluginError, match="of_answer must be given"):
        Detector("x", "X", "here", "answer")
    with pytest.raises(PluginError, match="of_samples would never be used"):
        Detector("x", "X", "here", "text", of_samples=eigenscore)


def test_the_module_that_was_divided_is_found_under_its_old_name():
    with pytest.warns(DeprecationWarning, match=r"is now .*detectors\.linear, .*distance"):
        old = importlib.import_module("activation_logging.detectors.probes")
    assert old.LinearProbe is LinearProbe
    assert old.MahalanobisDetector is MahalanobisDetector


def test_a_detector_has_one_name():
    DETECTORS.add("mine", Detector("yours", "X", "here", "state", saplma))
    try:
        with pytest.raises(PluginError, match="registered as 'mine' calls itself 'yours'"):
            load_detectors()
    finally:
        DETECTORS.remove("mine")
    assert [detector.name for detector in load_detectors()] == list(DETECTORS.names())


def test_samples_of_a_prompt_are_found(tmp_path):
    build(tmp_path / "s", n=6, samples=3)
    with open_store(tmp_path / "s") as store:
        examples = store.dataset(layer=2).examples
        signals = read_signals(examples, DETECTORS)
        assert len(examples) == 18
        assert len(set(examples.groups)) == 6
        for i, key in enumerate(examples.keys):
            samples = store.for_prompt(store[key].prompt)
            assert len(samples) == 3
            wanted = Samples(samples, layer=2)
            np.testing.assert_array_equal(
                wanted.states, np.stack([entry.layer(2)[-1] for entry in samples])
            )
            for name in ("semantic_entropy", "self_consistency", "eigenscore"):
                number = DETECTORS.get(name).of_samples(store[key], wanted)
                assert signals.values[name][i] == number


def test_what_a_time_out_cut_off_is_no_sample(tmp_path):
    """Each question was asked three times, and cut off once: the same words, and fewer."""

    def cut(i, document):
        if document["request_id"].endswith("-2"):
            document["finish_reason"] = "abort"
            document["response"] = document["response"][:5]

    def same(i, document):
        document["response"] = "Paris is it."
        cut(i, document)

    build(tmp_path / "s", n=6, samples=3, change=same)
    with open_store(tmp_path / "s") as store:
        examples = store.dataset(layer=2).examples
        signals = read_signals(examples, DETECTORS)
    assert not signals.values["semantic_entropy"].any()


@pytest.mark.parametrize("left", [20, 300])
def test_a_damaged_entry_is_no_sample(tmp_path, left):
    build(tmp_path / "s", n=6, samples=3)
    key = cut_off(tmp_path / "s", 1, left=left)
    with open_store(tmp_path / "s") as store:
        examples = store.dataset(layer=2, broken="skip").examples
        assert len(examples) == 17
        assert np.isfinite(read_signals(examples, DETECTORS).values["eigenscore"]).all()
        prompt = store[examples.keys[0]].prompt
        assert key in [entry.key for entry in store.for_prompt(prompt)]
        assert len(samples_to(store, prompt, planted.MODEL)) == 2


def test_single_answers_leave_the_sample_detectors_out(tmp_path):
    build(tmp_path / "s", n=6)
    with open_store(tmp_path / "s") as store:
        examples = store.dataset(layer=2).examples
        signals = read_signals(examples, DETECTORS)
    for name in ("semantic_entropy", "self_consistency", "eigenscore"):
        assert "6 of 6 prompts have one answer only" in signals.missing[name]
