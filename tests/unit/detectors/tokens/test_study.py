"""The study finds what was planted, and nothing where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from sklearn.metrics import roc_auc_score

from activation_logging.detectors.drift import Reference, compare
from activation_logging.detectors.tokens import TokenOptions, fit_token_probe, run_token_study
from activation_logging.detectors.tokens.cells import Split
from activation_logging.detectors.tokens.controls import _claim_text
from activation_logging.detectors.tokens.evaluation import Evaluator, Level
from activation_logging.detectors.tokens.results import LEVELS, Place
from activation_logging.detectors.tokens.transfer import transfers_between
from activation_logging.errors import DatasetError
from activation_logging.store import open_store
from activation_logging.strict_json import dumps
from tests.fixtures.claims import Claims, build_claims

OPTIONS = TokenOptions(draws=50, folds=3, strengths=(0.01, 0.1), mix=[0, 2])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build_claims(tmp_path_factory.mktemp("claims") / "store", Claims(n=160))


@pytest.fixture(scope="module")
def study(path):
    with open_store(path) as store:
        yield run_token_study(store, "profiles", OPTIONS)


def test_the_layer_that_knows_is_chosen(study):
    assert {place.layers for place in study.chosen} == {(2,)}
    assert study.place.layers == (2,)
    assert set(study.sweep) == {(layers, C) for layers in ((0,), (2,), (4,)) for C in (0.01, 0.1)}


def test_the_probe_finds_what_was_planted(study):
    for name in ("token_linear", "token_span_max", "token_mix"):
        levels = study.result(name).levels
        assert set(levels) == set(LEVELS)
        assert levels["span"].auroc.value > 0.95
        assert levels["span"].within_types.value > 0.95
        assert levels["span"].over_best_control.low > 0.1
        assert levels["span"].within_types_over_best_control.low > 0.1
        assert levels["span"].recall_at[0.1].value > 0.8
        # Of a year the second token knows, the first does not.
        assert levels["first"].auroc.value < levels["span"].auroc.value
    assert study.result("answer_multimax").levels["answer"].auroc.value > 0.8


def test_the_controls_know_what_they_can_know(study):
    types = study.result("claim_type").levels["span"]
    assert types.auroc.value > 0.55
    # Among claims of one type, the type says nothing.
    assert types.within_types.value == pytest.approx(0.5)
    assert types.over_best_control is None
    shuffled = study.result("shuffled").levels["span"].auroc
    assert shuffled.low < 0.5 < shuffled.high
    assert study.result("min_logprob").scores.span == pytest.approx([0.3, 0.5] * 160)
    assert study.result("mean_logprob").scores.span == pytest.approx([0.25, 0.5] * 160)
    assert study.result("first_logprob").scores.first == pytest.approx([0.2, 0.5] * 160)


def test_scores_of_claims_and_answers_are_maxima(study):
    tokens, row = study.tokens, study.result("token_linear")
    of_tokens, spans = row.scores.token, tokens.rows.span
    for span in (0, 1, 77):
        assert row.scores.span[span] == of_tokens[spans == span].max()
        assert row.scores.first[span] == of_tokens[spans == span][0]
    for answer in (0, 5):
        own = of_tokens[tokens.rows.answer == answer].max()
        assert row.scores.answer[answer] >= own - 1e-5
    y = study.wrong
    assert y.tolist() == [
        int(tokens.spans.y[tokens.spans.answer == answer].any()) for answer in range(160)
    ]


def test_no_answer_is_on_both_sides(study):
    spans, groups = study.tokens.spans, study.tokens.answer_groups
    for fold in study.folds:
        assert not {*groups[spans.answer[fold.train]]} & {*groups[spans.answer[fold.test]]}
        assert not {*groups[spans.answer[fold.fit]]} & {*groups[spans.answer[fold.validation]]}


def test_transfer(study):
    by_tag = {matrix.tag: matrix for matrix in study.transfers}
    assert set(by_tag) == {"type", "domain"}
    types = by_tag["type"]
    assert types.values == ["city", "year"]
    assert types.sources == ["city", "year", "all others"]
    # One direction is planted for all types.
    assert min(cell.value for row in types.auroc for cell in row) > 0.9
    assert types.auroc[2][0] == types.auroc[1][0]
    assert "benchmark" in study.left_out["Transfer by benchmark"]


def test_transfer_is_at_the_place_of_each_fold(study):
    split = Split.of(study.tokens, study.folds)
    evaluator = Evaluator(study.tokens, study.folds, OPTIONS.draws, OPTIONS.seed)

    def transfer(chosen):
        (found,), left_out = transfers_between(["type"], split, chosen, evaluator)
        assert not left_out
        return found.auroc

    assert transfer(study.chosen) == study.transfers[0].auroc
    # Layer 4 knows nothing: where one fold has it, its claims alone are told worse.
    blind = [Place((4,), study.place.C)]
    one = transfer([*blind, *study.chosen[1:]])[0][1].value
    every = transfer(blind * len(study.folds))[0][1].value
    assert study.transfers[0].auroc[0][1].value > one + 0.05 > every + 0.1


def test_as_json(study):
    found = json.loads(dumps(study.as_json()))
    assert found["counts"]["answers"] == 160
    by_name = {row["name"]: row for row in found["detectors"]}
    level = by_name["token_linear"]["levels"]["span"]
    assert level["auroc"]["value"] == study.result("token_linear").levels["span"].auroc.value
    assert set(level["recall_at"]) == {"0.01", "0.05", "0.1"}
    assert 0 < level["aurc"]["value"] < 1
    assert level["best_control"] in by_name


def test_the_same_seed_gives_the_same_numbers(path, study):
    with open_store(path) as store:
        again = run_token_study(store, "profiles", OPTIONS)
    for one, other in zip(study.results, again.results, strict=True):
        assert one.levels == other.levels, one.name


def test_a_saved_probe_says_what_the_study_said(tmp_path, path, study):
    from activation_logging.detectors.saved_probe import SavedProbe

    probe = fit_token_probe(study)
    probe.save(tmp_path / "claims")
    loaded = SavedProbe.load(tmp_path / "claims")
    assert (loaded.kind, loaded.form, loaded.sources) == ("token", "linear", (2,))
    assert (loaded.positive, loaded.negative) == ("contradicted", "supported")
    assert loaded.report["auroc"]["value"] == study.result("token_linear").levels["span"].auroc[0]
    assert {"claim_text", "prompt_only", "min_logprob"} <= loaded.report["controls"].keys()
    assert loaded.report["best_control"] in loaded.report["controls"]
    assert loaded.data["claims"] == 320
    assert len(loaded.operating_points) == 3
    with open_store(path) as store:
        entry = store[study.tokens.keys[0]]
        scores = loaded.score_rows(entry)
        of_first = study.tokens.spans.answer == 0
        places = entry.num_tokens[0] + study.tokens.spans.stop[of_first] - 1
        said = scores[places] > 0.5
        assert said.tolist() == study.tokens.spans.y[of_first].astype(bool).tolist()


@pytest.mark.parametrize("form", ["attention", "multimax"])
def test_a_saved_probe_of_answers(path, study, form):
    probe = fit_token_probe(study, form)
    assert (probe.kind, probe.form, probe.position) == ("answer", form, None)
    assert (probe.positive, probe.negative) == ("hallucinated", "correct")
    with open_store(path) as store:
        said = [probe.score(store[key]) for key in study.tokens.keys]
    assert roc_auc_score(study.wrong, said) > 0.8


@pytest.mark.parametrize("span_max", [False, True])
def test_a_saved_probe_knows_its_scores_of_answers(path, study, span_max):
    """Of answers that it was not fitted on, so they are less sure than those of all."""
    probe = fit_token_probe(study, span_max=span_max)
    spread = Reference.of_probe(probe)
    assert spread.number == len(study.tokens.keys)
    with open_store(path) as store:
        said = [probe.score(store[key]) for key in study.tokens.keys]
    assert compare(spread, said).ks < 0.25
    # The highest of an answer's tokens, not any of them.
    assert spread.at(0.5) > np.median(probe.probability(study.held_out))


def test_probes_of_the_maximum_are_saved_too(study):
    assert fit_token_probe(study, span_max=True).digest != fit_token_probe(study).digest


def test_probes_of_the_maximum_are_calibrated_by_probes_of_their_own_penalty(tmp_path):
    """Less of a penalty gives larger log-odds, so the calibration takes more off."""
    build_claims(tmp_path / "store", Claims(n=60))
    options = TokenOptions(draws=20, folds=2, strengths=(0.01,), layers=[2], answers=False, mix=[])
    with open_store(tmp_path / "store") as store:
        study = run_token_study(store, "profiles", replace(options, transfer_by=()))
        strong, weak = (replace(study, place=study.place._replace(C=C)) for C in (1e-4, 0.1))
        of_strong, of_weak = (fit_token_probe(one, span_max=True) for one in (strong, weak))
    assert of_strong.calibration.a > 2 * of_weak.calibration.a


@pytest.mark.parametrize("form", ["attention", "multimax"])
def test_probes_of_answers_are_calibrated_by_probes_of_their_own_layer(study, form):
    """Of a layer that knows nothing the log-odds mean nothing, whatever the folds chose."""
    knows = fit_token_probe(study, form)
    other = fit_token_probe(replace(study, place=study.place._replace(layers=(4,))), form)
    assert other.sources == (4,)
    assert other.calibration.a < knows.calibration.a / 3


@pytest.mark.parametrize("n", [60, 120])
def test_other_evaluators(tmp_path, n):
    path = tmp_path / "store"
    build_claims(path, Claims(n=n, name="others"))
    build_claims(path, Claims(n=60, prefix="more "))
    options = TokenOptions(
        draws=20, folds=3, strengths=(0.1,), layers=[2], answers=False, transfer_to=["others"]
    )
    with open_store(path) as store:
        if n == 60:
            # The prompts are the same, so nothing is left to fit on.
            with pytest.raises(DatasetError, match="same things"):
                run_token_study(store, "profiles", options)
        else:
            study = run_token_study(store, "others", replace(options, transfer_to=["profiles"]))
            assert study.to_labels["profiles"].value > 0.9
            assert {row.name for row in study.results}.isdisjoint({"answer_multimax"})
            with pytest.raises(DatasetError, match=r"no multimax probe .* the option answers"):
                fit_token_probe(study, "multimax")


def test_few_claims(tmp_path):
    build_claims(tmp_path / "store", Claims(n=15))
    with open_store(tmp_path / "store") as store, pytest.raises(DatasetError, match="only"):
        run_token_study(store, "profiles", OPTIONS)


def test_strengths(path):
    with open_store(path) as store, pytest.raises(DatasetError, match="strengths"):
        run_token_study(store, "profiles", TokenOptions(strengths=()))


def test_many_scores_share_steps(study):
    """More scores than steps give nearly the AUROC of all."""
    rng = np.random.default_rng(0)
    n = 20_000
    y = rng.integers(0, 2, n)
    score = y + rng.normal(size=n)
    groups = rng.integers(0, 160, n)
    level = Level(y, rng.random(n), groups, [np.arange(n)])
    evaluator = Evaluator(study.tokens, study.folds, 5, 0)
    result, values, _ = evaluator._level(level, [score])
    assert values[0] == pytest.approx(roc_auc_score(y, score, sample_weight=level.weight), abs=1e-4)
    assert result.within_types is None


def test_too_few_right_answers_leave_out_every_row_of_answers(tmp_path):
    path = build_claims(tmp_path / "store", Claims(n=100, wrong=(0.8, 0.8)))
    options = TokenOptions(draws=20, folds=3, strengths=(0.1,), layers=[2], transfer_by=())
    with open_store(path) as store:
        study = run_token_study(store, "profiles", options)
    assert "too few answers" in study.left_out["Whole answers"]
    assert {row.name for row in study.results} >= {"claim_text", "prompt_only", "min_logprob"}
    for row in study.results:
        assert set(row.levels) <= {"token", "span", "first"}, row.name


def test_claims_that_each_are_a_type_of_their_own_have_nothing_to_compare(study):
    n = 300
    rng = np.random.default_rng(0)
    y, parts = np.arange(n) % 2, [np.arange(0, n, 2), np.arange(1, n, 2)]
    evaluator = Evaluator(study.tokens, study.folds, 5, 0)
    score, groups = rng.normal(size=n), rng.integers(0, 160, n)
    level = Level(y, np.ones(n), groups, [np.arange(n)], np.arange(n).astype(str))
    assert level.by_type() == []
    assert evaluator._level(level, [score])[0].within_types is None
    # Of three types in two parts, one is always of one class.
    types = np.where(np.arange(n) < 200, np.where(np.arange(n) % 4 < 2, "a", "b"), "c")
    y = np.where(types == "c", 1, np.arange(n) // 4 % 2)
    found = replace(level, y=y, parts=parts, types=types).by_type()
    assert [set(types[inside]) for inside in found] == [{"a"}, {"b"}, {"a"}, {"b"}]
    assert sorted(np.concatenate(found)) == list(range(200))


def test_risk_against_coverage_of_claims(study):
    y = np.array([0, 1, 0, 1, 1, 0])
    score = np.array([0.1, 0.2, 0.2, 0.5, 0.9, 0.9])
    evaluator = Evaluator(study.tokens, study.folds, 5, 0)
    level = Level(y, np.ones(6), np.arange(6), [np.arange(6)])
    # Kept are 1, then 3 (two are equal), 4, and all 6.
    wanted = (0 + 2 * 1 / 3 + 2 / 4 + 2 * 3 / 6) / 6
    assert evaluator._level(level, [score])[0].aurc.value == pytest.approx(wanted)


def test_the_text_control_reads_claims_that_begin_their_answers():
    texts = np.array(
        [("Where?", "", f"in {'Rome' if i % 2 else 'Oslo'}") for i in range(40)], object
    )
    fitted = _claim_text().fit(texts, np.arange(40) % 2)
    assert (fitted.predict(texts) == np.arange(40) % 2).all()
