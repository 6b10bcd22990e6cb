"""Calls at the end of a chunk of the interpreter's stack, and the frame that keeps them off it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import pytest

from activation_logging.vllm_plugin.stack import with_room_below

CALLS = 1000
DEPTHS = range(400)


def leaf() -> None:
    """Called over and over, as a model's layers are."""


def loop() -> int:
    """Page faults of this thread while it calls a leaf many times."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(CALLS):
        leaf()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@with_room_below
def loop_with_room() -> int:
    return loop()


def deep(depth: int, function: Callable[[], int]) -> int:
    return function() if depth == 0 else deep(depth - 1, function)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames have no chunks before 3.11")
def test_no_depth_is_at_the_end_of_a_chunk() -> None:
    # What this is about: at some depth every call maps a page, and faults on it.
    assert max(deep(depth, loop) for depth in DEPTHS) >= CALLS
    assert max(deep(depth, loop_with_room) for depth in DEPTHS) < CALLS / 10
