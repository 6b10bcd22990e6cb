"""The nearest answers by state: whose states at a place have the most similar direction.

Similar is what has a large cosine after the place's mean has been taken away. States of one model
share much of their direction whatever they are about (Ethayarajh 2019, arXiv:1909.00512): of two
answers that have nothing in common the cosine of whole states is high. Without the mean it is near
0.

The states of a million answers cannot be read for one page. So they are read once for each place
that somebody asks for, and a :mod:`sketch <.sketches>` of each stays in the search index's file.
It chooses the candidates; their cosines are those of the states as the store has them.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.dataset.positions import pool_rows, rows_at
from activation_logging.errors import (
    ActivationLoggingError,
    InputMissing,
    RowsMissing,
    StoreCorrupt,
    ViewError,
)
from activation_logging.view.facts import STATUS_CODES
from activation_logging.view.sketches import SAMPLE, Frame, Place, Sketches, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.store import Entry
    from activation_logging.view.index import SearchIndex
    from activation_logging.view.sketches import Slots, Vectors

logger = logging.getLogger(f"vllm.{__name__}")

SHOWN = 10
CANDIDATES = (512, 2048)
"""So many states are compared themselves; more where too many are of the same prompt."""
AT_ONCE = 200
"""Answers that a page reads before it is shown; more are read in the background."""
_PER_BATCH = 4096
_LOADED = 4
"""Places whose sketches stay in memory."""


class Neighbour(NamedTuple):
    """An answer, and the cosine of its state with the one that was asked about."""

    entry: Entry
    cosine: float


class Neighbours(NamedTuple):
    """The nearest answers, the nearest first, among how many, and how many are not read yet."""

    found: Sequence[Neighbour]
    among: int
    missing: int


class Near:
    """The nearest answers of one store. Threads may share it.

    Args:
        index: the store's search index, in whose file the sketches are kept.
    """

    def __init__(self, index: SearchIndex) -> None:
        self._index = index
        self._loaded: dict[Place, Sketches] = {}
        self._progress: dict[Place, tuple[int, int]] = {}
        self._failed: dict[Place, ActivationLoggingError] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def known(self, model: str) -> list[tuple[str, str]]:
        """Sites and positions of the places of a model that have been read."""
        with self._index.file() as file:
            rows = file.execute("SELECT place FROM near_frames ORDER BY rowid").fetchall()
        places = (Place.parse(name) for (name,) in rows)
        return [(one.site, one.position) for one in places if one.model == model]

    def find(self, entry: Entry, place: Place) -> Neighbours | None:
        """The answers to other prompts that are nearest to one; None if the place is not read.

        Raises:
            ViewError: the answer has no state there, or what it has is the mean.
        """
        sketches = self._load(place)
        if sketches is None:
            return None
        own = state_at(entry, place)
        if own is None:
            raise ViewError("this answer has no state there that was logged")
        if own.shape != sketches.frame.mean.shape:
            raise ViewError("states of this model have had another size; they cannot be compared")
        (direction,) = sketches.frame.centred(own[None])
        missing = self._catch_up(place, sketches)
        prompt = entry.prompt_key
        found: list[Neighbour] = []
        for number in CANDIDATES:
            slots = sketches.best(direction, number)
            found = self._nearest(sketches.frame, place, prompt, direction, slots)
            if len(found) >= SHOWN or len(slots) < number:
                break
        return Neighbours(found, len(sketches), missing)

    def _nearest(
        self, frame: Frame, place: Place, prompt: str, direction: Vectors, slots: Slots
    ) -> list[Neighbour]:
        """Those in the slots whose states themselves are nearest, but for answers to a prompt."""
        left, states = self._states(place, slots, len(direction), but=prompt)
        cosines = frame.centred(states) @ direction
        best = np.argsort(-cosines, kind="stable")[:SHOWN]
        entries = (self._index.entry(left[i]) for i in best)
        return [
            Neighbour(entry, float(cosines[i]))
            for i, entry in zip(best, entries, strict=True)
            if entry is not None
        ]

    # --- reading states --------------------------------------------------------------

    def start(self, place: Place) -> None:
        """Read what has not been read of a place, in the background."""
        with self._lock:
            if place in self._progress:
                return
            self._progress[place] = (0, 0)
        threading.Thread(
            target=self._work, args=(place,), name="activation-view-near", daemon=True
        ).start()

    def progress(self, place: Place) -> tuple[int, int] | None:
        """How many answers of a place have been read, and of how many; None while nobody reads.

        Raises:
            ActivationLoggingError: reading has failed; it is said once.
        """
        failed = self._failed.pop(place, None)
        if failed is not None:
            raise failed
        return self._progress.get(place)

    def _work(self, place: Place) -> None:
        try:
            # One after the other: they would only take the processor from each other.
            with self._turn:
                self.build(place)
        except ActivationLoggingError as error:
            self._failed[place] = error
        except Exception as error:
            logger.exception("the states of %s cannot be read", place)
            self._failed[place] = ViewError(f"the states cannot be read: {error}")
        finally:
            with self._lock:
                del self._progress[place]

    def build(self, place: Place) -> None:
        """Read the states of all answers of a place that have not been read.

        Raises:
            ViewError: so few answers have a state there that nothing can be compared.
        """
        while True:
            sketches, wanted = self._load(place), self._wanted(place)
            if sketches is None or sketches.frame.outgrown(len(wanted)):
                self._save_frame(place, self._make_frame(place, wanted))
                continue
            todo = sketches.missing(wanted)
            with self._lock:
                if place in self._progress:
                    self._progress[place] = (len(wanted) - len(todo), len(wanted))
            if not len(todo):
                return
            self._read(place, sketches.frame, todo[:_PER_BATCH])

    def _catch_up(self, place: Place, sketches: Sketches) -> int:
        """Read what is new, if it is little; returns how many answers are left to be read."""
        wanted = self._wanted(place)
        todo = sketches.missing(wanted)
        if len(todo) > AT_ONCE or sketches.frame.outgrown(len(wanted)):
            self.start(place)
            return len(todo)
        if len(todo):
            self._read(place, sketches.frame, todo)
            self._load(place)
        return 0

    def _wanted(self, place: Place) -> Slots:
        """Slots of all answers of the place's model that have states, rising."""
        number = self._index.word(place.model)
        with self._index.reading() as columns:
            if number < 0 or not columns.size:
                return np.zeros(0, np.int32)
            there = columns["status"] == STATUS_CODES["complete"]
            return np.flatnonzero(there & (columns["model"] == number)).astype(np.int32)

    def _make_frame(self, place: Place, wanted: Slots) -> Frame:
        some = wanted[np.linspace(0, len(wanted) - 1, min(len(wanted), SAMPLE)).astype(int)]
        _, states = self._states(place, some, None)
        if len(states) < 2 or not unit(states - states.mean(axis=0)).any():
            raise ViewError(
                f"of {len(some):,} answers that were looked at, {len(states)} have a state there: "
                "too few to compare"
            )
        return Frame.of(states, len(some))

    def _states(
        self, place: Place, slots: Slots, width: int | None, *, but: str = ""
    ) -> tuple[list[int], Vectors]:
        """The slots of answers that have a state as wide as the first one's, and their states.

        ``but`` is the key of a prompt whose answers are left out.
        """
        found, states = [], []
        for slot in slots.tolist():
            entry = self._index.entry(slot)
            if entry is None or entry.prompt_key == but:
                continue
            state = state_at(entry, place)
            if state is not None and len(state) == (width or len(state)):
                width = len(state)
                found.append(slot)
                states.append(state)
        return found, np.array(states, np.float32).reshape(len(states), width or 0)

    def _read(self, place: Place, frame: Frame, slots: Slots) -> None:
        """Read the states of some answers, and keep their sketches."""
        found, states = self._states(place, slots, len(frame.mean))
        lacking = np.setdiff1d(slots, np.array(found, np.int32))
        parts = (
            np.array(found, "<i4").tobytes(),
            frame.sketch(frame.centred(states)).tobytes(),
            lacking.astype("<i4").tobytes(),
        )
        with self._index.file(writing=True) as file:
            # Not if another process has made the frame, or all of the index, anew meanwhile.
            file.execute(
                "INSERT INTO near (frame, slots, sketches, lacking) SELECT id, ?, ?, ? "
                "FROM near_frames WHERE place = ? AND id = ?",
                (*parts, place.name, frame.id),
            )

    # --- the file --------------------------------------------------------------------

    def _load(self, place: Place) -> Sketches | None:
        """The sketches of a place, with what any process has added; None if there are none."""
        with self._index.file() as file:
            row = file.execute(
                "SELECT id FROM near_frames WHERE place = ?", (place.name,)
            ).fetchone()
            known = self._loaded.pop(place, None)
            if row is None:
                return None
            if known is None or known.frame.id != row[0]:
                known = Sketches(_frame(file, place))
            # The one that was asked for last stands last.
            self._loaded = {**dict(list(self._loaded.items())[1 - _LOADED :]), place: known}
            batches = file.execute(
                "SELECT id, slots, sketches, lacking FROM near WHERE frame = ? AND id > ? "
                "ORDER BY id",
                (known.frame.id, known.last),
            )
            for number, slots, sketches, lacking in batches:
                size = known.frame.axes.shape[1]
                known.add(
                    np.frombuffer(slots, "<i4"),
                    np.frombuffer(sketches, np.int8).reshape(-1, size),
                    np.frombuffer(lacking, "<i4"),
                )
                known.last = number
            return known

    def _save_frame(self, place: Place, frame: Frame) -> None:
        with self._index.file(writing=True) as file:
            file.execute(
                "DELETE FROM near WHERE frame = (SELECT id FROM near_frames WHERE place = ?)",
                (place.name,),
            )
            file.execute(
                "INSERT OR REPLACE INTO near_frames VALUES (?, ?, ?, ?, ?)",
                (place.name, frame.id, frame.asked, frame.mean.tobytes(), frame.axes.tobytes()),
            )


def _frame(file: Any, place: Place) -> Frame:
    number, asked, mean, axes = file.execute(
        "SELECT id, asked, mean, axes FROM near_frames WHERE place = ?", (place.name,)
    ).fetchone()
    middle = np.frombuffer(mean, "<f4")
    return Frame(number, asked, middle, np.frombuffer(axes, "<f4").reshape(len(middle), -1))


def state_at(entry: Entry, place: Place) -> Vectors | None:
    """An answer's state at a place, ``[width]``; None if it has none, or no finite one."""
    try:
        rows = rows_at(place.position, entry)
        found = entry.rows(place.site, rows.start, rows.stop)
    except (InputMissing, RowsMissing, StoreCorrupt):
        return None
    state = pool_rows(found.astype(np.float32, copy=False), rows.pool)
    return state if np.isfinite(state).all() else None
