"""Stores as version 0.1 wrote them: no index, no totals, and shorter heads of records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from activation_logging.store import layout
from activation_logging.store.engine.opening import open_alone

if TYPE_CHECKING:
    from pathlib import Path


def make_version_1(path: Path) -> None:
    """Take out of a store what version 0.1 did not write. Nobody may have it open."""
    with open_alone(path) as opened, opened.env.begin(write=True) as txn:
        for later in (layout.INDEX, layout.DERIVED):
            txn.drop(opened.databases[later], delete=True)
        meta = opened.databases[layout.META]
        txn.delete(layout.TOTALS_KEY, db=meta)
        record = json.loads(txn.get(layout.FORMAT_KEY, db=meta))
        del record["indexed"]
        txn.put(layout.FORMAT_KEY, json.dumps(record | {"version": 1}).encode(), db=meta)
        keys = [bytes(key) for key, _ in txn.cursor() if not key.startswith(layout.FIRST_NAME)]
        for key in keys:
            entry = json.loads(txn.get(key))
            first = {name: entry.pop(name) for name in ("capture", "rows", "prompt")}
            del entry["num_prompt"], entry["num_response"]
            txn.put(key, layout.dump({**first, **entry}))
