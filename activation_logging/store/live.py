"""Scores that probes gave while the model answered, as the record of an answer's rows holds them.

They are a part of that record, so they go wherever it goes, and stay where its rows do not. Scores
that are computed later are arrays beside the entry (:mod:`.derived`).
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.errors import StoreCorrupt
from activation_logging.printable import printable
from activation_logging.records import LiveScore

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPE = np.dtype("<f4")


def encode_scores(scores: Mapping[str, LiveScore]) -> dict[str, dict[str, Any]]:
    """Scores by name, for JSON: the numbers are float32, little endian, in Base64."""
    return {
        name: {
            "first": score.first,
            "running": score.running,
            "digest": score.digest,
            "values": b64encode(score.values.astype(_TYPE).tobytes()).decode(),
        }
        for name, score in scores.items()
    }


def decode_scores(record: Mapping[str, Any], what: str) -> dict[str, LiveScore]:
    """The scores in a checked record of rows, by name.

    Raises:
        StoreCorrupt: some are no numbers; ``what`` names the record.
    """
    found = {}
    for name, score in record.get("scores", {}).items():
        try:
            raw = b64decode(score["values"], validate=True)
            values = np.frombuffer(raw, _TYPE).astype(np.float32)
        except (binascii.Error, ValueError):
            raise StoreCorrupt(f"the scores by {printable(name)} of {what} are damaged") from None
        found[name] = LiveScore(score["first"], values, score["digest"], score["running"])
    return found


def in_rows(score: LiveScore, first: int, count: int, last: int) -> npt.NDArray[np.float32]:
    """A score for each of ``count`` rows from position ``first`` on, NaN where there is none.

    Args:
        score: what the worker kept; it may have been a step ahead of the answer's end.
        first: the position of the first row.
        count: number of rows.
        last: the last position that the answer has a state at.
    """
    found = np.full(count, np.nan, np.float32)
    end = min(last + 1, score.first + len(score.values))
    start = end - 1 if score.running else score.first
    begin, stop = max(start, score.first, first), min(end, first + count)
    if begin < stop:
        found[begin - first : stop - first] = score.values[begin - score.first : stop - score.first]
    return found
