"""The tokens of claims: which they are, with which states, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from activation_logging.dataset.tokens import make_tokens
from activation_logging.errors import DatasetError
from activation_logging.records import Span
from activation_logging.sites import Site
from activation_logging.store import open_store
from tests.fixtures.claims import CITY, YEAR, Claims, build_claims
from tests.fixtures.planted import build


@pytest.fixture(scope="module")
def claims():
    return Claims(n=12)


@pytest.fixture(scope="module")
def path(tmp_path_factory, claims):
    sites = {Site("heads", 2): (4, 3)}
    claims.options = {"sites": sites}
    return build_claims(tmp_path_factory.mktemp("claims") / "store", claims)


@pytest.fixture
def store(path):
    with open_store(path) as opened:
        yield opened


def test_each_token_has_its_own_state(store, claims):
    tokens = store.tokens("profiles", layer=2)
    assert len(tokens) == 12 * 3
    assert tokens.rows.token.tolist() == [*YEAR, *CITY] * 12
    wanted = [
        store[tokens.keys[answer]].layer(2)[store[tokens.keys[answer]].num_tokens[0] + index]
        for answer, index in zip(tokens.rows.answer, tokens.rows.token, strict=True)
    ]
    np.testing.assert_array_equal(tokens.X, wanted)
    assert tokens.X.dtype == np.float32


def test_labels_weights_and_groups(store, claims):
    tokens = store.tokens("profiles", layer=2)
    order = [int(store[key].request_id.split("-")[1]) for key in tokens.keys]
    expected = []
    for i in order:
        year, city = (int(label == "contradicted") for label in claims.labels[i])
        expected += [year, year, city]
    assert tokens.y.tolist() == expected
    assert tokens.weights.tolist() == [0.5, 0.5, 1.0] * 12
    assert tokens.types.tolist() == ["year", "year", "city"] * 12
    assert tokens.spans.type.tolist() == ["year", "city"] * 12
    assert tokens.spans.first.tolist() == [1, 4] * 12
    assert tokens.spans.stop.tolist() == [3, 5] * 12
    assert len(set(tokens.groups)) == 12
    assert tokens.left_out == {"claims that are unverifiable": 12}


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_are_the_whole_and_cut_no_answer(store, size):
    tokens = store.tokens("profiles", layer=2)
    batches = list(tokens.batches(size))
    np.testing.assert_array_equal(np.concatenate([b.X for b in batches]), tokens.X)
    for name in ("y", "span", "answer", "token", "weight"):
        joined = np.concatenate([getattr(b, name) for b in batches])
        np.testing.assert_array_equal(joined, getattr(tokens.rows, name))
    assert (np.concatenate([b.group for b in batches]) == tokens.groups).all()
    assert len(batches) == {1: 12, 7: 6, 100: 1}[size]
    assert [b.y.tolist() for b in tokens] == [b.y.tolist() for b in tokens.batches()]


def test_several_layers_are_concatenated_in_the_order_given(store):
    both = store.tokens("profiles", layer=[4, 0])
    assert both.layers == [4, 0]
    alone = [store.tokens("profiles", layer=layer).X for layer in (4, 0)]
    np.testing.assert_array_equal(both.X, np.concatenate(alone, axis=1))
    np.testing.assert_array_equal(both.at(0).X, alone[1])


def test_sites_and_heads(store):
    heads = store.tokens("profiles", site="heads", layer=2)
    assert heads.X.shape == (36, 12)
    np.testing.assert_array_equal(store.tokens("profiles", site="heads@2").X, heads.X)
    one = store.tokens("profiles", layer="heads@2.3")
    np.testing.assert_array_equal(one.X, heads.X[:, 9:])
    resid = store.tokens("profiles", site="resid", layer=2)
    np.testing.assert_array_equal(resid.X, store.tokens("profiles", layer=2).X)


def test_unlabelled_tokens_are_weak_negatives(store):
    tokens = store.tokens("profiles", layer=2, unlabelled=0.1)
    free = tokens.rows.span < 0
    # "In" and "."; neither the claim that nobody can verify, nor the end, which has no state.
    assert tokens.rows.token[free].tolist() == [0, 5] * 12
    assert set(tokens.y[free]) == {0}
    assert set(tokens.weights[free]) == {0.1}
    assert set(tokens.types[free]) == {""}
    np.testing.assert_array_equal(tokens.X[~free], store.tokens("profiles", layer=2).X)


def test_whole_answers(store):
    tokens = store.tokens("profiles", layer=2)
    batches = list(tokens.whole_answers(10))
    assert len(batches) == 12
    for batch, key in zip(batches, tokens.keys, strict=True):
        prompt = store[key].num_tokens[0]
        np.testing.assert_array_equal(batch.X, store[key].layer(2)[prompt:])
        assert batch.token.tolist() == list(range(6))


def test_the_token_sampled_last_has_no_state(store_path):
    claims = Claims(n=4, wrong=(0.5, 0.5), seed=1)
    build_claims(store_path, claims)
    with open_store(store_path, writable=True) as store:
        for key in store:
            text = store[key].response
            # The answers were cut after the full stop.
            spans = [
                Span(len(text) - 1, len(text), "contradicted", claim="stop"),
                Span(0, len(text), "supported", claim="all"),
            ]
            store.put_evaluation(key, name="profiles", label="correct", spans=spans)
        tokens = store.tokens("profiles", layer=2)
        assert "tokens sampled last, which have no state" not in tokens.left_out
        assert tokens.weights.tolist() == pytest.approx([*[1 / 6] * 6, 1.0] * 4)


def test_an_answer_whose_claim_is_its_last_token(store_path):
    def change(i, document):
        document["response_tokens"] = ["In", " Rome"]
        document["response"], document["response_token_ids"] = "In Rome", [1, 2]
        document["logprobs"] = document["top_logprobs"] = None

    build(store_path, n=4, name="profiles", change=change)
    with open_store(store_path, writable=True) as store:
        for number, key in enumerate(store):
            label = "contradicted" if number % 2 else "supported"
            spans = [Span(0, 2, label), Span(3, 7, label), Span(0, 7, label)]
            store.put_evaluation(key, name="profiles", label="correct", spans=spans)
        tokens = store.tokens("profiles", layer=2)
        assert tokens.left_out["claims of which no token has a state"] == 4
        assert tokens.left_out["tokens sampled last, which have no state"] == 8
        # A token of two claims has a row for each.
        assert tokens.rows.token.tolist() == [0, 0] * 4
        assert tokens.weights.tolist() == [1.0, 1.0] * 4


def test_states_that_are_not_finite(store_path):
    def change_rows(i, rows):
        if i == 3:
            rows[2][3 + i % 3 + 2] = np.nan

    claims = Claims(n=12, options={"change_rows": change_rows})
    build_claims(store_path, claims)
    with open_store(store_path) as store:
        tokens = store.tokens("profiles", layer=2)
        with pytest.raises(DatasetError, match="1 tokens have states that are not finite") as error:
            _ = tokens.X
        assert "skip" in str(error.value)
        left = store.tokens("profiles", layer=2, broken="skip")
        assert len(left) == 35
        assert left.left_out["tokens with states that are not finite"] == 1
        # The year that lost a token still counts once.
        bad = np.flatnonzero(left.spans.stop - left.spans.first == 1)
        year = next(span for span in bad if left.spans.type[span] == "year")
        assert left.weights[left.rows.span == year].tolist() == [1.0]
        assert np.isfinite(left.X).all()
        assert sum(len(batch.X) for batch in left.whole_answers()) == 12 * 6 - 1
        assert len(store.tokens("profiles", layer=0)) == 36


def test_no_spans(store_path):
    build(store_path, n=4)
    with open_store(store_path) as store, pytest.raises(DatasetError, match="has spans") as error:
        store.tokens("facts")
    assert "put_evaluation" in str(error.value)


@pytest.mark.parametrize("label", ["contradicted", "supported"])
def test_one_class_of_claims(store_path, label):
    share = 1.0 if label == "contradicted" else 0.0
    build_claims(store_path, Claims(n=3, wrong=(share, share)))
    other = {"contradicted": "supported", "supported": "contradicted"}[label]
    with open_store(store_path) as store, pytest.raises(DatasetError, match=f"6 .* is {other}"):
        store.tokens("profiles", layer=2)


def test_only_the_prompts_rows_were_logged(store_path):
    build_claims(
        store_path,
        Claims(n=3, options={"tokens": "prompt", "change_rows": lambda i, rows: None}),
    )
    with open_store(store_path) as store, pytest.raises(DatasetError) as error:
        store.tokens("profiles", layer=2)
    assert "tokens whose rows were not logged: 9" in str(error.value)
    assert "ACTIVATION_TOKENS" in str(error.value)


def test_only_the_responses_rows_were_logged(store_path):
    def change_rows(i, rows):
        rows[2][:] = np.arange(len(rows[2]))[:, None]

    build_claims(
        store_path, Claims(n=4, options={"tokens": "response", "change_rows": change_rows})
    )
    with open_store(store_path) as store:
        tokens = store.tokens("profiles", layer=2)
        # Row 0 is the state that starts the answer; token i has been read by row i + 1.
        np.testing.assert_array_equal(tokens.X[:, 0], tokens.rows.token + 1)
        (first, *_) = tokens.whole_answers(1)
        np.testing.assert_array_equal(first.X[:, 0], first.token + 1)


def test_the_texts_of_tokens_are_not_known(store_path):
    build_claims(store_path, Claims(n=3, options={"response_tokens": False}))
    with open_store(store_path, writable=True) as store:
        assert store.tokens("profiles", layer=2).left_out == {"claims that are unverifiable": 3}


def test_several_models(store_path):
    def second(i, document):
        document["model"] = f"org/model-{i % 2}"

    build(store_path, n=4, name="profiles", change=second)
    with open_store(store_path, writable=True) as store:
        for number, key in enumerate(store):
            label = "contradicted" if number % 2 else "supported"
            span = Span(0, len(store[key].response), label)
            store.put_evaluation(key, name="profiles", label="correct", spans=[span])
        with pytest.raises(DatasetError, match=r"2 models .*choose one"):
            store.tokens("profiles")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": 3}, "layer 3 is not there"),
        ({"site": "mlp_out", "layer": 2}, "mlp_out@2 is not there"),
        ({"layer": "heads@2.*"}, "names 4 places"),
        ({"layer": []}, "no layer is named"),
        ({"unlabelled": -1.0}, "0 or more"),
        ({"label": "refusal"}, "nothing is labelled by 'refusal'"),
        ({"model": "org/other"}, "no labelled answer is by"),
    ],
)
def test_bad_input(store, options, says):
    with pytest.raises(DatasetError, match=says.replace(".", r"\.")):
        make_tokens(store, **{"label": "profiles", **options})
