"""A fitted linear probe on disk: weights as safetensors, the rest as JSON beside it; no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_vector
from activation_logging.dataset.positions import (
    Place,
    Rows,
    find_rows,
    locate_span,
    parse_position,
)
from activation_logging.errors import DatasetError, ProbeError, RowsMissing
from activation_logging.files import write_whole
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from activation_logging.store import Entry

FORMAT = "activation-logging linear probe"
VERSION = 1


@dataclass(frozen=True)
class SavedProbe:
    """The log-odds of a state ``x`` being positive are ``weight @ x + bias``.

    ``weight`` is float64 ``[hidden]``. An answer whose probability reaches ``threshold`` is called
    ``positive``, any other ``negative``.
    """

    weight: npt.NDArray[np.float64]
    bias: float
    threshold: float
    layer: int
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
        rows = _rows(entry, self.position)
        if isinstance(rows, str):
            raise DatasetError(rows)
        state = read_vector(entry, self.layer, rows)
        if not np.isfinite(state).all():
            raise DatasetError(f"layer {self.layer} holds values that are not finite")
        return float(self.probability(state[None])[0])

    def score_tokens(self, entry: Entry) -> npt.NDArray[np.float64]:
        """The probability at every token of the answer that has a state, ``[R - 1]``."""
        self._check(entry)
        rows = _rows(entry, "response_mean")
        if isinstance(rows, str):
            return np.empty(0)
        return self.probability(entry.rows(self.layer, rows.start, rows.stop))

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
        if (entry.hidden_size, entry.num_layers) != (len(self.weight), self.num_layers):
            raise ProbeError(
                f"the probe was fitted on {self.num_layers} layers of {len(self.weight)}, entry "
                f"{entry.key} has {entry.num_layers} of {entry.hidden_size}"
            )


def _rows(entry: Entry, position: str | int) -> Rows | str:
    positions = entry.positions
    span, missing = locate_span(entry.response, entry.response_tokens, entry.tags)
    first = int(positions[0]) if len(positions) else 0
    place = Place(
        len(entry.prompt_token_ids),
        len(entry.response_token_ids),
        first,
        len(positions),
        span,
        missing,
    )
    return find_rows(parse_position(position), place)


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    stem = Path(path)
    if stem.suffix in {".safetensors", ".json"}:
        stem = stem.with_suffix("")
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
