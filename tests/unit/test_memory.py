"""How much memory there is, by what the kernel says of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from activation_logging.memory import available


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "inactive_file 50"}, 350),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 650\nfile 50"}, 300),
        ({"memory.max": "1000", "memory.current": "1000"}, 0),
        ({"memory.max": "1000"}, 1000),
    ],
)
def test_a_container_has_what_it_does_not_use(
    tmp_path: Path, files: dict[str, str], left: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert available(tmp_path) == left


def test_without_a_limit_it_is_the_machine_that_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert (available(tmp_path) or 0) > 1 << 20
