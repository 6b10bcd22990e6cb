"""Rows in the store of another host than their entries: what each of the two stores says.

A server may have workers on several hosts, each of which writes to its own disk. Then the front
end's store has the entries, and a note in place of each capture, which names the store that has
the rows. The captures there name the front end's store. Earlier versions know of no notes: to them
the rows of such an entry are dropped, and the reason says where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.records import Capture
from activation_logging.store import layout, schema
from activation_logging.store.mutations import shapes_of
from activation_logging.store.open import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping


class Found(NamedTuple):
    """What a store has of a request: its rows, or why it has none."""

    dropped: str | None
    unkept: str | None


def find_captures(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, Found]:
    """What the store at ``path`` has of some requests, by the ids of their captures."""
    found = {}
    with open_store(path) as store:
        snapshot = store.snapshot()
        for name in names:
            raw = snapshot.get(layout.CAPTURES, layout.id_key(name))
            if raw is not None:
                record = schema.capture(raw, f"capture {name}")
                found[name] = Found(record.get("dropped"), record.get("unkept"))
    return found


def about(empty: Capture) -> dict[str, Any]:
    """What the rows of a worker are, for JSON, from a capture without any."""
    return {
        "layers": list(empty.layers),
        "num_layers": empty.num_layers,
        "hidden_size": empty.hidden_size,
        "dtype": empty.dtype,
        "sites": {str(code): kind._asdict() for code, kind in empty.sites.items()},
    }


def note(
    name: str,
    what: Mapping[str, Any],
    *,
    rows_in: str | None = None,
    dropped: str | None = None,
    unkept: str | None = None,
) -> Capture:
    """A capture without rows, which says where they are, or why there are none.

    Args:
        name: its id.
        what: what :func:`about` gave of the worker.
        rows_in: ``HOST:PATH`` of the store that has the rows.
        dropped: why that store lacks them.
        unkept: why they were not wanted.
    """
    if dropped is None and unkept is None:
        dropped = f"the rows are in the store {rows_in}: open both stores as one"
    else:
        rows_in = None
    return Capture(
        id=name,
        layers=what["layers"],
        num_layers=what["num_layers"],
        hidden_size=what["hidden_size"],
        dtype=what["dtype"],
        first=0,
        slices=(),
        dropped=dropped,
        unkept=unkept,
        rows_in=rows_in,
        sites=shapes_of(what),
    )
