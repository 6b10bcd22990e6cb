"""The counters of a store: for ``/v1/activations/counters``, and as metrics for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.errors import StoreNotFound
from activation_logging.records import STATUSES
from activation_logging.store import open_store
from activation_logging.store.statistics import quick_statistics
from activation_logging.store.writer import live_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from activation_logging.store import Store

_COUNTERS = {
    "entries": "Entries written.",
    "captures": "Requests whose activations were written.",
    "rows": "Rows of activations written, each of all layers.",
    "bytes": "Bytes of activations written.",
    "dropped": "Requests whose activations were dropped because the queue was full.",
    "unkept": "Requests whose activations were not kept, as ACTIVATION_KEEP wants it.",
    "pruned": "Entries whose activations were removed to stay below ACTIVATION_MAX_SIZE.",
    "deleted": "Entries without rows that were deleted to stay below ACTIVATION_MAX_SIZE.",
    "lost": "Records that could not be written at all; the log has a line for each.",
    "commits": "Commits to the store.",
    "errors": "Failed attempts to write.",
}
_QUEUE = "queue_bytes_max"


def counters(store: Store) -> dict[str, Any]:
    """The number of entries, and what each process that writes has counted, by itself and in all.

    Of its own process it takes the live counters: the store may be full.
    """
    return summed(len(store), {**store.writers(), **live_records(store.path)})


def summed(entries: int, writers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same of a number of entries and the writers' records."""
    totals = _sums(writers.values())
    return {"entries": entries, "totals": totals, "writers": writers}


def _sums(records: Any) -> dict[str, int]:
    found = list(records)
    # Writers of earlier versions have not counted everything.
    totals = {name: sum(record.get(name, 0) for record in found) for name in _COUNTERS}
    # High-water marks do not add up.
    return {**totals, _QUEUE: max((record.get(_QUEUE, 0) for record in found), default=0)}


def metrics(path: str) -> bytes:
    """The counters of a store as ``activation_logging_*``, in Prometheus's format.

    They are read from the store at ``path``, so that each of several API servers knows those of
    all. Processes are told apart by their role alone, since every start makes new ones.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class StoreCollector(Collector):
        def collect(self) -> Iterator[Any]:
            with open_store(path) as store:
                yield from _collected(store)

    registry = CollectorRegistry()
    try:
        registry.register(StoreCollector())
        return generate_latest(registry)
    except StoreNotFound:
        # Before the first model is loaded there may be none, and nothing to count.
        return b""


def _collected(store: Store) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    found = counters(store)
    quick = quick_statistics(store)
    sizes = {
        "entries": ("Entries in the store.", found["entries"]),
        "file_bytes": ("Size of the store's file.", quick.file_bytes),
        "disk_bytes": ("What the store's file takes on the disk, bytes.", quick.disk_bytes),
        "free_bytes": ("Free pages of the store's file, bytes.", quick.free_bytes),
        "rows_bytes": ("Rows of activations in the store, bytes.", quick.rows_bytes),
    }
    for name, (text, value) in sizes.items():
        yield GaugeMetricFamily(f"activation_logging_store_{name}", text, value)
    statuses = GaugeMetricFamily(
        "activation_logging_store_status", "Entries in the store, by status.", labels=["status"]
    )
    # Those of which there are none, too: a series must not come and go. Without an index, none.
    for status in STATUSES if quick.statuses else ():
        statuses.add_metric([status], quick.statuses.get(status, 0))
    yield statuses
    roles: dict[str, list[Mapping[str, Any]]] = {}
    for record in found["writers"].values():
        roles.setdefault(record["role"], []).append(record)
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"activation_logging_{name}", text, labels=["role"])
        for role, records in roles.items():
            counter.add_metric([role], _sums(records)[name])
        yield counter
    queue = GaugeMetricFamily(
        f"activation_logging_{_QUEUE}",
        "High-water mark of the write queues that are in use, bytes.",
        labels=["role"],
    )
    for role, records in roles.items():
        running = [record for record in records if "stopped" not in record]
        queue.add_metric([role], _sums(running)[_QUEUE])
    yield queue
