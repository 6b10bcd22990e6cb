"""A store's counters for Prometheus: bounded labels, and sums that never fall."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="vLLM is not installed")

from prometheus_client.parser import text_string_to_metric_families

from activation_logging import open_store
from activation_logging.store.statistics import quick_statistics, statistics
from activation_logging.store_metrics import counters, metrics
from bench.version_1 import make_version_1
from tests.fixtures.planted import build


def samples(path: Path) -> dict[tuple[str, ...], float]:
    text = metrics(str(path)).decode()
    return {
        (sample.name.removeprefix("activation_logging_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_in_the_store(tmp_path: Path) -> None:
    path = build(tmp_path / "s", n=10, without_rows=frozenset({3, 4}))
    found = samples(path)
    with open_store(path) as store:
        whole, quick = statistics(store), quick_statistics(store)
    assert found["store_entries",] == 10
    assert found["store_status", "complete"] == 8
    assert found["store_status", "pending"] == 2
    assert found["store_rows_bytes",] == whole.rows_bytes == quick.rows_bytes
    assert found["store_file_bytes",] == whole.file_bytes > found["store_free_bytes",]
    assert found["store_disk_bytes",] == whole.disk_bytes
    assert quick.statuses == whole.statuses
    assert found["entries_total", "test"] == 10
    assert found["captures_total", "test"] == 8
    # It has stopped, and its queue is no more.
    assert found["queue_bytes_max", "test"] == 0


def test_starts_of_a_server_add_no_series(tmp_path: Path) -> None:
    build(tmp_path / "s", n=3)
    before = samples(tmp_path / "s")
    for start in range(3):
        build(tmp_path / "s", n=3, prefix=f"{start} ")
    after = samples(tmp_path / "s")
    assert after.keys() == before.keys()
    assert after["entries_total", "test"] == 12
    with open_store(tmp_path / "s") as store:
        assert len(counters(store)["writers"]) == 4


def test_a_store_without_an_index(tmp_path: Path) -> None:
    """What takes a walk through all of it is left out."""
    build(tmp_path / "s", n=3)
    make_version_1(tmp_path / "s")
    found = samples(tmp_path / "s")
    assert found["store_entries",] == 3
    assert not [name for name in found if name[0] == "store_status"]


def test_no_store_yet(tmp_path: Path) -> None:
    assert metrics(str(tmp_path / "none")) == b""
