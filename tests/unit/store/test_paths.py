"""Paths that nobody can look at: one sentence, from whatever opens a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activation_logging import open_store
from activation_logging.errors import SettingsError, StoreError
from activation_logging.store import StoreWriter
from activation_logging.store.compact import compact
from activation_logging.store.repair import page_problems
from activation_logging.store.upgrade import upgrade

USES: list[Callable[[Path], Any]] = [
    open_store,
    lambda path: open_store(path, writable=True),
    lambda path: open_store([path, path / "b"]),
    compact,
    upgrade,
    lambda path: StoreWriter(path, role="test"),
]
LONG = "x" * 300


@pytest.mark.parametrize("use", USES)
def test_a_name_that_is_too_long(use: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{LONG}.*(File name too long|no store)"):
        use(tmp_path / LONG)


def test_a_pattern_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"no store matches .*{LONG}/\*: File name too long"):
        open_store(str(tmp_path / LONG / "*"))
    assert page_problems(tmp_path / LONG) is None


@pytest.mark.parametrize("use", [*USES, page_problems])
def test_the_home_of_nobody(use: Callable[[Any], Any]) -> None:
    with pytest.raises(SettingsError, match="~nobody-here/s begins with the home of a user"):
        use(Path("~nobody-here/s"))
