"""A fitted probe as a thing of its own: what it reads, what it says of a row, where that is from.

Applying one needs numpy alone. A *row* is the state of one token, float32 or float64, at the
probe's sources, concatenated in order.

A probe of **tokens** says something of every state that has read a token of the answer, and of the
one that starts it: rows ``P - 1`` to ``P + R - 2``, of ``P`` prompt and ``R`` response tokens. A
probe of **answers** says one thing of an answer. Its position is a row or a pool of rows, see
:mod:`activation_logging.dataset.positions`; None stands for all rows that have read a token of the
answer, which its form puts together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.dataset.features import read_rows, read_vector
from activation_logging.dataset.layers import Source
from activation_logging.dataset.positions import parse_position, rows_at
from activation_logging.detectors.forms import form_of
from activation_logging.detectors.probe_format import (
    Kind,
    names_in,
    pack_probe,
    read_probe,
    unpack_probe,
    write_probe,
)
from activation_logging.errors import DatasetError, InputMissing, ProbeError, RowsMissing
from activation_logging.strict_json import dumps

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from activation_logging.arrays import Floats
    from activation_logging.store import Entry

_KNOWN = {"prompts": "fitted_on", "subjects": "fitted_about"}
"""The names of the tensors that say what a probe was fitted on."""


class Calibration(NamedTuple):
    """From log-odds ``x`` to the probability ``1 / (1 + exp(-(a * x + b)))`` (Platt 1999)."""

    a: float = 1.0
    b: float = 0.0


UNCALIBRATED = Calibration()


class OperatingPoint(NamedTuple):
    """A threshold that lets about so many false positives pass, and what it finds.

    ``recall`` is the share of positives at or above ``threshold``: ``value``, ``low`` and ``high``.
    """

    false_positive_rate: float
    threshold: float
    recall: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class SavedProbe:
    """A probe of answers or of tokens.

    Attributes:
        kind: ``answer`` or ``token``.
        form: how tensors make log-odds, a name of :data:`.forms.FORMS`.
        tensors: what the form needs, float64.
        sources: what a row is made of: layers such as 15, or texts such as ``heads@15.3``.
        position: of an answer: see above. None for tokens.
        threshold: the probability from which on ``positive`` is predicted, else ``negative``.
        model: the served name of the model that it was fitted on, ``num_layers`` deep.
        num_layers: see ``model``.
        label: the evaluator whose labels it has learned.
        positive: the label whose probability it gives.
        negative: the other one.
        calibration: from log-odds to probabilities.
        operating_points: thresholds by their share of false positives.
        data: what it was fitted on: a digest of keys and labels, and counts.
        prompts: the first 8 bytes of the SHA-256 of each prompt that it was fitted on, uint64,
            sorted; empty where that is not known.
        subjects: the same of what the answers are about, as their tags say (``entity: rome``).
        report: how good it is on answers that it was not fitted on, with intervals.
        provenance: how it was made.
    """

    kind: Kind
    form: str
    tensors: Mapping[str, npt.NDArray[Any]]
    sources: tuple[int | str, ...]
    position: str | int | None
    threshold: float
    model: str
    num_layers: int
    label: str
    positive: str
    negative: str
    calibration: Calibration = UNCALIBRATED
    operating_points: tuple[OperatingPoint, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    prompts: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    subjects: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    report: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could not be applied.

        Raises:
            ProbeError: the tensors are not the form's, or another field is invalid.
        """
        wide = {name: np.asarray(each) for name, each in self.tensors.items()}
        form_of(self.form).width(wide)
        given = {name: each.astype(np.float64) for name, each in wide.items()}
        object.__setattr__(self, "tensors", given)
        try:
            sources = tuple(Source.of(one, self.num_layers).label for one in self.sources)
            if self.position is not None:
                object.__setattr__(self, "position", parse_position(self.position))
        except DatasetError as error:
            raise ProbeError(f"the probe reads what cannot be: {error}") from None
        if not sources:
            raise ProbeError("the probe names nothing that it reads")
        object.__setattr__(self, "sources", sources)
        if self.kind == "token" and self.position is not None:
            raise ProbeError(f"a probe of tokens has no position, this one has {self.position}")
        if not self.calibration.a > 0:
            raise ProbeError("the calibration of the probe would turn its ranking around")

    @property
    def source(self) -> str:
        """What a row is made of, in one text."""
        return "+".join(map(str, self.sources))

    @cached_property
    def known_prompts(self) -> frozenset[int]:
        """:attr:`prompts`, to look one up."""
        return frozenset(self.prompts.tolist())

    @cached_property
    def known_subjects(self) -> frozenset[int]:
        """:attr:`subjects`, to look one up."""
        return frozenset(self.subjects.tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a probability depends on; equal probes give equal scores."""
        told = [self.kind, self.form, list(self.sources), self.position, *self.calibration]
        told += [self.model, self.num_layers]
        found = hashlib.sha256(dumps(told).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            found.update(dumps([name, list(tensor.shape)]).encode())
            found.update(np.ascontiguousarray(tensor, "<f8").tobytes())
        return found.hexdigest()

    # --- files -----------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``NAME.safetensors`` and ``NAME.json``, each whole or not at all.

        Returns:
            The two paths.

        Raises:
            ProbeError: the path names no file. OutputExists: a folder is in the way.
        """
        return write_probe(path, self.as_json(), self._all_tensors())

    def _all_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Those of the form, and what is known of what it was fitted on."""
        known = {name: getattr(self, own) for own, name in _KNOWN.items()}
        return {**self.tensors, **{name: each for name, each in known.items() if len(each)}}

    def packed(self) -> tuple[bytes, bytes]:
        """What the two files would hold: weights and notes. :meth:`unpack` reads it."""
        return pack_probe(self.as_json(), self._all_tensors())

    def as_json(self) -> dict[str, Any]:
        """All of it but the tensors."""
        return {
            "kind": self.kind,
            "form": self.form,
            "sources": list(self.sources),
            "position": self.position,
            "threshold": self.threshold,
            "calibration": self.calibration._asdict(),
            "operating_points": [point._asdict() for point in self.operating_points],
            "digest": self.digest,
            "model": self.model,
            "num_layers": self.num_layers,
            "label": self.label,
            "positive": self.positive,
            "negative": self.negative,
            "data": dict(self.data),
            "report": dict(self.report),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedProbe:
        """Read what :meth:`save` wrote, or version 0.1 did; either of the two paths will do.

        Raises:
            ProbeError: a file is missing or not such a probe.
        """
        return cls._read(path, *read_probe(path))

    @classmethod
    def unpack(cls, name: str, weights: bytes, notes: bytes) -> SavedProbe:
        """Read what :meth:`packed` gave.

        Raises:
            ProbeError: it is not such a probe; the text calls it ``name``.
        """
        return cls._read(name, *unpack_probe(name, weights, notes))

    @classmethod
    def _read(
        cls,
        path: str | os.PathLike[str],
        version: int,
        notes: dict[str, Any],
        tensors: dict[str, npt.NDArray[Any]],
    ) -> SavedProbe:
        digest = notes.pop("digest", None)
        try:
            probe = cls._first(notes, tensors) if version == 1 else cls._second(notes, tensors)
        except ProbeError as error:
            raise ProbeError(f"{path} is broken: {error}") from None
        if digest not in {None, probe.digest}:
            raise ProbeError(
                f"{path} is broken: its weights and its notes do not belong together; copy both "
                "files again from where they came"
            )
        return probe

    @classmethod
    def _first(cls, notes: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> SavedProbe:
        layer, provenance = notes.pop("layer"), notes["provenance"]
        report = {"auroc": provenance["auroc"]} if "auroc" in provenance else {}
        return cls(
            kind="answer",
            form="linear",
            tensors=tensors,
            sources=(layer,),
            report=report,
            **notes,
        )

    @classmethod
    def _second(cls, notes: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> SavedProbe:
        known = {}
        for own, name in _KNOWN.items():
            hashes = tensors.pop(name, np.empty(0, np.uint64))
            if hashes.dtype != np.uint64 or hashes.ndim != 1:
                raise ProbeError(f"its tensor {name} is not uint64 [n]")
            known[own] = np.sort(hashes)
        curve, points = notes.pop("calibration"), notes.pop("operating_points")
        return cls(
            tensors=tensors,
            prompts=known["prompts"],
            subjects=known["subjects"],
            calibration=Calibration(curve.a, curve.b),
            operating_points=tuple(
                OperatingPoint(one.false_positive_rate, one.threshold, one.recall) for one in points
            ),
            **notes,
        )

    # --- numbers ---------------------------------------------------------------------

    def probability(self, log_odds: npt.ArrayLike) -> Floats:
        """The calibrated probability of being positive, of log-odds of any shape."""
        return probability_of(np.asarray(log_odds, np.float64), self.calibration)

    def of_tokens(self, rows: npt.NDArray[Any]) -> Floats:
        """The probability of every row by itself, ``[n]``; NaN where a row is not finite."""
        good = np.isfinite(rows).all(axis=1)
        found = np.full(len(rows), np.nan)
        found[good] = self.probability(form_of(self.form).tokens(self.tensors, rows[good]))
        return found

    def of_answer(self, rows: npt.NDArray[Any]) -> float:
        """The probability of an answer.

        Args:
            rows: of a probe with a position, the one row or pool there, ``[1, width]``; otherwise
                all rows that have read a token of the answer, ``[n, width]``.

        Raises:
            InputMissing: there is no row, or one is not finite.
        """
        answer = form_of(self.form).answer(self.tensors, self._finite(rows))
        return float(self.probability(answer))

    # --- entries ---------------------------------------------------------------------

    def score(self, entry: Entry) -> float:
        """The probability that this answer is positive.

        Of a probe of tokens that is the highest of its tokens, where it is linear.

        Raises:
            ProbeError: the probe was fitted on another model.
            InputMissing: the answer has no finite state where the probe looks.
            RowsMissing: the layer was not logged, or the rows never arrived.
        """
        self.check(entry)
        if self.position is None:
            return self.of_answer(self._states(entry, *self._own(entry)))
        rows = rows_at(self.position, entry)
        if rows.pool == "mean":
            # Not of the mean state in float32: a server has no states, only what it makes of them.
            return self._of_mean(self._states(entry, rows.start, rows.stop))
        pooled = [read_vector(entry, one, rows) for one in self.sources]
        return self.of_answer(_joined(pooled, axis=0)[None])

    def score_rows(self, entry: Entry, answer: float | None = None) -> npt.NDArray[np.float32]:
        """The probability at each row of the entry, float32 ``[rows]``; NaN where there is none.

        A probe of tokens gives one for the state that starts the answer, and for each that has
        read a token of it. A probe of answers gives one, :meth:`score`, at the row with which it
        is known: that of its position, or the last of its pool.

        Args:
            entry: the answer.
            answer: what :meth:`score` gave, where a probe of answers has given it already.

        Raises:
            ProbeError, InputMissing, RowsMissing: as for :meth:`score`; a probe of tokens gives NaN
                where a state is missing or not finite.
        """
        self.check(entry)
        scores = np.full(len(entry.positions), np.nan, np.float32)
        if self.kind == "token":
            start, stop = self._own(entry, before=1)
            scores[start:stop] = self.of_tokens(self._states(entry, start, stop))
            return scores
        answer = self.score(entry) if answer is None else answer
        position = self.position
        stop = self._own(entry)[1] if position is None else rows_at(position, entry).stop
        scores[stop - 1] = answer
        return scores

    def check(self, entry: Entry) -> None:
        """Refuse an entry that the probe was not made for.

        Raises:
            ProbeError: it is by another model.
            RowsMissing: its rows never arrived, or a source was not logged.
        """
        if entry.model != self.model:
            raise ProbeError(
                f"the probe was fitted on {self.model}, entry {entry.key} is by {entry.model}"
            )
        if entry.status != "complete":
            raise RowsMissing(f"entry {entry.key} is {entry.status}: {entry.status_reason}")
        expected = form_of(self.form).width(self.tensors)
        found = self._width(entry)
        # Another model may be as deep, and have the site of another width.
        if (found, entry.num_layers) != (expected, self.num_layers):
            raise ProbeError(
                f"the probe was fitted on {self.num_layers} layers of {expected}, entry "
                f"{entry.key} has {entry.num_layers} of {found}"
            )

    def _width(self, entry: Entry) -> int:
        """Number of elements of a row."""
        sources = [Source.of(label, entry.num_layers) for label in self.sources]
        try:
            return sum(one.width(entry.shape_of(one.site).shape) for one in sources)
        except DatasetError as error:
            raise RowsMissing(f"entry {entry.key}: {error}") from None

    def _own(self, entry: Entry, before: int = 0) -> tuple[int, int]:
        """The rows that have read a token of the answer, and ``before`` others before them."""
        positions = entry.positions
        first = int(positions[0]) if len(positions) else 0
        prompt, response = entry.num_tokens
        start = max(prompt - before - first, 0)
        end = prompt + response - entry.num_unread
        return start, max(min(end - first, len(positions)), start)

    def _states(self, entry: Entry, start: int, stop: int) -> npt.NDArray[np.float32]:
        return _joined([read_rows(entry, one, start, stop) for one in self.sources], axis=1)

    def _of_mean(self, rows: npt.NDArray[np.float32]) -> float:
        form = form_of(self.form)
        columns, bias = form.project(self.tensors, self._finite(rows))
        return float(self.probability(form.answer_of(columns.mean(axis=0)[None], bias)))

    def _finite(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not np.isfinite(rows).all():
            raise InputMissing(f"layer {self.source} holds values that are not finite")
        return rows


def find_probes(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, SavedProbe], dict[str, str]]:
    """The probes of a folder by name, and why those that are broken cannot be read.

    Raises:
        ProbeError: it is no folder, or cannot be looked into.
    """
    found: dict[str, SavedProbe] = {}
    broken: dict[str, str] = {}
    for name in names_in(folder):
        try:
            found[name] = SavedProbe.load(Path(folder) / f"{name}.json")
        except ProbeError as error:  # noqa: PERF203 - one that is broken must not hide the others
            broken[name] = str(error)
    return found, broken


def probability_of(log_odds: Floats, calibration: Calibration) -> Floats:
    """Calibrated probabilities of log-odds; both ends are exact, and NaN stays NaN."""
    x = calibration.a * log_odds + calibration.b
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -x))


def _joined(parts: list[npt.NDArray[Any]], axis: int) -> npt.NDArray[np.float32]:
    return np.concatenate(parts, axis=axis, dtype=np.float32)
