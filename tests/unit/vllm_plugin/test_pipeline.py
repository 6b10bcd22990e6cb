"""Rows of one pipeline stage on their way to the stage that writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from activation_logging import open_store
from activation_logging.errors import RowsMissing
from activation_logging.records import Capture, Segment, SegmentSlice
from activation_logging.sites import RowShape, Site
from activation_logging.store import StoreWriter
from activation_logging.vllm_plugin.pipeline import JoinedRows, RowReceiver, RowSender
from tests.fixtures.answers import make_document
from tests.fixtures.links import socket_links

ROUTER = Site("router", 2).code
SHAPES = {
    1: RowShape((3,), "float32"),
    3: RowShape((3,), "float32"),
    ROUTER: RowShape((5,), "bfloat16"),
}
COUNT = 4


def rows_of(code: int, count: int = COUNT) -> np.ndarray:
    width = SHAPES[code].width
    rows = np.arange(count * width, dtype=np.float32).reshape(count, width) + code
    return rows.astype(ml_dtypes.bfloat16).view(np.uint16) if code == ROUTER else rows


def make_capture(name: str, rows: Mapping[int, Any], dropped: str | None = None) -> Capture:
    segment = Segment(name.encode() * 8, rows, 100)
    return Capture(
        id=name,
        layers=(1, 3),
        num_layers=3,
        hidden_size=3,
        dtype="float32",
        first=0,
        slices=(SegmentSlice(segment.id, 0, COUNT),),
        segments=(segment,) if rows else (),
        dropped=dropped,
        sites={ROUTER: SHAPES[ROUTER]},
    )


class Stages:
    """The first stage's sender, and the last one's receiver."""

    def __init__(self) -> None:
        self.link, other = socket_links()
        self.sender = RowSender(self.link)
        self.receiver = RowReceiver([other], SHAPES)

    def joined(self, name: str, count: int = COUNT) -> JoinedRows:
        return JoinedRows({3: rows_of(3)}, self.receiver, name, [1, ROUTER], count)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def stages() -> Iterator[Stages]:
    made = Stages()
    yield made
    made.close()


def test_rows_of_all_stages(stages: Stages) -> None:
    assert stages.sender.put_capture(make_capture("b", {1: rows_of(1) + 1}))
    assert stages.sender.put_capture(make_capture("a", {1: rows_of(1), ROUTER: rows_of(ROUTER)}))
    found = stages.joined("a")
    assert list(found) == [3, 1, ROUTER]
    assert len(found) == 3
    for code, rows in found.items():
        assert rows.dtype == rows_of(code).dtype
        assert np.array_equal(rows, rows_of(code))
    # A commit that the disk refuses reads them again.
    assert np.array_equal(found[1], rows_of(1))
    assert np.array_equal(stages.joined("b")[1], rows_of(1) + 1)
    with pytest.raises(KeyError):
        found[4]


def test_captures_without_rows_are_not_sent(stages: Stages) -> None:
    assert not stages.sender.put_capture(make_capture("a", {}, "a reason"))
    assert stages.sender.put_capture(make_capture("b", {}))
    assert stages.sender.put_capture(make_capture("c", {1: rows_of(1)}))
    stages.close()
    assert np.array_equal(stages.joined("c")[1], rows_of(1))
    with pytest.raises(RowsMissing, match="ended before"):
        stages.joined("a")[1]


def test_a_stage_that_computed_more(stages: Stages) -> None:
    """It may be a step ahead when both are told to end."""
    stages.sender.put_capture(make_capture("a", {1: rows_of(1, COUNT + 1)}))
    with pytest.raises(RowsMissing):
        stages.joined("a")[1]


def test_rows_that_never_come(stages: Stages, store_path: Path) -> None:
    """The entry says so, and others are written."""
    writer = StoreWriter(store_path, role="worker")
    for name in "ab":
        writer.put_entry(make_document(name, capture=name))
        writer.put_capture(make_capture(name, stages.joined(name)))
    stages.sender.put_capture(make_capture("b", {1: rows_of(1), ROUTER: rows_of(ROUTER)}))
    stages.sender.close()
    writer.close()
    statuses = {entry.request_id: entry.status for entry in open_store(store_path).entries()}
    assert statuses == {"a": "dropped", "b": "complete"}
    (dropped,) = open_store(store_path).for_request("a")
    assert "a pipeline stage ended" in (dropped.status_reason or "")
    assert writer.stats.dropped == 1
    assert writer.stats.lost == 0


def test_a_stage_that_is_killed(
    stages: Stages, store_path: Path, our_log: pytest.LogCaptureFixture
) -> None:
    writer = StoreWriter(store_path, role="worker")
    writer.put_entry(make_document("a", capture="a"))
    writer.put_capture(make_capture("a", stages.joined("a")))
    stages.link.close()
    writer.close()
    (entry,) = open_store(store_path).entries()
    assert entry.status == "dropped"
    assert "a pipeline stage is gone" in our_log.text
    stages.sender.put_capture(make_capture("b", {1: rows_of(1)}))
    stages.close()
    assert "rows cannot be sent to the last pipeline stage" in our_log.text
