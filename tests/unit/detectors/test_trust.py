"""Controls, shuffled labels, promises and learning curves, on scores whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from sklearn.linear_model import LogisticRegression

from activation_logging.dataset.templates import template_of
from activation_logging.detectors import DETECTORS
from activation_logging.detectors.conformal import (
    ALPHAS,
    calibration_cuts,
    conformal_promises,
    conformal_threshold,
)
from activation_logging.detectors.held_out import same_lengths
from activation_logging.detectors.learning_curve import SHARES, learning_curve
from activation_logging.detectors.metrics import Bootstrap
from activation_logging.detectors.refit import Refit
from activation_logging.detectors.results import Fitted
from activation_logging.detectors.shuffled import shuffle_labels, shuffled_labels
from activation_logging.detectors.splits import make_folds
from activation_logging.detectors.sweep import Cell, Scores
from activation_logging.errors import PluginError


def answers(n=600, signal=1.5, size=2, seed=0):
    """Answers, two about each thing, with one feature that tells their class a little."""
    rng = np.random.default_rng(seed)
    groups = np.array([f"thing {i // size}" for i in range(n)])
    y = rng.integers(0, 2, n)
    X = (signal * y + rng.normal(size=n))[:, None]
    kinds = [{"domain": "ab"[i // size % 2]} for i in range(n)]
    examples = SimpleNamespace(y=y, groups=groups, tags=kinds)
    folds = make_folds(y, groups, seed=seed)
    refit = Refit(LogisticRegression, [X] * 2 * len(folds))
    return examples, refit, folds, Bootstrap(groups, draws=200, seed=seed)


@pytest.mark.parametrize(
    ("name", "positions", "before"),
    [
        ("linear_probe", ["prompt_last", "prompt_last"], True),
        ("linear_probe", ["prompt_last", "response_last"], False),
        ("stacked", ["prompt_last"], False),  # it reads the answer's log-probability besides
        ("prompt_only", [], True),
        ("text_only", [], False),
        ("mean_logprob", [], False),
    ],
)
def test_before_the_answer_is_what_reads_nothing_of_it(name, positions, before):
    cells = [Cell(4, position) for position in positions]
    assert Fitted(DETECTORS.get(name), cells, Scores(np.zeros(2))).is_before_answer == before


def test_log_probabilities_are_controls_and_probes_are_not():
    named = {detector.name for detector in DETECTORS if detector.control}
    assert named >= {"text_only", "prompt_only", "length", "mean_logprob", "answer_logprob"}
    assert not named & {"linear_probe", "stacked", "saplma"}
    with pytest.raises(PluginError, match="cannot be a control"):
        replace(DETECTORS.get("saplma"), control=True)


def test_the_threshold_of_single_answers_is_split_conformals_quantile():
    rng = np.random.default_rng(0)
    for n, alpha in ((9, 0.1), (50, 0.1), (200, 0.05), (37, 0.2)):
        scores = rng.normal(size=n)
        groups = np.arange(n).astype(str)
        rank = int(np.ceil((n + 1) * (1 - alpha) - 1e-9))
        wanted = np.sort(scores)[rank - 1]
        assert conformal_threshold(scores, groups, alpha) == wanted
    assert conformal_threshold(rng.normal(size=8), np.arange(8).astype(str), 0.1) == np.inf


def test_the_threshold_is_the_lowest_whose_risk_over_groups_is_allowed():
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=300), 1)  # with ties
    groups = np.array([f"g{i}" for i in rng.integers(0, 60, 300)])
    names = np.unique(groups)

    def risk(threshold):
        return np.mean([(scores[groups == name] > threshold).mean() for name in names])

    found = conformal_threshold(scores, groups, 0.1)
    number = len(names)
    fitting = [t for t in np.unique(scores) if (number * risk(t) + 1) / (number + 1) <= 0.1]
    assert found == min(fitting)


def test_promises_are_kept_on_average_over_new_groups():
    """Many draws of calibration and new groups: the mean share is at most what was promised."""
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(400):
        own = rng.normal(size=80)  # answers about one thing are alike
        scores = np.repeat(own, 3) + 0.1 * rng.normal(size=240)
        groups = np.repeat(np.arange(80), 3).astype(str)
        seen, new = slice(0, 120), slice(120, 240)
        threshold = conformal_threshold(scores[seen], groups[seen], 0.2)
        shares.append((scores[new] > threshold).mean())
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= 0.2 + 3 * error
    assert np.mean(shares) >= 0.2 - 1 / 41 - 3 * error


def test_the_promises_of_a_study_are_kept_and_say_what_they_cost():
    examples, refit, folds, bootstrap = answers()
    cuts = calibration_cuts(examples, folds)
    found = conformal_promises(examples, refit, cuts, folds, bootstrap)
    assert [(one.mistake, one.alpha) for one in found] == [
        (mistake, alpha) for mistake in ("flagged", "missed") for alpha in ALPHAS
    ]
    for one in found:
        assert one.is_kept
        assert one.share.value == pytest.approx(one.alpha, abs=0.05)
        assert (one.splits, one.without_threshold) == (10, 0)
    for mistake in ("flagged", "missed"):
        told = [one.told.value for one in found if one.mistake == mistake]
        assert told == sorted(told)
        assert told[-1] > 0.5


def test_what_thresholds_are_calibrated_on_has_no_say_in_the_place():
    examples, _, folds, _ = answers()
    cuts = calibration_cuts(examples, folds)
    assert len(cuts) == 2 * len(folds)
    for cut in cuts:
        fold = folds[cut.fold]
        assert sorted([*cut.fit, *cut.calibration]) == sorted(fold.train)
        assert sorted([*cut.trial.fit, *cut.trial.validation]) == sorted(cut.fit)
        sides = [cut.trial.fit, cut.trial.validation, cut.calibration, fold.test]
        of_side = [set(examples.groups[side]) for side in sides]
        assert len(set.union(*of_side)) == sum(map(len, of_side))


def test_a_promise_to_other_groups_than_those_it_was_calibrated_on_is_broken():
    examples, refit, folds, bootstrap = answers()
    # The test side of every fold scores higher, whatever its class.
    cuts = calibration_cuts(examples, folds)
    moved = [X.copy() for X in refit.features]
    for X, cut in zip(moved, cuts, strict=True):
        X[folds[cut.fold].test] += 3
    found = conformal_promises(examples, replace(refit, features=moved), cuts, folds, bootstrap)
    assert not any(one.is_kept for one in found if one.mistake == "flagged")


def test_too_few_groups_for_a_promise_are_counted():
    examples, refit, folds, bootstrap = answers(n=80)
    cuts = calibration_cuts(examples, folds)
    tight = conformal_promises(examples, refit, cuts, folds, bootstrap)[0]
    assert tight.groups < 1 / tight.alpha - 1
    assert tight.without_threshold > 0


def test_without_a_cut_there_is_no_promise():
    """Of nothing tested it was said that the promise is not kept."""
    examples, refit, folds, bootstrap = answers(n=120)
    assert conformal_promises(examples, refit, [], folds, bootstrap) == []


def test_shuffled_labels_stay_within_their_kind_and_together_in_their_group():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), rng.integers(1, 4, 100)).astype(str)
    kinds = np.array([f"kind {int(name) % 3}" for name in groups])
    # Answers about one thing have one label, and kinds differ in how often it is 1.
    y = np.array([int(int(name) % 10 < 3 * (int(name) % 3)) for name in groups])
    shuffled = shuffle_labels(y, groups, kinds, np.random.default_rng(1))
    assert (shuffled != y).any()
    for kind in np.unique(kinds):
        assert shuffled[kinds == kind].sum() == y[kinds == kind].sum()
    for name in np.unique(groups):
        assert len(np.unique(shuffled[groups == name])) == 1


def test_shuffled_pairs_change_within_the_pair():
    groups = np.array([f"pair {i // 2}" for i in range(200)])
    y = np.arange(200) % 2
    shuffled = shuffle_labels(y, groups, np.full(200, "k"), np.random.default_rng(0))
    assert (shuffled.reshape(-1, 2).sum(axis=1) == 1).all()
    assert 50 < (shuffled != y).sum() < 150


def test_the_floor_is_one_half_unless_the_kind_gives_labels_away():
    examples, refit, folds, bootstrap = answers(n=400)
    floor = shuffled_labels(examples, refit, folds, bootstrap)
    assert floor.auroc.low < 0.5 < floor.auroc.high
    assert (floor.shuffles, floor.kinds) == (5, 2)
    assert floor.changed == pytest.approx(0.5, abs=0.07)
    # Two answers of three in kind a are wrong, and one of three in kind b, and that is all to know.
    kind = np.array([own["domain"] == "a" for own in examples.tags])
    examples.y = (np.random.default_rng(3).random(400) < np.where(kind, 0.8, 0.2)).astype(int)
    refit = replace(refit, features=[kind[:, None].astype(float)] * len(folds))
    floor = shuffled_labels(examples, refit, folds, bootstrap)
    assert floor.auroc.low > 0.7


def test_the_learning_curve_grows_and_ends_at_the_whole():
    examples, refit, folds, bootstrap = answers(n=600, signal=0.0)
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(600, 30))
    wide[:, 0] += 2 * examples.y
    refit = replace(refit, features=[wide] * len(folds))
    points = learning_curve(examples, refit, folds, bootstrap)
    assert [point.groups for point in points] == [round(share * 240) for share in SHARES]
    aurocs = [point.auroc.value for point in points]
    assert aurocs[-1] > aurocs[0] + 0.05
    whole = refit.held_out(examples.y, folds)
    for fold in folds:
        model = LogisticRegression().fit(wide[fold.train], examples.y[fold.train])
        np.testing.assert_array_equal(whole[fold.test], model.predict_proba(wide[fold.test])[:, 1])
    assert points == learning_curve(examples, refit, folds, bootstrap)


def test_matched_classes_have_the_same_lengths():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1000)
    lengths = np.where(y == 1, rng.integers(5, 60, 1000), rng.integers(20, 200, 1000))
    rows = same_lengths(y, lengths, seed=0)
    assert len(rows) == len(set(rows.tolist())) > 150
    assert y[rows].sum() * 2 == len(rows)
    one, other = (np.sort(lengths[rows][y[rows] == value]) for value in (0, 1))
    assert (np.maximum(one, other) <= 1.11 * np.minimum(one, other) + 1e-9).all()
    assert (same_lengths(y, lengths, seed=0) == rows).all()
    assert len(same_lengths(y, np.where(y == 1, 5, 6), seed=0)) == 0


@pytest.mark.parametrize(
    ("question", "tags", "wanted"),
    [
        ("Who was Ada Lovelace?", {"entity": "Ada Lovelace"}, "Who was {}?"),
        ("What is the capital of the Gambia?", {"entity": "Gambia"}, "What is the capital of {}?"),
        ("Which element has the symbol In?", {"entity": "In"}, "Which element has the symbol {}?"),
        ("Is C in carbon?", {"entity": "C"}, "Is {} in carbon?"),
        ("What is iron?", {"entity": "Iron"}, "What is {}?"),
        ("What is it?", {"entity": "Iron", "name": "it"}, "What is {}?"),
        ("What is it?", {"entity": "Iron"}, None),
        ("Anything?", {"template": "any", "entity": "Iron"}, "any"),
        ("a+b?", {"entity": "a+b"}, "{}?"),
        ("Who?", {}, None),
    ],
)
def test_the_template_is_the_question_without_the_name(question, tags, wanted):
    assert template_of(question, tags) == wanted
