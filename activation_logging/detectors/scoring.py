"""Applying a saved probe to a store's entries, and keeping what it said beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from activation_logging.dataset.examples import PROBE_JUDGE
from activation_logging.detectors.probe_file import SavedProbe
from activation_logging.errors import DatasetError, ProbeError, RowsMissing
from activation_logging.progress import Progress, silent, track
from activation_logging.records import Evaluation
from activation_logging.store import open_store
from activation_logging.store.query import is_named
from activation_logging.store.statistics import counts

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from activation_logging.store import Store


class Scored(NamedTuple):
    """What the probe said of one answer."""

    key: str
    probability: float
    label: str
    response: str


def score_store(
    store_path: str | os.PathLike[str],
    probe_path: str | os.PathLike[str],
    *,
    write: str | None = None,
    unlabelled: bool = False,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> tuple[list[Scored], dict[str, int]]:
    """Score every entry that has what the probe needs.

    Args:
        store_path: the store's folder.
        probe_path: what :meth:`SavedProbe.save` wrote.
        write: store the scores as an evaluation of this name.
        unlabelled: only entries that nobody, or only a probe, has judged.
        model: only this model's entries; else all, which must then be the probe's.
        tags: only entries that carry all of these tags.
        progress: told how far it is.

    Returns:
        The scores in order of writing, and the number of entries left out, by reason.

    Raises:
        ProbeError: the probe cannot be read, no entry is by its model, or ``write`` is the name of
            an evaluator that is not a probe.
    """
    probe = SavedProbe.load(probe_path)
    scored: list[Scored] = []
    left_out: Counter[str] = Counter()
    with open_store(store_path, writable=write is not None) as store:
        if write is not None:
            _refuse_other_labels(store, write)
        for entry in track(store.entries(), "scoring", len(store), progress):
            own = entry.tags
            judged = any(found.judge != PROBE_JUDGE for found in entry.evaluations.values())
            if model is not None and not is_named(entry.model, model):
                left_out["of another model"] += 1
            elif any(own.get(name) != value for name, value in (tags or {}).items()):
                left_out["with other tags"] += 1
            elif unlabelled and judged:
                left_out["with a label"] += 1
            elif entry.model != probe.model:
                left_out[f"by {entry.model}; the probe was fitted on {probe.model}"] += 1
            else:
                try:
                    probability = probe.score(entry)
                except RowsMissing:
                    reason = f"without layer {probe.layer}, or without their rows"
                    left_out[reason] += 1
                except DatasetError as error:
                    left_out[f"without a usable state ({error})"] += 1
                else:
                    called = probe.positive if probability >= probe.threshold else probe.negative
                    scored.append(Scored(entry.key, probability, called, entry.response))
        if write is not None:
            details = {
                "probe": Path(probe_path).name,
                "layer": probe.layer,
                "position": probe.position,
                "threshold": probe.threshold,
                "fitted_on": probe.label,
            }
            store.put_evaluations(
                (
                    row.key,
                    Evaluation.checked(write, row.label, row.probability, PROBE_JUDGE, details),
                )
                for row in track(scored, "writing", len(scored), progress)
            )
    return scored, dict(left_out)


def _refuse_other_labels(store: Store, name: str) -> None:
    """A probe's opinion must never take the place of the truth it was fitted on."""
    for judge in counts(store).judges.get(name, ()):
        if judge != PROBE_JUDGE:
            raise ProbeError(
                f"{name!r} is the name of labels by {judge or 'somebody else'}; choose another"
            )
