"""A Ray dataset whose rows a store has answered, or that cannot be asked; no engine starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="the extra 'ray' is not installed")

import ray
from ray.exceptions import RayTaskError

from activation_logging.errors import SettingsError
from activation_logging.generate import LINE_TAG, RUN_TAG, make_line
from activation_logging.generate.engine import request_id_of
from activation_logging.ray import generate
from activation_logging.store import StoreWriter
from tests.fixtures.answers import make_capture, make_document, make_segment

pytestmark = pytest.mark.usefixtures("cluster")

ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "One", "tags": {"split": "a"}},
    {"id": 2, "messages": [{"role": "user", "content": "Two"}]},
    {"id": 3, "prompt": "One", "tags": {"split": "a"}},
    {"id": 4, "prompt": ""},
]


def test_what_is_answered_comes_back(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "any.lmdb", role="test")
    ids = []
    for row in ROWS[:2]:
        line = make_line(0, {name: value for name, value in row.items() if name != "id"})
        name = request_id_of("mine", line.id)
        tags = {RUN_TAG: "mine", LINE_TAG: line.id}
        writer.put_entry(make_document(name, finish_reason="stop", tags=tags))
        writer.put_capture(make_capture(name, [make_segment(name, 4)]))
        ids.append(name)
    writer.close()

    # As a file of such rows is read: every column in every row.
    empty: dict[str, Any] = {"prompt": None, "messages": None, "tags": {"split": None}}
    dataset = ray.data.from_items([empty | row for row in ROWS])
    found = generate(dataset, model="m", path=tmp_path, run="mine", engines=1).take_all()
    found.sort(key=lambda row: row["id"])
    assert [row["request_id"] for row in found] == [*ids, ids[0], None]
    assert [row["answer"] for row in found[:2]] == [f"answer {name}" for name in ids]
    assert {row["finish_reason"] for row in found[:3]} == {"stop"}
    assert [row["error"] for row in found] == [None] * 3 + ["needs either 'prompt' or 'messages'"]


def test_options(tmp_path: Path) -> None:
    dataset = ray.data.from_items(ROWS[:1])
    with pytest.raises(SettingsError, match="n makes several answers"):
        generate(dataset, model="m", path=tmp_path, sampling={"n": 2})
    with pytest.raises(SettingsError, match="engines: 0"):
        generate(dataset, model="m", path=tmp_path, engines=0)


def test_an_engine_that_cannot_write_is_named() -> None:
    dataset = ray.data.from_items(ROWS[:1])
    found = generate(dataset, model="m", path="/proc/stores", engines=1)
    with pytest.raises(RayTaskError, match=r"no engine on .*: /proc/stores cannot be written"):
        found.take_all()
