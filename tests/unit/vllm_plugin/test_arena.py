"""The arena: rows are scattered to slots, copied between them, and gathered from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activation_logging.vllm_plugin.arena import RowArena, staging_bytes

LAYERS, SLOTS, HIDDEN = 2, 12, 5
CPU = torch.device("cpu")


def make(dtype: torch.dtype = torch.float32) -> RowArena:
    return RowArena(
        num_layers_logged=LAYERS, num_slots=SLOTS, hidden_size=HIDDEN, dtype=dtype, device=CPU
    )


def states(count: int) -> list[torch.Tensor]:
    """One block per layer, ``[count, HIDDEN]``; no two rows are equal."""
    numbers = torch.arange(LAYERS * count * HIDDEN, dtype=torch.float32)
    return list(numbers.reshape(LAYERS, count, HIDDEN))


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_rows_come_back_in_the_order_wanted() -> None:
    arena, made = make(), states(4)
    # The fifth row is padding, which has no slot.
    padded = [torch.cat([state, torch.full((1, HIDDEN), -1.0)]) for state in made]
    arena.write(torch.tensor([7, 2, 11, 0]), padded)
    found = arena.read(slots(0, 7, 2), {9: 1, 4: 0}, torch.float32)
    assert list(found) == [9, 4]
    assert np.array_equal(found[4], made[0][[3, 0, 1]])
    assert np.array_equal(found[9], made[1][[3, 0, 1]])


def test_what_was_read_does_not_change_with_the_arena() -> None:
    arena, made = make(), states(1)
    arena.write(torch.tensor([3]), made)
    found = arena.read(slots(3), {0: 0}, torch.float32)[0]
    arena.write(torch.tensor([3]), [state + 100 for state in made])
    assert np.array_equal(found, made[0])


def test_a_copy_reads_all_before_it_writes() -> None:
    """VLLM may copy a block to one whose own rows another copy needs."""
    arena, made = make(), states(3)
    arena.write(torch.tensor([0, 1, 2]), made)
    arena.copy(slots(0, 1), slots(1, 2))
    found = arena.read(slots(0, 1, 2), {0: 0, 1: 1}, torch.float32)
    for layer, state in enumerate(made):
        assert np.array_equal(found[layer], state[[0, 0, 1]])


def test_filled_rows_are_told_from_written_ones() -> None:
    arena = make()
    arena.fill(slots(*range(SLOTS)), 7.0)
    assert not arena.differ(slots(*range(SLOTS)), 7.0).any()
    arena.write(torch.tensor([4]), [torch.full((1, HIDDEN), 7.0), torch.arange(5.0)[None]])
    assert arena.differ(slots(3, 4), 7.0).tolist() == [[False, False], [False, True]]
    assert torch.equal(arena.last_layer(slots(4)), torch.arange(5.0)[None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_keep_their_bits(dtype: torch.dtype) -> None:
    arena = make(dtype)
    made = [state.to(dtype) + 0.125 for state in states(2)]
    arena.write(torch.tensor([1, 5]), made)
    found = arena.read(slots(1, 5), {0: 0}, dtype)[0]
    assert found.dtype == (np.uint16 if dtype == torch.bfloat16 else np.float16)
    assert np.array_equal(found.view(np.int16), made[0].view(torch.int16))
    widened = arena.read(slots(1, 5), {0: 0}, torch.float32)[0]
    assert np.array_equal(widened, made[0].float())


def test_its_size() -> None:
    assert make().nbytes == LAYERS * SLOTS * HIDDEN * 4
    assert staging_bytes(HIDDEN, torch.float32, CPU) == 0
    # Two buffers of 16 MiB, of whole rows; a row that is larger still fits.
    assert staging_bytes(4096, torch.bfloat16, torch.device("cuda")) == 2 * (16 << 20)
    assert staging_bytes(16 << 20, torch.float32, torch.device("cuda")) == 2 * (64 << 20)
