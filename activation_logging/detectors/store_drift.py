"""The scores of a store's answers beside those that the probe gave on its training data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_logging.detectors.answer_scores import answer_said, scored_answers
from activation_logging.detectors.drift import LEAST, Drift, Reference, compare
from activation_logging.errors import DatasetError, InputMissing
from activation_logging.progress import Progress, silent
from activation_logging.store.query import Filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.detectors.saved_probe import SavedProbe
    from activation_logging.store import Store

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""The quantiles that are shown of both sides."""


@dataclass(frozen=True)
class StoreDrift:
    """What came out.

    ``before`` is how the scores were spread on the training data, ``now`` how they are here;
    ``flagged`` the shares at or above the probe's threshold, before and now. ``first`` and ``last``
    are when the earliest and the latest of the answers was asked, seconds since the epoch.
    """

    drift: Drift
    before: Reference
    now: Reference
    flagged: tuple[float, float]
    first: float
    last: float
    left_out: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """For JSON."""

        def side(spread: Reference, flagged: float) -> dict[str, Any]:
            quantiles = {str(level): float(spread.at(level)) for level in LEVELS}
            return {"answers": spread.number, "quantiles": quantiles, "flagged": flagged}

        return {
            **self.drift.as_json(),
            "before": side(self.before, self.flagged[0]),
            "now": side(self.now, self.flagged[1]),
            "first": self.first,
            "last": self.last,
            "left_out": dict(self.left_out),
        }


def drift_in(
    store: Store,
    probe: SavedProbe,
    name: str,
    *,
    since: float | None = None,
    until: float | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> StoreDrift:
    """Compare the scores of a store's answers with those of the probe's training data.

    Args:
        store: an open store.
        probe: the probe.
        name: what its scores are called beside the entries; of entries without them, the rows give
            them.
        since: only answers asked at this time or later, seconds since the epoch.
        until: only answers asked before this time.
        tags: only answers that carry all of these tags.
        progress: told how far it is.

    Raises:
        ProbeError: the probe does not know how its scores were spread.
        DatasetError: there are too few scores.
    """
    before = Reference.of_probe(probe)
    left_out: Counter[str] = Counter()
    wanted = Filter(tags=tags, since=since, until=until)
    found, times = [], []
    for entry, scores in scored_answers(store, probe, name, wanted, left_out, progress=progress):
        try:
            found.append(answer_said(probe, entry, scores))
        except InputMissing as missing:  # noqa: PERF203 - one without a score hides no other
            left_out[f"without a usable state ({missing})"] += 1
        else:
            times.append(entry.created)
    if len(found) < LEAST:
        counted = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        raise DatasetError(
            f"{len(found)} answers have a score by this probe, {LEAST} are needed to say whether "
            f"they have moved{f' (left out: {counted})' if counted else ''}; take a longer time "
            "(--since), or score the answers first (`activation-logging score`)"
        )
    scores_now = np.array(found)
    below = float(before.share_up_to(np.nextafter(probe.threshold, -np.inf)))
    return StoreDrift(
        drift=compare(before, scores_now),
        before=before,
        now=Reference.of(scores_now),
        flagged=(1 - below, float((scores_now >= probe.threshold).mean())),
        first=min(times),
        last=max(times),
        left_out=dict(left_out),
    )
