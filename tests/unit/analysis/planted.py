"""Where ``tests/fixtures/planted.py`` was, for the tests that still look here."""

from tests.fixtures.planted import HIDDEN, MODEL, NUM_LAYERS, Planted, build

__all__ = ["HIDDEN", "MODEL", "NUM_LAYERS", "Planted", "build"]
