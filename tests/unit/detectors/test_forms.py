"""How a probe's numbers become log-odds, against the formulas written out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from activation_logging.detectors.forms import FORMS, form_of
from activation_logging.errors import InputMissing, ProbeError

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 3)).astype(np.float32)
TENSORS = {
    "linear": {"weight": np.array([1.0, -2.0, 0.5]), "bias": np.array([0.25])},
    "attention": {
        "query": RNG.normal(size=(2, 3)),
        "weight": RNG.normal(size=(2, 3)),
        "bias": np.array([0.5]),
    },
    "multimax": {"weight": RNG.normal(size=(2, 3)), "bias": np.array([-1.0])},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_run_of_one_row_says_what_the_row_says(name: str) -> None:
    form, tensors = FORMS[name], TENSORS[name]
    alone = [form.answer(tensors, ROWS[i : i + 1]) for i in range(len(ROWS))]
    assert form.tokens(tensors, ROWS) == pytest.approx(alone)
    assert form.tokens(tensors, ROWS).dtype == np.float64
    assert form.width(tensors) == 3


def test_linear_takes_the_maximum() -> None:
    weight, bias = TENSORS["linear"].values()
    each = [sum(w * x for w, x in zip(weight, row, strict=True)) + bias[0] for row in ROWS]
    assert FORMS["linear"].tokens(TENSORS["linear"], ROWS) == pytest.approx(each, abs=1e-6)
    assert FORMS["linear"].answer(TENSORS["linear"], ROWS) == pytest.approx(max(each), abs=1e-6)


def test_attention_is_the_weighted_mean_of_the_values() -> None:
    query, weight, bias = TENSORS["attention"].values()
    expected = bias[0]
    for head in range(2):
        shares = [np.exp(query[head] @ row) for row in ROWS]
        expected += sum(s * (weight[head] @ row) for s, row in zip(shares, ROWS, strict=True)) / (
            sum(shares)
        )
    assert FORMS["attention"].answer(TENSORS["attention"], ROWS) == pytest.approx(expected)


def test_attention_survives_large_states() -> None:
    assert np.isfinite(FORMS["attention"].answer(TENSORS["attention"], ROWS * 1e6))


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_a_running_answer_is_that_of_the_rows_so_far(name: str, scale: float) -> None:
    form, tensors = FORMS[name], TENSORS[name]
    rows = RNG.normal(size=(40, 3)).astype(np.float32) * scale
    found = form.running_of(*form.project(tensors, rows))
    alone = [form.answer(tensors, rows[: i + 1]) for i in range(len(rows))]
    assert found == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_pieces_of_a_run_change_no_bit(name: str, scale: float) -> None:
    form, tensors = FORMS[name], TENSORS[name]
    columns, bias = form.project(tensors, RNG.normal(size=(40, 3)).astype(np.float32) * scale)
    run, ends = form.begin(bias), [0, 1, 1, 2, 10, 11, 40]
    pieces = [run.more(columns[start:stop]) for start, stop in pairwise(ends)]
    assert np.array_equal(np.concatenate(pieces), form.running_of(columns, bias))


def test_attention_that_looks_elsewhere_again_and_again() -> None:
    """Every row weighs exp(600) times what those before it do together."""
    looks = np.arange(5.0)[:, None] * 600
    columns = np.concatenate([looks, [[1.0], [2.0], [3.0], [4.0], [5.0]]], axis=1)
    assert FORMS["attention"].running_of(columns, 0.0) == pytest.approx([1, 2, 3, 4, 5])
    assert FORMS["attention"].running_of(columns[::-1], 0.0) == pytest.approx([5] * 5)


@pytest.mark.parametrize("name", FORMS)
def test_a_running_answer_ends_where_a_row_is_not_finite(name: str) -> None:
    form, tensors = FORMS[name], TENSORS[name]
    columns, bias = form.project(tensors, ROWS)
    columns[2] = np.nan
    found = form.running_of(columns, bias)
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2:]).all()


def test_multimax_adds_the_maximum_of_each_head() -> None:
    weight, bias = TENSORS["multimax"].values()
    expected = bias[0] + sum(max(weight[head] @ row for row in ROWS) for head in range(2))
    assert FORMS["multimax"].answer(TENSORS["multimax"], ROWS) == pytest.approx(expected)


def test_no_rows() -> None:
    with pytest.raises(InputMissing, match="no state"):
        FORMS["linear"].answer(TENSORS["linear"], ROWS[:0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": np.ones((1, 3))}, "has the shape"),
        ({"weight": np.array([1.0, np.nan])}, "not finite"),
        ({"weight": np.array([1, 2])}, "floats"),
        ({"bias": np.ones(2)}, "different shapes"),
        ({"query": np.ones(3)}, "query is missing or too much"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        FORMS["linear"].width({**TENSORS["linear"], **change})


def test_heads_of_different_widths() -> None:
    with pytest.raises(ProbeError, match="different shapes"):
        FORMS["attention"].width({**TENSORS["attention"], "query": np.ones((2, 4))})


def test_an_unknown_form() -> None:
    assert form_of("linear") is FORMS["linear"]
    with pytest.raises(ProbeError, match="'bilinear' of a probe is not one of linear, attention"):
        form_of("bilinear")
