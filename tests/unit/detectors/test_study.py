"""The whole study on stores whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.detectors import DETECTORS, Options, run_study
from activation_logging.detectors.splits import make_trial
from activation_logging.detectors.sweep import Cell
from activation_logging.errors import DatasetError
from tests.fixtures.planted import Planted, build


def study(path, **options):
    with open_store(path) as store:
        return run_study(store, "facts", Options(draws=200, **options))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    path = build(tmp_path_factory.mktemp("p") / "s", n=200, signal=12.0, dtype="bfloat16")
    return path, study(path)


def test_a_planted_signal_is_found_where_it_is(planted):
    _, found = planted
    assert found.result("linear_probe").auroc.value == pytest.approx(1.0, abs=1e-3)
    assert found.place.layer == 2
    assert {cell.layer for cell in found.chosen} == {2}
    for cell, auroc in found.cells.items():
        if cell.layer == 2 and cell.position != "prompt_last":
            assert auroc.value > 0.97
        else:
            # Other layers, and the state before the answer, know nothing.
            assert auroc.low <= 0.6
            assert auroc.high >= 0.4


@pytest.mark.parametrize(
    "name", ["mass_mean", "mass_mean_whitened", "saplma", "mahalanobis", "nearest_neighbours"]
)
def test_every_detector_of_states_finds_it(planted, name):
    assert planted[1].result(name).auroc.value > 0.95


def test_the_rows_are_the_registered_detectors_in_their_order(planted):
    found = planted[1]
    rows = [result.name for result in found.results]
    assert rows == [name for name in DETECTORS.names() if name in rows]
    missing = {DETECTORS.get(name).title for name in DETECTORS.names() if name not in rows}
    assert missing == set(found.detectors_left_out)
    for result in found.results:
        detector = DETECTORS.get(result.name)
        assert (result.role, result.in_curves) == (detector.role, detector.in_curves)
        # Compared with the words alone are all but the words alone.
        assert (result.over_text is None) == detector.baseline


def test_the_linear_probe_has_the_scores_of_the_sweep(planted):
    found = planted[1]
    last = found.result("linear_probe_last")
    assert (last.layer, last.position) == ("4", "response_last")
    sweep = found.cell_scores[Cell(4, "response_last")]
    np.testing.assert_array_equal(last.scores.probability, sweep.probability)
    before = found.result("linear_probe_before")
    assert before.position == "prompt_last"
    best = found.result("linear_probe").scores.probability
    for fold, cell in zip(found.folds, found.chosen, strict=True):
        own = found.cell_scores[cell].probability
        np.testing.assert_array_equal(best[fold.test], own[fold.test])


def test_without_the_last_layer_its_row_is_absent(tmp_path):
    found = study(build(tmp_path / "s", n=80), layers=[2], positions=["response_last"])
    names = {result.name for result in found.results}
    assert "linear_probe" in names
    assert not {"linear_probe_last", "linear_probe_before"} & names


def test_two_folds_of_few_answers(tmp_path):
    """A training part may hold fewer answers than a batch or the neighbours asked for."""
    found = study(build(tmp_path / "s", n=40, signal=12.0), layers=[2], folds=2)
    assert min(len(fold.fit) for fold in found.folds) < 20
    for name in ("nearest_neighbours", "saplma"):
        assert np.isfinite(found.result(name).scores.probability).all()


def test_noise_gives_one_half_within_its_interval(tmp_path):
    """Labels drawn by lot: nothing may tell them apart, in text or in states."""
    lot = np.random.default_rng(5).permutation(240) < 120
    label_of = lambda i: "hallucinated" if lot[i] else "correct"  # noqa: E731
    path = build(tmp_path / "s", Planted(n=240, signal=0.0, label_of=label_of))
    found = study(path)
    for name in ("linear_probe", "linear_probe_last", "mass_mean", "saplma", "mean_logprob"):
        auroc = found.result(name).auroc
        assert auroc.low <= 0.5 <= auroc.high, (name, auroc)


def test_shuffled_labels_give_one_half(tmp_path):
    """The planted store again, with each label given to another answer."""
    lot = np.random.default_rng(8).permutation(200)
    path = build(
        tmp_path / "s",
        Planted(n=200, signal=12.0, label_of=lambda i: "hallucinated" if i % 2 else "correct"),
    )
    with open_store(path, writable=True) as store:
        keys = list(store)
        for key, other in zip(keys, lot, strict=True):
            store.put_evaluation(
                key, name="facts", label="correct" if other % 2 else "hallucinated"
            )
    auroc = study(path).result("linear_probe").auroc
    assert auroc.low <= 0.5 <= auroc.high


def test_the_probe_beats_every_control_and_its_floor(planted):
    found = planted[1]
    trust, probe = found.trust, found.result("linear_probe")
    named = {result.name for result in found.results if result.control}
    assert set(trust.controls) == named >= {"text_only", "prompt_only", "length", "mean_logprob"}
    best = max(named, key=lambda name: found.result(name).auroc.value)
    assert trust.best_control == best
    assert found.result(best).over_best_control is None
    gap = probe.auroc.value - found.result(best).auroc.value
    assert probe.over_best_control.value == pytest.approx(gap)
    assert probe.over_best_control.low > 0
    assert trust.prompt_control == "prompt_only"
    before = [result.name for result in found.results if result.before_answer]
    assert before == ["linear_probe_before", "prompt_only"]
    assert found.result("linear_probe_before").over_prompt is not None
    assert probe.over_prompt is None
    assert trust.shuffled.auroc.low < 0.5 < trust.shuffled.auroc.high < probe.auroc.low
    assert probe.recall_at[0.1].value > 0.95
    assert probe.risk_coverage.risk[0] == 0
    assert probe.risk_coverage.risk[-1] == pytest.approx(found.examples.y.mean())
    assert trust.learning_curves["linear_probe"][-1].auroc == probe.auroc
    assert set(trust.learning_curves) == {"linear_probe", best}
    assert all(promise.is_kept for promise in trust.promises)


def test_a_domain_is_held_out_of_the_whole_study(planted):
    found = study(planted[0], folds_by="tag:domain", layers=[2], positions=["response_last"])
    assert [fold.held_out for fold in found.folds] == [("a",), ("b",)]
    assert found.result("linear_probe").auroc.value > 0.97
    assert "the folds hold out by tag:domain" in found.transfer_left_out


def test_the_same_seed_gives_the_same_numbers(planted):
    path, first = planted
    second = study(path)
    assert first.cells == second.cells
    assert first.trust == second.trust
    for one, other in zip(first.results, second.results, strict=True):
        assert one.name == other.name
        assert one.auroc == other.auroc
        assert one.accuracy == other.accuracy
        np.testing.assert_array_equal(one.scores.probability, other.scores.probability)


def test_every_answer_is_scored_once_by_a_model_that_has_not_seen_its_group(planted):
    _, found = planted
    tests = np.concatenate([fold.test for fold in found.folds])
    assert sorted(tests) == list(range(len(found.examples)))
    for result in found.results:
        assert np.isfinite(result.scores.probability).all()
    for fold in found.folds:
        groups = found.examples.groups
        assert not set(groups[fold.train]) & set(groups[fold.test])


def test_positions_and_detectors_without_input_are_left_out_by_name(tmp_path):
    found = study(build(tmp_path / "s", n=80, logprobs=False, response_tokens=False))
    assert "not logged" in found.positions_left_out["answer_span"]
    assert "no log-probabilities" in found.detectors_left_out["Mean log-probability"]
    assert "one answer only" in found.detectors_left_out["EigenScore"]
    assert Cell(4, "response_last") in found.cells


def test_samples_bring_their_detectors(tmp_path):
    found = study(build(tmp_path / "s", n=80, samples=3), layers=[2], positions=["response_last"])
    assert {"semantic_entropy", "self_consistency", "eigenscore"} <= {r.name for r in found.results}


def test_transfer_between_the_values_of_a_tag(planted):
    transfer = planted[1].transfer
    assert transfer.tag == "domain"
    assert transfer.values == ["a", "b"]
    assert all(cell.value > 0.95 for row in transfer.auroc for cell in row)
    assert transfer.shared == [[0, 0], [0, 0]]


def test_a_probe_that_is_transferred_reads_where_its_own_answers_say(tmp_path):
    def swap(i, rows):
        if (i // 2) % 2:
            rows[2], rows[4] = rows[4], rows[2]

    found = study(build(tmp_path / "s", n=160, change_rows=swap), positions=["response_last"])
    assert found.transfer.values == ["a", "b"]
    assert [place.layer for place in found.transfer.places] == [2, 4]
    # What the one kind knows is in a layer of which the other has nothing.
    assert abs(found.transfer.auroc[0][1].value - 0.5) < 0.2
    (cuts,) = {promise.splits for promise in found.trust.promises}
    assert cuts == 10


def test_a_trial_of_too_little_is_none():
    y, groups = np.arange(40) % 2, np.arange(40).astype(str)
    rows = np.arange(40)
    trial = make_trial(y, groups, rows)
    assert sorted([*trial.fit, *trial.validation]) == rows.tolist()
    assert len(trial.validation) == 10
    assert make_trial(y, groups, rows[::2]) is None  # one class
    assert make_trial(y, np.repeat(["a", "b"], 20), rows) is None


def test_transfer_leaves_out_what_both_kinds_are_about(tmp_path):
    tags_of = lambda i: {"domain": "ab"[(i // 2) % 2], "entity": f"e{i // 4}"}  # noqa: E731
    found = study(build(tmp_path / "s", n=200, tags_of=tags_of), layers=[2])
    # Every entity is in both domains: nothing is left to fit on.
    assert found.transfer.shared == [[0, 100], [100, 0]]
    assert np.isnan(found.transfer.auroc[0][1].value)
    assert found.transfer.auroc[0][0].value > 0.95


def test_what_the_test_part_is_about_has_no_say_in_the_place(tmp_path):
    """Layer 4 knows of the things that both kinds are about, and layer 2 of the fewer others."""

    def tags(i):
        kind, number = "ab"[i % 4 // 2], i // 4
        return {"entity": f"{number}" if number < 50 else f"{kind} {number}", "domain": kind}

    def change_rows(i, rows):
        rows[4 if i // 4 < 50 else 2][:, 0] += 5.0 if i % 2 else -5.0

    path = build(tmp_path / "s", n=320, signal=0.0, tags_of=tags, change_rows=change_rows)
    options = Options(draws=100, folds=3, positions=["response_last"], transfer_by="domain")
    with open_store(path) as store:
        transfer = run_study(store, "facts", options).transfer
    assert transfer.shared[0][1] == 100
    assert transfer.places[0].layer == 4
    # Fitted on what layer 2 knows, it is read there.
    assert transfer.auroc[0][1].value > 0.62


def test_no_tag_to_transfer_between_is_said(tmp_path):
    found = study(build(tmp_path / "s", n=80, tags_of=lambda i: {}), layers=[2])
    assert found.transfer is None
    assert "no tag has two values" in found.transfer_left_out


def test_fewer_than_twenty_are_refused(tmp_path):
    path = build(tmp_path / "s", n=60, label_of=lambda i: "correct" if i > 18 else "hallucinated")
    with pytest.raises(DatasetError, match="only 19 answers are hallucinated"):
        study(path)


def test_short_answers_are_left_out_and_counted(tmp_path):
    def change(i, document):
        if i == 0:
            document.update(response_token_ids=[1], response="x", response_tokens=["x"])
            document.update(logprobs=[-1.0], top_logprobs=[{1: -1.0, 2: -2.0}])

    found = study(build(tmp_path / "s", n=80, change=change), layers=[2])
    assert len(found.examples) == 79
    assert found.examples.left_out == {"without a state at every position": 1}
