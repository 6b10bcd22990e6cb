"""Whether a store holds what a run must have left: each row its token's, each request accounted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from activation_logging import Entry, open_store
from activation_logging.keep import ScoreTerm
from activation_logging.store.repair import find_unmatched
from tests.schedules.probes import Scores
from tests.schedules.told import Told
from tests.schedules.worker import fingerprints, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.detectors.saved_probe import SavedProbe


KEEPS = ScoreTerm("last", 0.6)
"""What keeps an answer where a setting does not keep all; and ending by its length."""


class Found(NamedTuple):
    """What a store holds; ``wrong`` has a sentence per entry that is not as it should be."""

    entries: int
    rows: int
    statuses: Counter[str]
    scores: Counter[str]
    wrong: list[str]


def check(path: Path, accepted: int, probes: Mapping[str, SavedProbe], told: Told) -> Found:
    """Compare every row and every score of every entry with what its own tokens say.

    Args:
        path: the store.
        accepted: how many entries it must have.
        probes: all that were served at any time, by their digests.
        told: what clients were told of the scores.
    """
    scores = Scores(probes)
    rows, statuses, wrong = 0, Counter[str](), []
    with open_store(path) as store:
        for entry in store.entries():
            statuses[entry.status] += 1
            problem = _problem(entry) or scores.problem(entry) or told.problem(entry)
            if problem:
                wrong.append(f"{entry.request_id} ({entry.finish_reason}): {problem}")
            elif entry.status == "complete":
                rows += len(entry.positions)
        wrong += [f"half: {half}" for half in find_unmatched(store)]
        entries = len(store)
    if entries != accepted:
        wrong.append(f"{accepted} requests were accepted, and {entries} have an entry")
    return Found(entries, rows, statuses, scores.counts + told.counts, wrong)


def _problem(entry: Entry) -> str | None:
    if entry.status == "unkept" and "ACTIVATION_KEEP" in (entry.status_reason or ""):
        scores = entry.scores.get(KEEPS.name, np.empty(0))
        if entry.finish_reason == "length" or (scores > KEEPS.above).any():
            return "its rows were to be kept"
    if entry.status != "complete":
        if entry.status in ("dropped", "unkept") and entry.status_reason:
            return None
        return f"{entry.status}: {entry.status_reason}"
    tokens = [*entry.prompt_token_ids, *entry.response_token_ids]
    prints = fingerprints(tokens)
    for layer in entry.layers:
        number = 0 if layer == entry.num_layers else layer
        expected = rows_of(prints, layer=number)[entry.positions]
        found = entry.layer(layer)
        off = np.flatnonzero((found != expected).any(axis=1))
        if off.size:
            where = entry.positions[off[:5]].tolist()
            return f"{off.size} of {len(found)} rows of layer {layer} are wrong, at {where}"
    return None
