"""Each way in which a store cannot be learned from has a sentence that says what to do."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import DatasetError
from activation_logging.store import StoreWriter
from tests.fixtures import planted
from tests.fixtures.claims import Claims, build_claims
from tests.fixtures.damage import cut_off
from tests.fixtures.planted import MODEL, build


def refused(path, **options):
    with open_store(path) as store, pytest.raises(DatasetError) as error:
        dataset = store.dataset(**options)
        assert dataset.X is not None
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_empty_store(tmp_path):
    StoreWriter(tmp_path / "s", role="test").close()
    assert "no entries yet" in refused(tmp_path / "s")


def test_no_labels(tmp_path):
    build(tmp_path / "s", n=4, label_of=lambda i: None)
    text = refused(tmp_path / "s")
    assert "none of the 4 answers" in text
    assert "activation-logging eval" in text


def test_an_evaluator_that_never_judged(tmp_path):
    build(tmp_path / "s", n=4)
    assert "the evaluators are (facts: 4)" in refused(tmp_path / "s", label="truth")


def test_several_evaluators(tmp_path):
    build(tmp_path / "s", n=4)
    with open_store(tmp_path / "s", writable=True) as store:
        store.put_evaluation(next(iter(store)), name="other", label="correct")
    assert "choose one" in refused(tmp_path / "s")


def test_labels_of_a_probe_are_no_truth(tmp_path):
    build(tmp_path / "s", n=4)
    with open_store(tmp_path / "s", writable=True) as store:
        for key in store:
            store.put_evaluation(key, name="a probe", label="correct", judge="probe")
        assert store.dataset().examples.label == "facts"
        assert "none of the 4 answers is hallucinated" in refused(tmp_path / "s", label="a probe")


@pytest.mark.parametrize("only", ["hallucinated", "correct"])
def test_one_class(tmp_path, only):
    build(tmp_path / "s", n=6, label_of=lambda i: only if i else "refused")
    text = refused(tmp_path / "s")
    assert "none of the 5 answers is" in text
    assert "labelled refused: 1" in text


def test_no_answer_of_either_class(tmp_path):
    build(tmp_path / "s", n=6, label_of=lambda i: "invalid")
    assert "labelled invalid: 6" in refused(tmp_path / "s")


def test_mixed_models(tmp_path):
    build(tmp_path / "s", n=8, change=lambda i, d: d.update(model=f"org/m{i % 2}"))
    assert "2 models (org/m0: 4, org/m1: 4)" in refused(tmp_path / "s")
    assert "none of the 4 answers is hallucinated" in refused(tmp_path / "s", model="m0")
    assert "the models are" in refused(tmp_path / "s", model="m7")


def test_two_models_under_one_name(tmp_path, monkeypatch):
    build(tmp_path / "s", n=4)
    monkeypatch.setattr(planted, "HIDDEN", 8)
    build(tmp_path / "s", n=4, prefix="other-")
    assert "different shapes" in refused(tmp_path / "s")


def test_mixed_layers(tmp_path):
    def change(i, rows):
        if i % 4 == 0:
            del rows[2]

    build(tmp_path / "s", n=8, change_rows=change)
    text = refused(tmp_path / "s", layer=2)
    assert "not there for all 8 answers" in text
    assert "0, 4" in text
    with open_store(tmp_path / "s") as store:
        assert len(store.dataset(layer=4)) == 8


def test_no_layer_in_common(tmp_path):
    def change(i, rows):
        for layer in (0, 2, 4):
            if (layer == 4) == bool(i % 2):
                del rows[layer]

    build(tmp_path / "s", n=8, change_rows=change)
    assert "share no layer" in refused(tmp_path / "s")


def test_nan_rows(tmp_path):
    def change(i, rows):
        if i == 3:
            rows[4][-1, 0] = np.nan

    build(tmp_path / "s", n=8, change_rows=change)
    text = refused(tmp_path / "s")
    assert "1 answers have states that are not finite" in text
    assert "--skip-broken" in text
    with open_store(tmp_path / "s") as store:
        dataset = store.dataset(broken="skip")
        assert len(dataset) == 7
        assert dataset.left_out == {"with states that are not finite": 1}
        assert np.isfinite(dataset.X).all()
        # Other rows of that answer are fine.
        assert len(store.dataset(position="prompt_last").X) == 8


def test_infinity_counts_as_not_finite(tmp_path):
    build(
        tmp_path / "s",
        n=8,
        dtype="float16",
        change_rows=lambda i, rows: rows[4].__setitem__((-1, 0), np.float32(np.inf) if i else 0),
    )
    assert "7 answers have states that are not finite" in refused(tmp_path / "s")


def test_half_written_entries(tmp_path):
    build(tmp_path / "s", n=8, without_rows=frozenset({2, 5}))
    text = refused(tmp_path / "s")
    assert "2 labelled answers lack activations or are damaged" in text
    assert "pending" in text
    assert "verify" in text
    with open_store(tmp_path / "s") as store:
        dataset = store.dataset(broken="skip")
        assert len(dataset) == 6
        assert dataset.left_out == {"without all of their rows": 2}


def test_a_position_that_nobody_has(tmp_path):
    build(tmp_path / "s", n=8, tokens="prompt")
    assert "no answer has a state at response_last" in refused(tmp_path / "s")
    with open_store(tmp_path / "s") as store:
        assert len(store.dataset(position="prompt_last").X) == 8


def test_bad_arguments(tmp_path):
    build(tmp_path / "s", n=4)
    assert "not one of" in refused(tmp_path / "s", positive="wrong")
    assert "both" in refused(tmp_path / "s", positive="correct")
    assert "not one of" in refused(tmp_path / "s", position="middle")
    assert MODEL not in refused(tmp_path / "s", tags={"domain": "zzz"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"position": 1.5}, "position 1.5 is not one of"),
        ({"position": None}, "position None is not one of"),
        ({"broken": "keep"}, "broken is 'keep', not one of error, skip"),
        # Each letter would be a tag, and nothing grouped.
        ({"group": "entity"}, r"group is a list of names of tags, such as \['entity'\]"),
    ],
)
def test_options_that_would_mean_something_else(tmp_path, options, says):
    with open_store(build(tmp_path / "s", n=4)) as store:
        with pytest.raises(DatasetError, match=says):
            store.dataset(**options)
        if "position" not in options:
            with pytest.raises(DatasetError, match=says):
                store.tokens(**options)


@pytest.mark.parametrize("left", [20, 300])
def test_a_damaged_entry_is_named_and_the_rest_goes_on(tmp_path, left):
    build_claims(tmp_path / "s", Claims(n=40))
    key = cut_off(tmp_path / "s", 3, left=left)
    text = refused(tmp_path / "s")
    assert f"1 labelled answers lack activations or are damaged (the first: entry {key}" in text
    with open_store(tmp_path / "s") as store:
        dataset = store.dataset(broken="skip")
        assert len(dataset) == 39
        assert dataset.left_out == {"that cannot be read": 1}
        with pytest.raises(DatasetError, match=key):
            store.tokens()
        tokens = store.tokens(broken="skip")
        assert len(tokens.keys) == 39
        assert tokens.left_out["that cannot be read"] == 1
