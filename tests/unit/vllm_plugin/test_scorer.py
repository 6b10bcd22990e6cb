"""Columns beside the rows: made when rows are written, moved with them, and read as scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.detectors.served_probes import CAPACITY, ServedProbes
from activation_logging.errors import ProbeError
from activation_logging.sites import RowShape
from activation_logging.vllm_plugin.arena import RowArena, columns_code, device_bytes, slot_bytes
from activation_logging.vllm_plugin.scorer import CapturedScores, Scorer
from tests.fixtures.random_probes import WIDTH, probe

SLOTS = 32
LOGGED = {3: RowShape((WIDTH,), "bfloat16")}
SCORED = {1: RowShape((WIDTH,), "float16"), 3: RowShape((WIDTH,), "bfloat16")}
CPU = torch.device("cpu")
TOKEN = probe("attention", kind="token")
PAIR = probe("linear", 2 * WIDTH, kind="token", sources=(1, 3))
OTHER = probe("multimax", kind="token")


def make(*probes: SavedProbe) -> tuple[RowArena, Scorer]:
    arena = RowArena(LOGGED, num_slots=SLOTS, device=CPU, scored=SCORED)
    return arena, Scorer(named(*probes), SCORED, arena)


def named(*probes: SavedProbe) -> ServedProbes:
    return ServedProbes((f"p{number}", one, False) for number, one in enumerate(probes))


def states(count: int, seed: int = 0) -> dict[int, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {code: torch.randn(count, WIDTH, generator=chance) for code in (1, 2, 3)}


def write(arena: RowArena, places: list[int], made: dict[int, torch.Tensor]) -> None:
    for code, rows in made.items():
        arena.write(code, torch.tensor(places), rows, None)


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def stored(made: dict[int, torch.Tensor], code: int) -> np.ndarray:
    """Rows as they are kept, in float64."""
    kept = made[code].to(torch.bfloat16 if code == 3 else torch.float16)
    return kept.double().numpy()


def test_they_are_of_the_rows_as_stored() -> None:
    arena, scorer = make(TOKEN, PAIR)
    made = states(5)
    write(arena, [4, 9, 1, -1, 30], made)
    found = scorer.read(slots(1, 4, 30))
    order = [2, 0, 4]
    assert found.values.shape == (3, 5)
    tokens = TOKEN.of_tokens(stored(made, 3)[order])
    assert scorer.served["p0"].at(found.values) == pytest.approx(tokens, rel=1e-13)
    both = np.concatenate([stored(made, 1), stored(made, 3)], axis=1)
    pairs = PAIR.of_tokens(both[order])
    assert scorer.served["p1"].at(found.values) == pytest.approx(pairs, rel=1e-13)
    # Rows of a site that only probes read are not kept.
    assert arena.shapes.keys() == {3}
    assert set(arena.codes) == {3, columns_code(1), columns_code(3)}


def test_a_step_of_many_tokens() -> None:
    """More than are in float64 at once."""
    arena = RowArena({}, num_slots=5000, device=CPU, scored=SCORED)
    scorer = Scorer(named(TOKEN), SCORED, arena)
    made = states(3000)
    write(arena, list(range(3000)), made)
    found = scorer.served["p0"].at(scorer.read(np.arange(3000)).values)
    assert found == pytest.approx(TOKEN.of_tokens(stored(made, 3)), rel=1e-12)


def test_copied_blocks_bring_their_columns() -> None:
    arena, scorer = make(TOKEN)
    write(arena, [2, 3], states(2))
    before = scorer.read(slots(2, 3)).values
    arena.copy(slots(2, 3), slots(12, 13))
    assert np.array_equal(scorer.read(slots(12, 13)).values, before)


def test_what_was_gathered_stays() -> None:
    arena, scorer = make(TOKEN)
    write(arena, [2], states(1))
    found, expected = scorer.read(slots(2)), scorer.read(slots(2)).values
    found.rows.gather()  # type: ignore[attr-defined]
    write(arena, [2], states(1, seed=1))
    assert np.array_equal(found.values, expected)


def test_scores_of_an_answer() -> None:
    arena, scorer = make(TOKEN, probe(position="response_mean"), probe(position="prompt_last"))
    made = states(4)
    write(arena, [0, 1, 2, 3], made)
    found = CapturedScores(scorer.read(slots(0, 1, 2, 3)), first=10)
    assert list(found) == ["p0", "p1", "p2"]
    assert [found[name].first for name in found] == [10, 11, 10]
    assert [len(found[name].values) for name in found] == [4, 3, 1]
    assert [found[name].running for name in found] == [False, True, False]
    assert found["p0"].digest == TOKEN.digest
    assert found["p0"].values.dtype == np.float32


class TestReplacing:
    def test_one_that_stays_keeps_its_columns_and_a_new_one_knows_nothing_old(self) -> None:
        arena, scorer = make(TOKEN, PAIR)
        made = states(2)
        write(arena, [0, 1], made)
        before = scorer.served["p0"].at(scorer.read(slots(0, 1)).values)
        addresses = {code: matrix.data_ptr() for code, matrix in arena.matrices.items()}
        scorer.load(named(OTHER, TOKEN))
        assert {code: m.data_ptr() for code, m in arena.matrices.items()} == addresses
        old = scorer.read(slots(0, 1)).values
        assert np.isnan(scorer.served["p0"].at(old)).all()
        assert scorer.served["p1"].at(old) == pytest.approx(before, rel=1e-13)
        write(arena, [5, 6], made)
        new = scorer.read(slots(5, 6)).values
        expected = OTHER.of_tokens(stored(made, 3))
        assert scorer.served["p0"].at(new) == pytest.approx(expected, rel=1e-13)

    def test_columns_that_were_asked_for_are_of_the_probes_of_then(self) -> None:
        arena, scorer = make(TOKEN)
        made = states(1)
        write(arena, [0], made)
        found = scorer.read(slots(0))
        found.rows.gather()  # type: ignore[attr-defined]
        scorer.load(named(OTHER))
        scores = CapturedScores(found, first=0)
        assert scores["p0"].digest == TOKEN.digest
        expected = TOKEN.of_tokens(stored(made, 3))
        assert scores["p0"].values == pytest.approx(expected, rel=1e-6)

    def test_none_and_again(self) -> None:
        arena, scorer = make(TOKEN)
        write(arena, [0], states(1))
        scorer.load(named())
        assert scorer.read(slots(0)).values.shape == (1, 0)
        scorer.load(named(TOKEN))
        assert np.isnan(scorer.served["p0"].at(scorer.read(slots(0)).values)).all()

    def test_all_the_room_again_and_again(self) -> None:
        arena, scorer = make(TOKEN)
        made = states(1)
        for seed in range(3):
            many = [varied(seed * CAPACITY + number) for number in range(CAPACITY)]
            scorer.load(named(*many))
            write(arena, [0], made)
            values = scorer.read(slots(0)).values
            found = [scorer.served[f"p{number}"].at(values)[0] for number in range(CAPACITY)]
            expected = [one.of_tokens(stored(made, 3))[0] for one in many]
            assert found == pytest.approx(expected, rel=1e-13)

    def test_two_names_of_one_probe_share_columns(self) -> None:
        arena, scorer = make(TOKEN)
        scorer.load(named(*[TOKEN] * 2))
        write(arena, [0], states(1))
        first, second = (
            scorer.served[name].at(scorer.read(slots(0)).values) for name in ("p0", "p1")
        )
        assert np.array_equal(first, second)
        assert int((arena.matrices[3] != 0).any(dim=0).sum()) == 4

    @pytest.mark.parametrize(
        "bad", [probe(sources=(2,)), probe(width=WIDTH + 1), probe(sources=("heads@1",))]
    )
    def test_a_refusal_changes_nothing(self, bad: SavedProbe) -> None:
        arena, scorer = make(TOKEN)
        write(arena, [0], states(1))
        before = scorer.read(slots(0)).values
        with pytest.raises(ProbeError, match="the probe p1"):
            scorer.load(named(OTHER, bad))
        assert np.array_equal(scorer.read(slots(0)).values, before)
        assert scorer.served["p0"].probe is TOKEN


def varied(number: int) -> SavedProbe:
    made: dict[str, Any] = {"weight": np.random.default_rng(number).normal(size=WIDTH)}
    return SavedProbe(**{**vars(probe(kind="token")), "tensors": {**made, "bias": np.zeros(1)}})


def test_a_stage_adds_what_it_has() -> None:
    """Two pipeline stages, each with one of a probe's sources; the last joins their columns."""
    arenas = [
        RowArena({}, num_slots=SLOTS, device=CPU, scored={code: SCORED[code]}) for code in (1, 3)
    ]
    first, last = (Scorer(named(PAIR), SCORED, arena) for arena in arenas)
    made = states(2)
    for arena in arenas:
        write(arena, [0, 1], made)
    assert (first.here, first.away) == (last.away, last.here)
    parts = [scorer.read(slots(0, 1)).values for scorer in (first, last)]
    both = np.concatenate([stored(made, 1), stored(made, 3)], axis=1)
    expected = PAIR.of_tokens(both)
    assert last.served["p0"].at(parts[0] + parts[1]) == pytest.approx(expected, rel=1e-13)


def test_what_they_take() -> None:
    arena, _ = make(TOKEN)
    assert slot_bytes(LOGGED, SCORED) == 2 * WIDTH + 2 * 8 * CAPACITY
    assert arena.nbytes == (SLOTS + 1) * slot_bytes(LOGGED, SCORED)
    shapes = {code: RowShape((4096,), "bfloat16") for code in (1, 2, 3)}
    cuda = torch.device("cuda")
    for tokens in (256, 8192):
        plain = device_bytes(shapes, tokens, 2, cuda)
        scored = device_bytes(shapes, tokens, 2, cuda, scored=[1, 3])
        # Up to 1,024 rows in float64, the columns of all tokens, and two matrices.
        assert scored - plain == 8 * (min(tokens, 1024) * 4096 + CAPACITY * (tokens + 2 * 4096))
