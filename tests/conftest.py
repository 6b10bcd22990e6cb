"""Fixtures of the tests that need no server: a path for a store, and a writer on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from activation_logging.store import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a store may be made; neither it nor its parent is there yet."""
    return tmp_path / "data" / "activations.lmdb"


@pytest.fixture
def store_writer(store_path: Path) -> Iterator[StoreWriter]:
    """A writer on ``store_path``, closed at the end."""
    writer = StoreWriter(store_path, role="test")
    yield writer
    writer.close()
