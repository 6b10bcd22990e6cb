"""Entries and rows in two stores: which belong together.

Where one front end serves engines on several hosts, each host writes what it has to its own disk.
The front end's store then has entries that wait for rows, the other store rows without an entry.
Both know the id of the capture, which is unique: vLLM makes it at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.store import layout, schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from activation_logging.store.engine.snapshot import Snapshot
    from activation_logging.store.store import Store

FRONT_END, WORKER = "front end", "worker of engine "
"""What the roles of vLLM's processes begin with in the records of writers."""


class Rows(NamedTuple):
    """The record of an entry's rows, and the number of the store that holds it."""

    part: int
    record: dict[str, Any] | None


def find_rows(parts: tuple[Store, ...], own: int, capture: str, order: Iterable[int]) -> Rows:
    """Where the rows of an entry are: in its own store, or in another.

    Rows with an entry in their own store belong to that one. Rows come before a record that says
    that there are none: a worker that never met a request writes such a one, too.

    Args:
        parts: the stores.
        own: number of the store that the entry lies in.
        capture: the id of its rows.
        order: numbers of the others, the likeliest first.
    """
    record = capture_in(parts[own].snapshot(), capture)
    found = Rows(own, record)
    if record is not None and not record.get("dropped"):
        return found
    for other in order:
        record = rows_alone(parts[other], capture)
        if record is not None and not record.get("dropped"):
            return Rows(other, record)
        if record is not None and found.record is None:
            found = Rows(other, record)
    return found


def capture_in(snapshot: Snapshot, name: str) -> dict[str, Any] | None:
    """The record of some rows; None if there is none."""
    raw = snapshot.get(layout.CAPTURES, layout.id_key(name))
    return None if raw is None else schema.capture(raw, f"capture {name}")


def rows_alone(store: Store, capture: str) -> dict[str, Any] | None:
    """The record of rows of this id that have no entry in the store; None if there is none."""
    snapshot = store.snapshot()
    if snapshot.get(layout.CAPTURES, layout.id_key(capture)) is None or waits_in(snapshot, capture):
        return None
    return capture_in(snapshot, capture)


def has_entry(store: Store, capture: str) -> bool:
    """Whether an entry of the store has rows of this id, here or elsewhere."""
    return waits_in(store.snapshot(), capture)


def waits_in(snapshot: Snapshot, capture: str) -> bool:
    """The same of a view."""
    return snapshot.get(layout.REQUESTS, layout.id_key(capture)) is not None


def is_headless(store: Store) -> bool:
    """Whether only workers have written to a store, so that the entries lie in another."""
    roles = [str(record.get("role")) for record in store.writers().values()]
    return bool(roles) and all(role.startswith(WORKER) for role in roles)
