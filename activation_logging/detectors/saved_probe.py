"""A fitted linear probe on disk, and its scores of a store's answers.

The weights are a safetensors file, the rest is JSON beside it; nothing is pickled.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.examples import PROBE_JUDGE
from activation_logging.dataset.features import read_vector
from activation_logging.dataset.layers import Source
from activation_logging.dataset.positions import rows_at
from activation_logging.errors import DatasetError, ProbeError, RowsMissing
from activation_logging.files import write_whole
from activation_logging.progress import Progress, silent, track
from activation_logging.records import Evaluation
from activation_logging.sites import RESID
from activation_logging.store import open_store
from activation_logging.store.query import Filter
from activation_logging.store.statistics import counts
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from activation_logging.store import Entry, Store

FORMAT = "activation-logging linear probe"
VERSION = 1


@dataclass(frozen=True)
class SavedProbe:
    """The log-odds of a state ``x`` being positive are ``weight @ x + bias``.

    ``weight`` is float64 ``[width]``. ``layer`` is a number, or a text such as ``heads@15``. Where
    the probability reaches ``threshold``, ``positive`` is predicted, else ``negative``.
    """

    weight: npt.NDArray[np.float64]
    bias: float
    threshold: float
    layer: int | str
    position: str | int
    model: str
    num_layers: int
    label: str
    positive: str
    negative: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``NAME.safetensors`` and ``NAME.json``, each whole or not at all.

        Returns:
            The two paths.
        """
        from safetensors.numpy import save

        weights, notes = _paths(path)
        weights.parent.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "version": VERSION, **asdict(self)}
        del record["weight"], record["bias"]
        tensors = {"weight": self.weight, "bias": np.array([self.bias])}
        write_whole(weights, save(tensors, metadata={"format": FORMAT, "version": str(VERSION)}))
        write_whole(notes, (dumps(record, indent=2) + "\n").encode())
        return weights, notes

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedProbe:
        """Read what :meth:`save` wrote; either of the two paths will do.

        Raises:
            ProbeError: a file is missing or not such a probe.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        weights, notes = _paths(path)
        for part in (weights, notes):
            if not part.is_file():
                raise ProbeError(f"there is no {part}; a probe is NAME.safetensors and NAME.json")
        try:
            record = json.loads(notes.read_bytes())
            tensors = load_file(weights)
        except (ValueError, RecursionError, SafetensorError) as error:
            raise ProbeError(f"{path} cannot be read: {error}") from None
        if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
            raise ProbeError(f"{notes} does not describe a probe of this package")
        if (version := record.pop("version", None)) != VERSION:
            raise ProbeError(f"{notes} has version {version}, this package reads {VERSION}")
        try:
            weight, bias = tensors["weight"], float(tensors["bias"][0])
            probe = cls(weight=weight.astype(np.float64), bias=bias, **record)
        except (KeyError, IndexError, TypeError) as error:
            raise ProbeError(f"{path} lacks a part, or has one too many: {error}") from None
        if weight.ndim != 1 or not np.isfinite(weight).all() or not np.isfinite(bias):
            raise ProbeError(f"{weights} does not hold one finite weight vector")
        return probe

    def score(self, entry: Entry) -> float:
        """The probability that this answer is positive.

        Raises:
            ProbeError: the probe was fitted on another model.
            DatasetError: the answer has no finite state at the probe's position.
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        self._check(entry)
        state = read_vector(entry, self.layer, rows_at(self.position, entry))
        if not np.isfinite(state).all():
            raise DatasetError(f"layer {self.layer} holds values that are not finite")
        return float(self.probability(state[None])[0])

    def probability(self, states: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Of states ``[n, hidden]``, ``[n]``."""
        return np.exp(-np.logaddexp(0, -(states.astype(np.float64) @ self.weight + self.bias)))

    def _check(self, entry: Entry) -> None:
        if entry.model != self.model:
            raise ProbeError(
                f"the probe was fitted on {self.model}, entry {entry.key} is by {entry.model}"
            )
        if entry.status != "complete":
            raise RowsMissing(f"entry {entry.key} is {entry.status}: {entry.status_reason}")
        source = Source.of(self.layer)
        # Another model may be as deep, and lack the site, or have it of another width.
        is_layer = source.site.name == RESID
        shape = (entry.hidden_size,) if is_layer else entry.shape_of(source.site).shape
        if (source.width(shape), entry.num_layers) != (len(self.weight), self.num_layers):
            raise ProbeError(
                f"the probe was fitted on {self.num_layers} layers of {len(self.weight)}, entry "
                f"{entry.key} has {entry.num_layers} of {source.width(shape)}"
            )


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
        ProbeError: the probe cannot be read, or ``write`` is the name of an evaluator that is not a
            probe.
    """
    probe = SavedProbe.load(probe_path)
    wanted = Filter(model=model, tags=tags)
    scored: list[Scored] = []
    left_out: Counter[str] = Counter()
    with open_store(store_path, writable=write is not None) as store:
        if write is not None:
            _refuse_other_labels(store, write)
        for entry in track(store.entries(), "scoring", len(store), progress):
            if reason := wanted.why_not(entry):
                left_out[reason] += 1
            elif unlabelled and any(e.judge != PROBE_JUDGE for e in entry.evaluations.values()):
                left_out["with a label"] += 1
            elif entry.model != probe.model:
                left_out[f"by {entry.model}; the probe was fitted on {probe.model}"] += 1
            else:
                try:
                    scored.append(_scored(probe, entry))
                except RowsMissing:
                    left_out[f"without layer {probe.layer}, or without their rows"] += 1
                except DatasetError as error:
                    left_out[f"without a usable state ({error})"] += 1
        if write is not None:
            found = track(scored, "writing", len(scored), progress)
            _write(store, write, found, probe, Path(probe_path).name)
    return scored, dict(left_out)


def _scored(probe: SavedProbe, entry: Entry) -> Scored:
    probability = probe.score(entry)
    label = probe.positive if probability >= probe.threshold else probe.negative
    return Scored(entry.key, probability, label, entry.response)


def _write(store: Store, name: str, scored: Iterable[Scored], probe: SavedProbe, file: str) -> None:
    details = {
        "probe": file,
        "layer": probe.layer,
        "position": probe.position,
        "threshold": probe.threshold,
        "fitted_on": probe.label,
    }
    store.put_evaluations(
        (row.key, Evaluation.checked(name, row.label, row.probability, PROBE_JUDGE, details))
        for row in scored
    )


def _refuse_other_labels(store: Store, name: str) -> None:
    """A probe's opinion must never take the place of the truth it was fitted on."""
    for judge in counts(store).judges.get(name, ()):
        if judge != PROBE_JUDGE:
            raise ProbeError(
                f"{name!r} is the name of labels by {judge or 'somebody else'}; choose another"
            )


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    stem = Path(path)
    if stem.suffix in {".safetensors", ".json"}:
        stem = stem.with_suffix("")
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
