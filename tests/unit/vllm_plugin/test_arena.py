"""The arena: rows are scattered to slots, copied between them, and gathered from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activation_logging.sites import RowShape, Site
from activation_logging.vllm_plugin.arena import RowArena, row_bytes, staging_bytes

SLOTS = 12
HEADS = Site("heads", 1).code
SHAPES = {4: RowShape((5,), "float32"), HEADS: RowShape((2, 3), "float32")}
CPU = torch.device("cpu")


def make(dtype: str = "float32") -> RowArena:
    shapes = {code: shape._replace(dtype=dtype) for code, shape in SHAPES.items()}
    return RowArena(shapes, num_slots=SLOTS, device=CPU)


def states(count: int) -> dict[int, torch.Tensor]:
    """One block per site, ``[count, width]``; no two rows are equal."""
    return {
        code: torch.arange(count * shape.width).reshape(count, -1) + 1000.0 * number
        for number, (code, shape) in enumerate(SHAPES.items())
    }


def write(arena: RowArena, places: list[int], made: dict[int, torch.Tensor]) -> None:
    for code, rows in made.items():
        arena.write(code, torch.tensor(places), rows, None)


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_rows_come_back_in_the_order_wanted() -> None:
    arena, made = make(), states(4)
    # The fifth row is padding: it has no slot, or the slot -1.
    padded = {c: torch.cat([rows, torch.full_like(rows[:1], -1.0)]) for c, rows in made.items()}
    for places in ([7, 2, 11, 0], [7, 2, 11, 0, -1]):
        write(arena, places, padded)
        found = arena.read(slots(0, 7, 2), {HEADS: torch.float32, 4: torch.float32})
        assert list(found) == [HEADS, 4]
        for code, rows in found.items():
            assert np.array_equal(rows, made[code][[3, 0, 1]])


def test_what_was_read_does_not_change_with_the_arena() -> None:
    arena, made = make(), states(1)
    write(arena, [3], made)
    found = arena.read(slots(3), {4: torch.float32})[4]
    write(arena, [3], {code: rows + 100 for code, rows in made.items()})
    assert np.array_equal(found, made[4])


def test_a_residual_is_added_and_any_leading_shape_is_taken() -> None:
    """VLLM's Transformers backend has ``[1, tokens, hidden]``, heads may come as a third axis."""
    arena, made = make(), states(2)
    arena.write(4, torch.tensor([1, 2]), made[4][None], made[4][None])
    arena.write(HEADS, torch.tensor([1, 2]), made[HEADS].reshape(2, 2, 3), None)
    found = arena.read(slots(1, 2), {4: torch.float32, HEADS: torch.float32})
    assert np.array_equal(found[4], 2 * made[4])
    assert np.array_equal(found[HEADS], made[HEADS])


def test_a_site_that_is_not_kept_is_ignored() -> None:
    make().write(3, torch.tensor([1]), torch.ones(1, 5), None)


def test_a_copy_reads_all_before_it_writes() -> None:
    """VLLM may copy a block to one whose own rows another copy needs."""
    arena, made = make(), states(3)
    write(arena, [0, 1, 2], made)
    arena.copy(slots(0, 1), slots(1, 2))
    found = arena.read(slots(0, 1, 2), dict.fromkeys(SHAPES, torch.float32))
    for code, rows in made.items():
        assert np.array_equal(found[code], rows[[0, 0, 1]])


def test_filled_rows_are_told_from_written_ones() -> None:
    arena = make()
    arena.fill(slots(*range(SLOTS)), 7.0)
    assert not any(found.any() for found in arena.differ(slots(*range(SLOTS)), 7.0).values())
    write(arena, [4], {4: torch.full((1, 5), 7.0), HEADS: torch.arange(6.0)[None]})
    found = arena.differ(slots(3, 4), 7.0)
    assert [found[4].tolist(), found[HEADS].tolist()] == [[False, False], [False, True]]
    assert torch.equal(arena.rows_at(HEADS, slots(4)), torch.arange(6.0)[None])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_types_keep_their_bits(name: str) -> None:
    dtype = getattr(torch, name)
    arena = make(name)
    made = {code: rows.to(dtype) + 0.125 for code, rows in states(2).items()}
    write(arena, [1, 5], made)
    found = arena.read(slots(1, 5), {4: dtype})[4]
    assert found.dtype == (np.uint16 if name == "bfloat16" else np.float16)
    assert np.array_equal(found.view(np.int16), made[4].view(torch.int16))
    assert np.array_equal(arena.read(slots(1, 5), {4: torch.float32})[4], made[4].float())


def test_its_size() -> None:
    # One row more than slots, for padding.
    assert make().nbytes == (SLOTS + 1) * (5 + 6) * 4
    assert row_bytes(RowShape((2, 3), "bfloat16")) == 12
    assert staging_bytes(SHAPES, CPU) == 0
    # Two buffers of 16 MiB; a row that is larger still fits.
    assert staging_bytes(SHAPES, torch.device("cuda")) == 2 * (16 << 20)
    large = {0: RowShape((16 << 20,), "float32")}
    assert staging_bytes(large, torch.device("cuda")) == 2 * (64 << 20)
