"""What the worker gives up of the KV cache's memory is what its arena takes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.schedules.run import processes
from tests.schedules.shapes import SHAPES, measure


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_set_aside_is_what_the_arena_takes(
    pool: ProcessPoolExecutor, tmp_path: Path, name: str
) -> None:
    found = pool.submit(measure, name, tmp_path / "s").result()
    assert found.arena > 1e8
    assert found.set_aside == pytest.approx(found.arena, rel=0.01)


def test_columns_are_set_aside_too(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    plain = pool.submit(measure, "Llama-3.1-8B", tmp_path / "a").result()
    found = pool.submit(measure, "Llama-3.1-8B", tmp_path / "b", probe=True).result()
    assert found.set_aside == pytest.approx(found.arena, rel=0.01)
    # 512 bytes for each row of 8,192.
    assert found.arena == pytest.approx(plain.arena * (8192 + 512) / 8192, rel=0.01)


def test_only_the_rank_that_has_the_arena_gives_it_up(tmp_path: Path) -> None:
    with processes(2) as pool:
        ranks = [
            pool.submit(
                measure, "Llama-3.1-8B", tmp_path / "s", tp=2, rank=rank, group=tmp_path / "group"
            )
            for rank in (0, 1)
        ]
        first, second = (rank.result() for rank in ranks)
    assert first.set_aside == pytest.approx(first.arena, rel=0.01)
    assert (second.set_aside, second.arena) == (0, 0)
