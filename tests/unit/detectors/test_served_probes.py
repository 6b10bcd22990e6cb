"""The probes of a server: what they need of a row, what they say, and which cannot be served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.served_probes import CAPACITY, ServedProbes
from activation_logging.errors import ProbeError
from activation_logging.probe_list import parse_probes
from activation_logging.sites import RowShape, Site
from tests.fixtures.random_probes import DEPTH, MODEL, WIDTH, probe

HEADS = Site("heads", 2)
SHAPES = {
    **{layer: RowShape((WIDTH,), "bfloat16") for layer in range(DEPTH + 1)},
    HEADS.code: RowShape((3, 2), "float32"),
}
POSITIONS = ("prompt_last", "response_first", "response_last", "response_mean", None)


def served(**probes: SavedProbe) -> ServedProbes:
    return ServedProbes((name, one, False) for name, one in probes.items())


def columns_of(found: ServedProbes, rows: dict[int, np.ndarray]) -> np.ndarray:
    """What a worker keeps of rows, by the site's code."""
    count = len(next(iter(rows.values())))
    columns = np.zeros((count, found.num_columns))
    for part in found.parts(SHAPES):
        columns[:, part.columns] += rows[part.site.code][:, part.rows] @ part.matrix
    return columns


ROWS = {
    code: np.random.default_rng(code).normal(size=(7, shape.width)).astype(np.float32)
    for code, shape in SHAPES.items()
}
"""States from the prompt's last token on."""


def test_columns_of_probes_after_a_change() -> None:
    """Those that stayed keep theirs, whatever their place; of the others nothing is known."""
    stays, goes, comes = probe("attention"), probe(), probe(position="prompt_last")
    before, after = served(goes=goes, stays=stays, other=goes), served(stays=stays, other=comes)
    columns = columns_of(after, ROWS)
    found = before.columns_of(after, columns)
    assert np.array_equal(found[:, before["stays"].columns], columns[:, after["stays"].columns])
    assert np.isnan(found[:, before["goes"].columns]).all()
    assert np.isnan(found[:, before["other"].columns]).all()
    assert before.columns_of(before, found) is found


class TestWhatTheySay:
    @pytest.mark.parametrize("form", ["linear", "attention", "multimax"])
    def test_of_tokens(self, form: str) -> None:
        fitted = probe(form, kind="token")
        found = served(other=probe("attention"), it=fitted)
        columns = columns_of(found, ROWS)
        one = found["it"]
        assert one.of_tokens
        assert one.knows_prompt
        expected = fitted.of_tokens(ROWS[3])
        assert one.at(columns) == pytest.approx(expected, rel=1e-12)
        assert one.scores(columns) == pytest.approx(expected, rel=1e-12)
        assert one.answer(columns) == pytest.approx(fitted.of_answer(ROWS[3][1:]), rel=1e-12)
        assert np.isnan(one.answer(columns[:1]))

    @pytest.mark.parametrize("position", POSITIONS)
    @pytest.mark.parametrize("form", ["linear", "attention", "multimax"])
    def test_of_answers(self, form: str, position: str | None) -> None:
        fitted = probe(form, position=position)
        one = served(other=probe(), it=fitted)["it"]
        columns = columns_of(served(other=probe(), it=fitted), ROWS)
        for end in range(2, 8):
            rows = ROWS[3][:end].astype(np.float64)
            pool = {
                "prompt_last": rows[:1],
                "response_first": rows[1:2],
                "response_last": rows[-1:],
                "response_mean": rows[1:].mean(axis=0, keepdims=True),
                None: rows[1:],
            }
            expected = fitted.of_answer(pool[position])
            assert one.answer(columns[:end]) == pytest.approx(expected, rel=1e-12)
            # The worker may be ahead: what it says at the end of the answer stays.
            kept = one.scores(columns)
            place = end - 1 - one.offset if one.looks_at_end else 0
            assert kept[place] == pytest.approx(expected, rel=1e-12)
            if position != "prompt_last":
                running = one.running(columns[1:])
                assert running[end - 2] == pytest.approx(expected, rel=1e-12)

    def test_an_answer_of_one_token(self) -> None:
        columns = columns_of(served(it=probe()), ROWS)[:1]
        said = {p: served(it=probe(position=p))["it"].answer(columns) for p in POSITIONS}
        assert {p for p, answer in said.items() if np.isfinite(answer)} == {
            "prompt_last",
            "response_last",
        }

    def test_several_sources_and_heads(self) -> None:
        fitted = probe("attention", width=WIDTH + 2, kind="token", sources=(1, "heads@2.1"))
        found = served(it=fitted)
        assert found.sites == (Site("resid", 1), HEADS)
        rows = np.concatenate([ROWS[1], ROWS[HEADS.code][:, 2:4]], axis=1)
        expected = fitted.of_tokens(rows)
        assert found["it"].at(columns_of(found, ROWS)) == pytest.approx(expected, rel=1e-12)

    def test_a_row_that_is_not_finite(self) -> None:
        found = served(
            token=probe(kind="token"), pool=probe("attention"), other=probe(sources=(1,))
        )
        rows = {code: each.copy() for code, each in ROWS.items()}
        rows[3][4, 0] = np.inf
        with np.errstate(invalid="ignore"):
            columns = columns_of(found, rows)
        assert np.isnan(found["token"].at(columns)).tolist() == [False] * 4 + [True] + [False] * 2
        assert np.isnan(found["pool"].running(columns[1:])).tolist() == [False] * 3 + [True] * 3
        assert np.isfinite(found["other"].at(columns)).all()


class TestRefusals:
    @pytest.mark.parametrize("position", ["response_max", "answer_span", 3, -1])
    def test_positions_that_a_server_cannot_know(self, position: str | int) -> None:
        with pytest.raises(
            ProbeError, match=f"the probe it looks at {position}, which is not known"
        ):
            served(it=probe(position=position))

    def test_another_model(self) -> None:
        found = served(good=probe(), it=probe(model="org/other"))
        with pytest.raises(ProbeError, match="the probe it was fitted on org/other with 4 layers"):
            found.check_model(MODEL, DEPTH)
        with pytest.raises(ProbeError, match="this server has org/model with 5"):
            found.check_model(MODEL, 5)
        with pytest.raises(ProbeError, match="it reads layer 9, which does not exist"):
            served(it=probe(sources=(9,))).check_model(MODEL, DEPTH)

    def test_a_layer_that_is_not_read(self) -> None:
        few = {2: SHAPES[2], HEADS.code: SHAPES[HEADS.code]}
        with pytest.raises(
            ProbeError, match=r"reads layer 3, and .* scores of layer 2, heads@2: st"
        ):
            served(it=probe()).parts(few)
        with pytest.raises(ProbeError, match="keeps scores of no layer"):
            served(it=probe()).parts({})

    @pytest.mark.parametrize("width", [WIDTH - 1, WIDTH + 1])
    def test_another_width(self, width: int) -> None:
        with pytest.raises(ProbeError, match=f"it reads {width} numbers of layer 3, .* has 6"):
            served(it=probe(width=width)).parts(SHAPES)

    def test_a_head_that_is_not_there(self) -> None:
        with pytest.raises(ProbeError, match=r"the probe it: .* heads@2 has 3 heads"):
            served(it=probe(width=2, sources=("heads@2.3",))).parts(SHAPES)

    def test_a_thousand(self) -> None:
        with pytest.raises(ProbeError, match=f"p{CAPACITY} is one too many: .* {CAPACITY} columns"):
            ServedProbes((f"p{n}", probe(), False) for n in range(1000))
        # Of other layers there is room.
        few = ServedProbes((f"p{n}", probe(sources=(n % 5,)), False) for n in range(5 * CAPACITY))
        assert len(few.parts(SHAPES)) == 5 * CAPACITY

    def test_files(self, tmp_path: Path) -> None:
        probe(kind="token").save(tmp_path / "good")
        (tmp_path / "bad.json").write_text("{")
        (tmp_path / "bad.safetensors").write_bytes(b"")
        found = ServedProbes.load(parse_probes(f"a={tmp_path}/good,b={tmp_path}/good.json:shadow"))
        assert {name: one.shadow for name, one in found.items()} == {"a": False, "b": True}
        assert found["a"].probe.digest == probe(kind="token").digest
        with pytest.raises(ProbeError, match=r"the probe x: .*bad\.json cannot be read"):
            ServedProbes.load(parse_probes(f"a={tmp_path}/good,x={tmp_path}/bad"))
        with pytest.raises(ProbeError, match=r"the probe x: there is no"):
            ServedProbes.load(parse_probes(f"x={tmp_path}/none"))
