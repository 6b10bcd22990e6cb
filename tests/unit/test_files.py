"""Files that appear whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from activation_logging.files import write_whole


def test_threads_that_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"

    def write(number: int) -> None:
        for _ in range(100):
            write_whole(path, bytes([number]) * 100_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]
