"""A saved probe applied to the entries of a store, and what it says kept beside them."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.dataset.examples import PROBE_JUDGE
from activation_logging.detectors.probe_format import paths_of
from activation_logging.detectors.saved_probe import SavedProbe
from activation_logging.errors import (
    DatasetError,
    ProbeError,
    RowsMissing,
    StoreCorrupt,
    StoreReadOnly,
)
from activation_logging.progress import Progress, silent, track
from activation_logging.records import Evaluation
from activation_logging.store import Derived, open_store
from activation_logging.store.derived import SCORE, check_name
from activation_logging.store.query import Filter
from activation_logging.store.statistics import counts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from activation_logging.store import Entry, Store
    from activation_logging.store.places import Where

_SPANS = {"contradicted": "hallucinated", "supported": "correct"}
"""What an answer is called by a probe of claims."""


class Scored(NamedTuple):
    """What the probe said of one answer; ``tokens`` is the number of its rows with a score."""

    key: str
    probability: float
    label: str
    tokens: int


def score_store(
    store_path: Where,
    probe_path: str | os.PathLike[str],
    *,
    name: str | None = None,
    keep: bool = True,
    overwrite: bool = False,
    write: str | None = None,
    unlabelled: bool = False,
    model: str | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> tuple[list[Scored], dict[str, int]]:
    """Score every entry that has what the probe needs.

    The scores of its rows are kept beside each entry, see :meth:`.SavedProbe.score_rows`, as
    ``entry.scores[name]``. A broken off run is repeated as it was. Entries that are deleted
    meanwhile are passed over.

    Args:
        store_path: the store's folder, or several, see :func:`.open_store`.
        probe_path: what :meth:`SavedProbe.save` wrote.
        name: what the scores are called; otherwise the probe's file.
        keep: False writes no scores of rows.
        overwrite: also replace scores that another probe gave under that name.
        write: also store each answer's score as an evaluation of this name.
        unlabelled: only entries that nobody, or only a probe, has judged.
        model: only this model's entries; else all, which must then be the probe's.
        tags: only entries that carry all of these tags.
        progress: told how far it is.

    Returns:
        The scores in order of writing, and the number of entries left out, by reason.

    Raises:
        ProbeError: the probe cannot be read, there are scores of that name by another probe, or
            ``write`` is the name of an evaluator that is not a probe.
        DerivedError: no scores can have that name.
        StoreReadOnly: there is something to write, but the store cannot be written.
    """
    probe = SavedProbe.load(probe_path)
    file = paths_of(probe_path)[0].stem
    called = SCORE + (file if name is None else name)
    wanted = Filter(model=model, tags=tags)
    left_out: Counter[str] = Counter()
    with _open(store_path, writable=keep or write is not None) as store:
        if write is not None:
            _refuse_other_labels(store, write)
        if keep:
            check_name(called)
            if not overwrite:
                _refuse_other_scores(store, called, probe, progress)
        run = _Run(probe, wanted, unlabelled, left_out)
        scored: list[Scored] = []
        found = _all(store, run, scored, progress)
        if keep:
            details = {"digest": probe.digest, "probe": file}
            arrays = (
                Derived(key, called, rows, {**details, **answer}) for key, rows, answer in found
            )
            store.put_derived(arrays, skip_deleted=True)
        else:
            for _ in found:
                pass
        if write is not None:
            found_labels = track(scored, "writing", len(scored), progress)
            _write(store, write, found_labels, probe, file)
    return scored, dict(left_out)


def responses(store_path: Where, scored: Iterable[Scored]) -> dict[str, str]:
    """What scored answers say, by key; without those that were deleted meanwhile."""
    with open_store(store_path) as store:
        found = (store.get(row.key) for row in scored)
        return {entry.key: entry.response for entry in found if entry is not None}


def _open(path: Where, *, writable: bool) -> Store:
    if not writable:
        return open_store(path)
    # Opened for writing, a store that is not there would be made.
    with open_store(path):
        pass
    try:
        return open_store(path, writable=True)
    except StoreReadOnly as error:
        raise StoreReadOnly(f"{error}; --dry-run (keep=False) scores without writing") from None


@dataclass(frozen=True)
class _Run:
    """What is scored, and why the rest is left out."""

    probe: SavedProbe
    wanted: Filter
    unlabelled: bool
    left_out: Counter[str]

    def refusal(self, entry: Entry) -> str | None:
        if reason := self.wanted.why_not(entry):
            return reason
        if self.unlabelled and any(e.judge != PROBE_JUDGE for e in entry.evaluations.values()):
            return "with a label"
        if entry.model != self.probe.model:
            return f"by {entry.model}; the probe was fitted on {self.probe.model}"
        return None

    def score(self, entry: Entry) -> tuple[npt.NDArray[np.float32] | None, Scored | None]:
        """What the probe says of the rows and of the answer; what it does not say is counted."""
        probe, rows = self.probe, None
        try:
            if reason := self.refusal(entry):
                self.left_out[reason] += 1
                return None, None
            known = None if probe.kind == "token" else probe.score(entry)
            rows = probe.score_rows(entry, known)
            # Of an answer of one token, only the state that starts it is there.
            probability = probe.score(entry) if known is None else known
        except RowsMissing:
            self.left_out[f"without layer {probe.source}, or without their rows"] += 1
            return rows, None
        except DatasetError as error:
            self.left_out[f"without a usable state ({error})"] += 1
            return rows, None
        except StoreCorrupt:
            self.left_out["that cannot be read"] += 1
            return None, None
        label = label_of(probe, probability)
        tokens = int(np.isfinite(rows).sum())
        return rows, Scored(entry.key, probability, label, tokens)


def _all(
    store: Store, run: _Run, scored: list[Scored], progress: Progress
) -> Iterator[tuple[str, npt.NDArray[np.float32], dict[str, float]]]:
    """Keys, the scores of rows, and that of the answer; the latter also go into ``scored``."""
    for entry in track(store.entries(), "scoring", len(store), progress):
        rows, answer = run.score(entry)
        if answer is not None:
            scored.append(answer)
        if rows is not None:
            yield entry.key, rows, {} if answer is None else {"answer": answer.probability}


def label_of(probe: SavedProbe, probability: float) -> str:
    """What the probe calls an answer: a label of answers, also where it has learned of claims."""
    label = probe.positive if probability >= probe.threshold else probe.negative
    return _SPANS.get(label, label)


def _write(store: Store, name: str, scored: Iterable[Scored], probe: SavedProbe, file: str) -> None:
    details: dict[str, Any] = {
        "probe": file,
        "digest": probe.digest,
        "layer": probe.source,
        "position": probe.position,
        "threshold": probe.threshold,
        "fitted_on": probe.label,
    }
    labels = (
        (row.key, Evaluation.checked(name, row.label, row.probability, PROBE_JUDGE, details))
        for row in scored
    )
    store.put_evaluations(labels, skip_deleted=True)


def _refuse_other_labels(store: Store, name: str) -> None:
    """A probe's opinion must never take the place of the truth it was fitted on."""
    for judge in counts(store).judges.get(name, ()):
        if judge != PROBE_JUDGE:
            raise ProbeError(
                f"{name!r} is the name of labels by {judge or 'somebody else'}; choose another"
            )


def _refuse_other_scores(store: Store, name: str, probe: SavedProbe, progress: Progress) -> None:
    plain = name[len(SCORE) :]
    # What it does not score it does not replace: each model may have a probe of that name.
    entries = track(store.entries(), "looking for scores", len(store), progress)
    others = 0
    for entry in entries:
        with suppress(StoreCorrupt):  # what cannot be read gets no scores
            if entry.model == probe.model:
                others += entry.score_digests.get(plain, probe.digest) != probe.digest
    if others:
        raise ProbeError(
            f"{others} entries have scores called {plain!r} by another probe; choose another name "
            "(--name), or replace them (--overwrite)"
        )
