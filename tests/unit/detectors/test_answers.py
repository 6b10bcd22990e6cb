"""Detectors of answers beyond the state and the whole text, each against a computation by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from activation_logging import open_store
from activation_logging.dataset.examples import select_examples
from activation_logging.detectors import DETECTORS, Detector, Options, run_study
from activation_logging.detectors.entropy_probe import SemanticEntropyProbe, best_split
from activation_logging.detectors.follow_ups import (
    FollowUps,
    Subject,
    grouping,
    probability_of_true,
    tags_of,
    text_digest,
)
from activation_logging.detectors.heads import POSITION, best_heads, heads_of
from activation_logging.detectors.inputs import read_signals
from activation_logging.detectors.linear import LinearProbe
from activation_logging.detectors.registry import load_detectors
from activation_logging.detectors.samples import (
    Samples,
    meaning,
    semantic_entropy,
    semantic_entropy_asked,
)
from activation_logging.detectors.splits import make_folds
from activation_logging.detectors.stacked import StackedProbe
from activation_logging.detectors.sweep import Cell, Task, fit_sweep
from activation_logging.errors import InputMissing, PluginError
from activation_logging.sites import Site
from activation_logging.store import StoreWriter
from tests.fixtures.answers import put_answer
from tests.fixtures.planted import MODEL, build

TRUE, FALSE = [7, 8], [9]


def judge(path, name="facts"):
    """Say of every answer which characters it is: its last word."""
    with open_store(path, writable=True) as store:
        for entry in list(store.entries()):
            said = entry.response.rstrip(".").rpartition(" ")[2]
            start = entry.response.rindex(said)
            details = {"answer_start": start, "answer_end": start + len(said), "value": said}
            label = entry.evaluations[name].label
            store.put_evaluation(entry.key, name=name, label=label, details=details)


def follow(path, kind, pairs, model=MODEL, **altered):
    """Log follow-up questions: the entries that each is about, and P(True), which may be None."""
    writer = StoreWriter(path, role="test")
    for number, (entries, p) in enumerate(pairs):
        shares = {} if p is None else {7: 0.4 * p, 8: 0.1 * p, 9: 0.5 * (1 - p)}
        top = {token: math.log(share) for token, share in {1: 0.3, **shares}.items() if share}
        tags = tags_of(kind, entries, TRUE, FALSE) | altered
        name = f"{kind}-{number}-{model}"
        fields = {"tags": tags, "top_logprobs": [top], "model": model, "response_ids": [7]}
        put_answer(writer, name, prompt=f"Is it right? {name}", response="True", **fields)
    writer.close()


# --- the answer's own tokens ----------------------------------------------------------


def test_signals_of_the_answers_own_tokens_by_hand(tmp_path):
    judge(build(tmp_path / "s", n=6))
    with open_store(tmp_path / "s") as store:
        examples = select_examples(store)
        signals = read_signals(examples, DETECTORS)
        for row, key in enumerate(examples.keys):
            entry = store[key]
            # The planted answers end with the word, a full stop, and the end of turn.
            own = len(entry.response_token_ids) - 3
            assert entry.response_tokens[own].strip() in entry.response
            assert signals.values["answer_logprob"][row] == entry.logprobs[own]
            assert signals.values["answer_min_logprob"][row] == entry.logprobs[own]
            p = math.exp(entry.logprobs[own])
            outcomes = [p, p / math.e]
            rest = 1 - sum(outcomes)
            if rest > 0:
                outcomes.append(rest)
            wanted = -sum(x * math.log(x) for x in outcomes)
            assert signals.values["answer_entropy"][row] == pytest.approx(wanted)


def test_several_tokens_are_averaged(tmp_path):
    def change(i, document):
        document.update(logprobs=[-1.0, -2.0, -4.0, None, -9999.0], top_logprobs=None)

    names = ("answer_logprob", "answer_min_logprob", "answer_entropy")
    mean, least, entropy = (DETECTORS.get(name).of_given for name in names)
    with open_store(build(tmp_path / "s", n=1, change=change)) as store:
        (entry,) = store.entries()
        assert [f(entry, np.array([1, 2])) for f in (mean, least)] == [-3.0, -4.0]
        assert [f(entry, np.array([2, 3, 4])) for f in (mean, least)] == [-52.0, -100.0]
        for tokens in ([3], [7]):
            with pytest.raises(InputMissing, match="no log-probabilities of the tokens"):
                mean(entry, np.array(tokens))
        with pytest.raises(InputMissing, match="top_logprobs"):
            entropy(entry, np.array([0]))


def test_labels_that_do_not_say_where_the_answer_is(tmp_path):
    build(tmp_path / "s", n=6)
    with open_store(tmp_path / "s") as store:
        missing = read_signals(select_examples(store), DETECTORS).missing["answer_logprob"]
    assert missing.startswith("6 of 6 answers have no word by the judge on where")
    assert "--do_eval --eval_overwrite" in missing


def test_answer_span_is_there_for_wrong_answers(tmp_path):
    judge(build(tmp_path / "s", n=80))
    with open_store(tmp_path / "s") as store:
        examples = select_examples(store)
        assert all(place.judged for place in examples.places)
        study = run_study(store, options=Options(positions=["answer_span"], draws=100))
    assert study.result("answer_logprob").position == ""
    assert Cell(2, "answer_span") in study.cells
    assert study.cells[2, "answer_span"].value > 0.9


# --- P(true) --------------------------------------------------------------------------


def test_p_true_by_hand(tmp_path):
    path = build(tmp_path / "s", n=6)
    wanted = [0.9, 0.8, 0.5, 0.3, 0.2, 0.0]
    with open_store(path) as store:
        answers = list(store.entries())
    follow(path, "p_true", [([entry], p) for entry, p in zip(answers, wanted, strict=True)])
    with open_store(path) as store:
        # A question about an answer is no answer: it has no label.
        examples = select_examples(store)
        assert len(examples) == 6
        signals = read_signals(examples, load_detectors())
    np.testing.assert_allclose(signals.values["p_true"], wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nothing", "1 of 6 answers have no follow-up question; ask for it: activation-logging"),
        ("another model", "1 of 6 answers have no follow-up question"),
        ("another text", "1 of 6 answers have no follow-up question"),
        ("neither word", "1 of 6 answers have no True or False among the likeliest"),
    ],
)
def test_missing_follow_ups_are_named(tmp_path, change, says):
    path = build(tmp_path / "s", n=6)
    with open_store(path) as store:
        *answers, last = store.entries()
    follow(path, "p_true", [([entry], 0.5) for entry in answers])
    if change == "another model":
        follow(path, "p_true", [([last], 0.5)], model="org/other")
    elif change == "neither word":
        follow(path, "p_true", [([last], None)])
    elif change == "another text":
        follow(path, "p_true", [([last], 0.5)], digests=text_digest("What it once said."))
    with open_store(path) as store:
        assert says in read_signals(select_examples(store), DETECTORS).missing["p_true"]


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"true": "[7]"},
        {"true": "seven", "false": "[9]"},
        {"true": "7", "false": "[9]"},
        {"true": "[" * 5000, "false": "[9]"},
        {"true": "[Infinity]", "false": "[9]"},
    ],
)
def test_a_follow_up_whose_tags_are_not_ours(tmp_path, tags):
    path = build(tmp_path / "s", n=1, change=lambda i, d: d.update(tags=tags))
    with open_store(path) as store:
        (entry,) = store.entries()
        assert probability_of_true(entry) is None


def test_the_last_reply_counts(tmp_path):
    path = build(tmp_path / "s", n=1)
    with open_store(path) as store:
        (answer,) = store.entries()
    follow(path, "p_true", [([answer], 0.2), ([answer], 0.7)])
    with open_store(path) as store:
        found = FollowUps(store)
        assert found.probability("p_true", Subject.of(answer), MODEL) == pytest.approx(0.7)
        assert not found.asked("p_true", Subject.of(answer), "org/other")
        assert not found.asked("entails", Subject.of(answer))


# --- semantic entropy -----------------------------------------------------------------


def test_meanings_are_the_judges_values(tmp_path):
    path = build(tmp_path / "s", n=1, samples=4)
    said = [("correct", "lagos"), ("correct", "lagos"), ("hallucinated", "rome"), ("refused", None)]
    with open_store(path, writable=True) as store:
        for entry, (label, value) in zip(list(store.entries()), said, strict=True):
            details = {"answer_start": 0, "answer_end": 2, "value": value} if value else {}
            store.put_evaluation(entry.key, name="facts", label=label, details=details)
        entries = list(store.entries())
        samples = Samples(entries, layer=2, label="facts")
        assert samples.meanings == ["lagos", "lagos", "rome", "refused"]
        wanted = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
        assert semantic_entropy(entries[0], samples) == pytest.approx(wanted)
        # Without a judge it is the text, and all four differ.
        assert semantic_entropy(entries[0], Samples(entries, layer=2)) == pytest.approx(math.log(4))
        # Without a value it is the words at the judged place.
        store.put_evaluation(
            entries[0].key,
            name="own",
            label="correct",
            details={"answer_start": 4, "answer_end": 8},
        )
        assert meaning(store[entries[0].key], "own") == entries[0].response[4:8] == "city"
        # A number keeps its sign.
        store.put_evaluation(
            entries[0].key,
            name="degrees",
            label="correct",
            details={"answer_start": 4, "answer_end": 8, "value": -40},
        )
        assert meaning(store[entries[0].key], "degrees") == "-40"


def test_grouping_compares_with_the_first_of_each_group():
    same = {(0, 2), (1, 3)}
    steps, asked = grouping(4), []
    pair = next(steps)
    with pytest.raises(StopIteration) as end:
        while True:
            asked.append(pair)
            pair = steps.send(pair in same)
    assert end.value.value == [[0, 2], [1, 3]]
    assert asked == [(0, 1), (0, 2), (0, 3), (1, 3)]


def test_semantic_entropy_by_entailment_by_hand(tmp_path):
    """Of five answers two are one text, and a third says the same in other words."""
    texts = ["It is Rome.", "it is rome", "Rome is it.", "Rome, in Italy.", "Oslo."]

    def change(i, document):
        document["response"] = texts[int(document["request_id"][-1])]
        document["response_tokens"] = None

    path = build(tmp_path / "s", n=1, samples=5, change=change)
    with open_store(path) as store:
        entries = list(store.entries())
        rome, _, other, italy, oslo = entries
    replies = {(rome, other): 0.9, (other, rome): 0.6, (rome, italy): 0.4, (other, italy): 0.9}
    replies |= {(rome, oslo): 0.1, (italy, oslo): 0.8}
    path_pairs = [(list(pair), p) for pair, p in replies.items()]
    follow(path, "entails", path_pairs, model="org/judge")
    with open_store(path) as store:
        entries = list(store.entries())[:5]
        with pytest.raises(InputMissing, match="--ask entails"):
            _ = Samples(entries, 2, follow_ups=FollowUps(store)).groups
    follow(path, "entails", [([oslo, italy], None)], model="org/judge")
    with open_store(path) as store:
        entries = list(store.entries())[:5]
        samples = Samples(entries, 2, follow_ups=FollowUps(store))
        # Who says neither word does not say that they mean the same.
        assert samples.groups == [[0, 1, 2], [3], [4]]
        wanted = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2))
        assert semantic_entropy_asked(entries[0], samples) == pytest.approx(wanted)
    with open_store(path) as store, pytest.raises(InputMissing, match="--ask entails"):
        _ = Samples(list(store.entries())[:5], 2).groups


def test_best_split_by_trying_all():
    rng = np.random.default_rng(3)
    for values in (rng.normal(size=30), rng.integers(0, 3, 40).astype(float), np.array([0.0, 1.0])):

        def deviation(threshold, values=values):
            sides = values[values <= threshold], values[values > threshold]
            return sum(((side - side.mean()) ** 2).sum() for side in sides)

        ranked = np.unique(values)
        cuts = (ranked[1:] + ranked[:-1]) / 2
        assert best_split(values) == pytest.approx(min(cuts, key=deviation))
    with pytest.raises(InputMissing, match="is the same"):
        best_split(np.ones(5))


def test_semantic_entropy_probe_learns_entropy_and_no_labels():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(200, 8))
    entropy = np.maximum(0, X[:, 0] + rng.normal(size=200) * 0.1)
    y = rng.integers(0, 2, 200)
    probe = SemanticEntropyProbe().fit(X, y, semantic_entropy=entropy)
    high = entropy > best_split(entropy)
    wanted = LinearProbe().fit(X, high.astype(int)).decision_function(X)
    np.testing.assert_array_equal(probe.decision_function(X), wanted)
    assert roc_auc_score(high, wanted) > 0.95
    again = SemanticEntropyProbe().fit(X, 1 - y, semantic_entropy=entropy)
    np.testing.assert_array_equal(again.decision_function(X), wanted)


# --- stacking -------------------------------------------------------------------------


def test_stacking_by_hand():
    rng = np.random.default_rng(4)
    y = np.arange(160) % 2
    groups = np.array([f"g{i // 4}" for i in range(160)])
    X = rng.normal(size=(160, 5))
    X[:, 0] += y
    number = rng.normal(size=160) + 1.5 * y
    stacked = StackedProbe().fit(np.column_stack([X, number]), y, groups=groups)

    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    parts = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    held_out = cross_val_predict(
        LinearProbe(), X, y, groups=groups, cv=parts, method="decision_function"
    )
    curve = make_pipeline(StandardScaler(), LogisticRegression(C=1e3, max_iter=1000))
    curve.fit(np.column_stack([held_out, number]), y)
    new = rng.normal(size=(30, 6))
    own = np.column_stack([LinearProbe().fit(X, y).decision_function(new[:, :5]), new[:, 5]])
    found = stacked.predict_proba(new)
    np.testing.assert_allclose(found, curve.predict_proba(own), atol=1e-9)
    assert (stacked.predict(new) == (found[:, 1] > 0.5)).all()


def test_a_probe_that_fits_its_own_answers_is_not_trusted_for_it():
    """Noise of 300 dimensions fits 100 answers perfectly; the number tells the truth."""
    rng = np.random.default_rng(5)
    y = np.arange(200) % 2
    X = np.column_stack([rng.normal(size=(200, 300)), y + 0.8 * rng.normal(size=200)])
    train, test = np.arange(100), np.arange(100, 200)
    groups = np.arange(200).astype(str)
    stacked = StackedProbe().fit(X[train], y[train], groups=groups[train])
    alone = roc_auc_score(y[test], X[test, -1])
    assert roc_auc_score(y[test], stacked.predict_proba(X[test])[:, 1]) > alone - 0.03


# --- heads ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory):
    sites = {Site("heads", 2): (4, 3), Site("heads", 3): (4, 3)}
    return build(tmp_path_factory.mktemp("heads") / "s", n=80, signal=2.0, sites=sites)


def test_best_heads_by_hand(with_heads):
    with open_store(with_heads) as store:
        examples = select_examples(store)
        heads = heads_of(examples)
        assert heads == [f"heads@{layer}.{head}" for layer in (2, 3) for head in range(4)]
        folds = make_folds(examples.y, examples.groups)
        task = Task(examples, folds, DETECTORS.get("best_heads"))
        sweep = fit_sweep(task, heads, [POSITION])
        (cell,), scores = best_heads(sweep)
        X = {head: store.dataset(layer=head, position=POSITION).X for head in heads}
    assert cell == Cell("4 of 8 heads", POSITION)
    y = examples.y
    for number, fold in enumerate(folds):

        def log_odds(train, test, head):
            return LinearProbe().fit(X[head][train], y[train]).decision_function(X[head][test])

        right = {
            head: ((log_odds(fold.fit, fold.validation, head) > 0) == y[fold.validation]).mean()
            for head in heads
        }
        chosen = sorted(heads, key=lambda head: -right[head])[:4]
        # Head 1 of each layer has the signal.
        assert {"heads@2.1", "heads@3.1"} <= set(chosen)
        wanted = np.mean([log_odds(fold.train, fold.test, head) for head in chosen], axis=0)
        p = scores.probability[fold.test]
        np.testing.assert_allclose(np.log(p / (1 - p)), wanted, atol=1e-5)
        held_out = [log_odds(fold.fit, fold.validation, head) for head in chosen]
        assert scores.validation_auroc[number] == pytest.approx(
            roc_auc_score(y[fold.validation], np.mean(held_out, axis=0))
        )


def test_heads_are_found_beside_a_sweep_of_layers(with_heads):
    with open_store(with_heads) as store:
        options = {"positions": ["response_last"], "draws": 100}
        alone = run_study(store, options=Options(layers=[2], **options))
        swept = run_study(store, options=Options(layers=["heads@2.*", "heads@3.1"], **options))
    row = alone.result("best_heads")
    assert (row.layer, row.position) == ("4 of 8 heads", "response_last")
    assert row.auroc.value > 0.9
    np.testing.assert_allclose(
        row.scores.probability, swept.result("best_heads").scores.probability
    )


# --- the study ------------------------------------------------------------------------


def test_all_are_rows_of_a_study(tmp_path):
    path = build(tmp_path / "s", n=80, samples=2, signal=12.0)
    judge(path)
    with open_store(path) as store:
        answers = list(store.entries())
        right = {e.key: e.evaluations["facts"].label == "correct" for e in answers}
    by_prompt: dict[str, list] = {}
    for entry in answers:
        by_prompt.setdefault(entry.prompt, []).append(entry)
    follow(path, "p_true", [([e], 0.9 if right[e.key] else 0.2) for e in answers])
    pairs = [(one, other) for one, other in by_prompt.values()]
    # Right answers agree with each other.
    replies = [([a, b], 0.9 if right[a.key] else 0.1) for a, b in pairs]
    follow(path, "entails", replies + [([b, a], p) for (a, b), p in replies])
    with open_store(path) as store:
        study = run_study(store, options=Options(layers=[2], draws=100))
    assert study.result("p_true").auroc.value == 1
    assert study.result("semantic_entropy_asked").auroc.value == 1
    assert study.result("stacked").auroc.value > 0.95
    assert study.result("stacked").layer == "2"
    # The planted samples of a prompt all say something else.
    assert "is the same" in study.detectors_left_out["Semantic entropy probe"]
    assert "heads" in study.detectors_left_out["Best attention heads"]


def test_the_stack_takes_the_whole_answer_where_no_judge_says_what_it_is(tmp_path):
    with open_store(build(tmp_path / "s", n=80, signal=12.0)) as store:
        study = run_study(store, options=Options(layers=[2], draws=100))
    assert "stacked" in {result.name for result in study.results}
    with open_store(build(tmp_path / "t", n=80, logprobs=False)) as store:
        study = run_study(store, options=Options(layers=[2], draws=100))
    left_out = study.detectors_left_out["Linear probe and log-probability, stacked"]
    assert left_out == study.detectors_left_out["Mean log-probability"]


def test_what_a_detector_reads_besides_is_checked():
    with pytest.raises(PluginError, match="only one of a state has numbers beside it"):
        Detector("x", "X", "here", "text", beside=("length",))
    with pytest.raises(PluginError, match="of_given must be given"):
        Detector("x", "X", "here", "given")


def test_tags_name_what_a_question_is_about(tmp_path):
    with open_store(build(tmp_path / "s", n=2)) as store:
        one, other = store.entries()
        tags = tags_of("entails", [one, other], TRUE, FALSE)
    assert (tags["kind"], tags["about"], tags["beside"]) == ("entails", one.key, other.key)
    assert json.loads(tags["true"]) == TRUE
    assert all(isinstance(value, str) for value in tags.values())
