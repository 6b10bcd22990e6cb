"""The arena: rows are scattered to slots, copied between them, and gathered from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activation_logging.errors import UnsupportedEngineError
from activation_logging.sites import RowShape, Site
from activation_logging.vllm_plugin.arena import (
    RowArena,
    Unread,
    device_bytes,
    row_bytes,
    slot_bytes,
)

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
        found = arena.read(slots(0, 7, 2), [HEADS, 4])
        assert list(found) == [HEADS, 4]
        for code, rows in found.items():
            assert np.array_equal(rows, made[code][[3, 0, 1]])


def test_rows_are_copied_before_their_slots_are_written_again() -> None:
    arena, made = make(), states(1)
    write(arena, [3], made)
    copied, late = arena.read(slots(3), SHAPES), arena.read(slots(3), SHAPES)
    copied.gather()
    write(arena, [3], {code: rows + 100 for code, rows in made.items()})
    for code, rows in made.items():
        assert np.array_equal(copied[code], rows)
        assert np.array_equal(late[code], rows + 100)


def test_who_waits_for_rows_of_a_block() -> None:
    arena, made, unread = make(), states(1), Unread()
    write(arena, [3], made)
    first, second, other = (arena.read(slots(3), [4]) for _ in range(3))
    unread.add(first, [1, 2])
    unread.add(second, [2])
    unread.add(other, [5])
    unread.gather(2)
    unread.gather(7)
    write(arena, [3], {4: made[4] + 100})
    assert [rows[4][0, 0] for rows in (first, second, other)] == [0, 0, 100]
    del first
    unread.gather(1)  # of which nobody wants anything any more


def test_a_residual_is_added_and_any_leading_shape_is_taken() -> None:
    """VLLM's Transformers backend has ``[1, tokens, hidden]``, heads may come as a third axis."""
    arena, made = make(), states(2)
    arena.write(4, torch.tensor([1, 2]), made[4][None], made[4][None])
    arena.write(HEADS, torch.tensor([1, 2]), made[HEADS].reshape(2, 2, 3), None)
    found = arena.read(slots(1, 2), [4, HEADS])
    assert np.array_equal(found[4], 2 * made[4])
    assert np.array_equal(found[HEADS], made[HEADS])


def test_a_site_that_is_not_kept_is_ignored() -> None:
    make().write(3, torch.tensor([1]), torch.ones(1, 5), None)


def test_a_copy_reads_all_before_it_writes() -> None:
    """VLLM may copy a block to one whose own rows another copy needs."""
    arena, made = make(), states(3)
    write(arena, [0, 1, 2], made)
    arena.copy(slots(0, 1), slots(1, 2))
    found = arena.read(slots(0, 1, 2), SHAPES)
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
    found = arena.read(slots(1, 5), [4])[4]
    assert found.dtype == (np.uint16 if name == "bfloat16" else np.float16)
    assert np.array_equal(found.view(np.int16), made[4].view(torch.int16))


def test_its_size() -> None:
    # One row more than slots, for padding.
    assert make().nbytes == (SLOTS + 1) * slot_bytes(SHAPES) == (SLOTS + 1) * (5 + 6) * 4
    assert row_bytes(RowShape((2, 3), "bfloat16")) == 12


def test_more_than_the_host_has_is_refused() -> None:
    with pytest.raises(UnsupportedEngineError, match=r"take \d+\.\d GiB .* log fewer sites"):
        RowArena(SHAPES, num_slots=1 << 40, device=CPU)


def test_what_it_takes_of_a_gpu() -> None:
    """At most 2 % of 80 GB, with every site of a model of the shape of Llama-3.1-8B."""
    depth, hidden, heads = 32, 4096, 32
    kinds = {"attn_out": (hidden,), "heads": (heads, hidden // heads), "mlp_out": (hidden,)}
    shapes = {Site("resid", k).code: RowShape((hidden,), "bfloat16") for k in range(depth + 1)}
    shapes[Site("resid_prenorm", depth).code] = RowShape((hidden,), "bfloat16")
    for kind, shape in kinds.items():
        for layer in range(1, depth + 1):
            shapes[Site(kind, layer).code] = RowShape(shape, "bfloat16")
    assert len(shapes) == 130
    for tokens in (256, 8192, 16384, 65536):
        found = device_bytes(shapes, tokens, 2, torch.device("cuda"))
        assert found == tokens * (2 * hidden * 2 + 16)
        assert found <= 0.02 * 80e9
    assert device_bytes(shapes, 8192, 2, CPU) == 0
