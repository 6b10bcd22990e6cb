"""A sketch of an answer's state at one place: 64 bytes that nearly tell its cosine with others.

A *place* is a model, a site and a position. The mean state of the place is taken away from each
state, and what is left is brought to length 1. Its coordinates along the directions in which the
states of a sample differ most (their principal components), each as a byte, are the sketch. The
product of two sketches then lacks only what the other directions add to the cosine. It chooses
candidates, whose cosines are then taken from the states themselves (:mod:`.near`).
"""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.strict_json import dumps

AXES = 64
"""Numbers of a sketch."""
SAMPLE = 1024
"""So many states give the mean and the axes."""
_OUTGROWN = 4
_SCALE = 127
_PER_BLOCK = 4096

SCHEMA = """
CREATE TABLE near_frames (
  place TEXT PRIMARY KEY, id INTEGER, asked INTEGER, mean BLOB, axes BLOB
);
CREATE TABLE near (
  id INTEGER PRIMARY KEY, frame INTEGER, slots BLOB, sketches BLOB, lacking BLOB
);
CREATE INDEX near_of_frame ON near (frame);
"""
TABLES = ("near_frames", "near")

Vectors = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int32]


class Place(NamedTuple):
    """Where states are compared: of which model, at which site and position.

    ``site`` is a text such as ``resid@8``, ``position`` one of
    :data:`activation_logging.dataset.NAMED_POSITIONS`.
    """

    model: str
    site: str
    position: str

    @property
    def name(self) -> str:
        """The place as one text."""
        return dumps(list(self))

    @classmethod
    def parse(cls, name: str) -> Place:
        """The reverse of :attr:`name`."""
        return cls(*json.loads(name))


class Frame(NamedTuple):
    """What the sketches of a place are made with.

    ``mean`` is ``[width]`` and ``axes`` ``[width, axes]``, both of a sample that ``asked`` so many
    answers for their states. Two frames of one place have different numbers, ``id``.
    """

    id: int
    asked: int
    mean: Vectors
    axes: Vectors

    @classmethod
    def of(cls, states: Vectors, asked: int) -> Frame:
        """From the states of a sample, ``[states, width]``."""
        mean = states.mean(axis=0, dtype=np.float64).astype(np.float32)
        units = unit(states - mean)
        # The axes of a matrix, from the smaller of the two that hold them.
        squares, sides = np.linalg.eigh((units @ units.T).astype(np.float64))
        kept = np.flatnonzero(squares > 1e-6 * max(squares[-1], 1e-12))[::-1][:AXES]
        axes = units.T @ (sides[:, kept] / np.sqrt(squares[kept])).astype(np.float32)
        return cls(secrets.randbits(62), asked, mean, axes)

    def outgrown(self, answers: int) -> bool:
        """Whether there are so many answers by now that a new sample would say more."""
        return self.asked < SAMPLE and answers >= _OUTGROWN * self.asked

    def centred(self, states: Vectors) -> Vectors:
        """States without the mean, of length 1; zeros where nothing is left."""
        return unit(states - self.mean)

    def sketch(self, units: Vectors) -> npt.NDArray[np.int8]:
        """Sketches of what :meth:`centred` gives, ``[states, axes]``."""
        return np.rint(_SCALE * (units @ self.axes)).clip(-_SCALE, _SCALE).astype(np.int8)


def unit(vectors: Vectors) -> Vectors:
    """Each row brought to length 1; a row of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


class Sketches:
    """The sketches of one place, in memory. What is in a block does not change any more."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.last = 0
        """The number of the last batch that was read from the file."""
        self._blocks: list[tuple[Slots, npt.NDArray[np.int8]]] = []
        self._done = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return sum(len(slots) for slots, _ in self._blocks)

    def add(self, slots: Slots, sketches: npt.NDArray[np.int8], lacking: Slots) -> None:
        """Take in a batch: slots with their sketches, and slots that have no state here."""
        # Two processes may have read the same answers.
        new = self.missing(slots)
        if len(new) < len(slots):
            sketches, slots = sketches[np.isin(slots, new)], new
        self._mark(slots)
        self._mark(lacking)
        if self._blocks and len(self._blocks[-1][0]) < _PER_BLOCK:
            before = self._blocks[-1]
            joined = np.concatenate([before[0], slots]), np.concatenate([before[1], sketches])
            self._blocks[-1] = joined
        elif len(slots):
            self._blocks.append((slots, sketches))

    def missing(self, slots: npt.NDArray[np.signedinteger]) -> Slots:
        """Those of these slots that have not been read, rising."""
        self._reach(slots)
        return slots[~self._done[slots]].astype(np.int32)

    def _mark(self, slots: Slots) -> None:
        self._reach(slots)
        self._done[slots] = True

    def _reach(self, slots: npt.NDArray[np.signedinteger]) -> None:
        size = int(slots.max(initial=-1)) + 1
        if size > len(self._done):
            done = np.zeros(max(size, 2 * len(self._done)), np.bool_)
            done[: len(self._done)] = self._done
            self._done = done

    def best(self, direction: Vectors, number: int) -> Slots:
        """The slots whose sketches are most similar to a direction of length 1, the best first."""
        wanted = direction @ self.frame.axes
        blocks = list(self._blocks)
        if not blocks:
            return np.zeros(0, np.int32)
        found = np.concatenate([sketches.astype(np.float32) @ wanted for _, sketches in blocks])
        slots = np.concatenate([slots for slots, _ in blocks])
        if len(found) > number:
            chosen = np.argpartition(found, len(found) - number)[len(found) - number :]
            found, slots = found[chosen], slots[chosen]
        return slots[np.argsort(-found, kind="stable")]
