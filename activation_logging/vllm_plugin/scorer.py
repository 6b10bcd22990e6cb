"""Scores in the worker: which probe has which columns, and what it says of a request's rows.

The :class:`.RowArena` has for each site that probes read a matrix and, beside the rows, a row of
columns per slot: the row as it is stored, in float64, times the matrix. The operator that keeps
rows makes them (:mod:`.capture`). So a score exists where a row does: of cached prefixes, too, and
whatever the scheduler does. A :class:`Scorer` fills the matrices and reads the columns.

Probes may be replaced while the server runs. The matrices are overwritten in place, so nothing is
traced or captured again. A probe that stays keeps its columns. Those of a new one are NaN at every
slot that was computed before it came: of these tokens it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from activation_logging.detectors.served_probes import CAPACITY, Part, ServedProbes
from activation_logging.records import LiveScore
from activation_logging.vllm_plugin.arena import columns_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.sites import RowShape
    from activation_logging.vllm_plugin.arena import RowArena

Floats = npt.NDArray[np.float64]


class _Key(NamedTuple):
    """What columns of a site belong to: a probe, and the number of one of its sources."""

    code: int
    digest: str
    source: int


class Placed(NamedTuple):
    """A part of a probe, and which columns of its site's it has, int64 ``[C]``."""

    code: int
    part: Part
    places: npt.NDArray[np.int64]


class Layout(NamedTuple):
    """Which columns of which site belong to which probe, at one time."""

    served: ServedProbes
    placed: tuple[Placed, ...]


class Columns:
    """What all probes need of some rows. Reading :attr:`values` may wait for the device.

    Args:
        layout: the probes, at the time of the rows.
        rows: by :func:`.columns_code`, float64 ``[n, CAPACITY]``; sites that are not there add
            nothing: another pipeline stage has them.
        count: number of rows.
    """

    def __init__(self, layout: Layout, rows: Mapping[int, npt.NDArray[Any]], count: int) -> None:
        self.served = layout.served
        self._placed = layout.placed
        self.rows = rows
        self._count = count

    @cached_property
    def values(self) -> Floats:
        """The rows of columns, float64 ``[n, num_columns]``; see :mod:`.served_probes`."""
        found = np.zeros((self._count, self.served.num_columns))
        for code, part, places in self._placed:
            if columns_code(code) in self.rows:
                found[:, part.columns] += self.rows[columns_code(code)][:, places]
        return found


class CapturedScores(Mapping[str, LiveScore]):
    """What the probes say of an answer, by name; reading it may wait, as :class:`Columns` may.

    Args:
        columns: of all positions of the answer, and of the prompt's last.
        first: the position of that.
    """

    def __init__(self, columns: Columns, first: int) -> None:
        self._columns = columns
        self._first = first

    def answers(self, states: int) -> dict[str, float]:
        """What each probe says of the answer that has so many states; NaN if it says nothing.

        Rounded as it is stored, so that what is above a threshold now is above it later.
        """
        values = self._columns.values[:states]
        told = ((name, served.answer(values)) for name, served in self._columns.served.items())
        return {name: float(np.float32(answer)) for name, answer in told}

    @cached_property
    def _scores(self) -> dict[str, LiveScore]:
        return {
            name: LiveScore(
                self._first + served.offset,
                served.scores(self._columns.values).astype(np.float32),
                served.probe.digest,
                served.looks_at_end,
            )
            for name, served in self._columns.served.items()
        }

    def __getitem__(self, name: str) -> LiveScore:
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.served)

    def __len__(self) -> int:
        return len(self._columns.served)


class Scorer:
    """Applies the probes of a server to the rows of one stage.

    Args:
        served: the probes that the server starts with.
        shapes: what a row of each site is that probes may read, of all stages, by the site's code.
        arena: has the matrices and columns of this stage's sites.

    Attributes:
        here: the codes of columns that this stage makes.
        away: those of other stages.

    Raises:
        ProbeError: a probe does not fit; the text names it.
    """

    def __init__(
        self, served: ServedProbes, shapes: Mapping[int, RowShape], arena: RowArena
    ) -> None:
        self._shapes = dict(shapes)
        self._arena = arena
        self.here = [columns_code(code) for code in shapes if code in arena.matrices]
        self.away = [columns_code(code) for code in shapes if code not in arena.matrices]
        self.layout = Layout(ServedProbes(), ())
        self._places: dict[_Key, npt.NDArray[np.int64]] = {}
        # No slot has been written, so none is NaN: that would touch all of the arena's memory.
        self._put(served, served.parts(shapes), forget=False)

    @property
    def served(self) -> ServedProbes:
        """The probes as they are now."""
        return self.layout.served

    def load(self, served: ServedProbes) -> None:
        """Take these probes in place of the others. It is called between two steps.

        Rows of columns that were asked for before must have been gathered.

        Raises:
            ProbeError: one does not fit, and the others stay; the text names it.
        """
        self._put(served, served.parts(self._shapes), forget=True)

    def _put(self, served: ServedProbes, parts: Sequence[Part], *, forget: bool) -> None:
        """Place all parts, and compute those of this stage from now on."""
        keys = list(_keys(served, parts))
        found = {key: self._places[key] for key in keys if key in self._places}
        taken: dict[int, set[int]] = {key.code: set() for key in keys}
        for key, places in found.items():
            taken[key.code].update(places.tolist())
        for key, part in zip(keys, parts, strict=True):
            if key in found:
                continue
            free = (place for place in range(CAPACITY) if place not in taken[key.code])
            found[key] = np.array(list(islice(free, part.matrix.shape[1])), np.int64)
            taken[key.code].update(found[key].tolist())
            if key.code in self._arena.matrices:
                self._fill(key.code, part, found[key], forget=forget)
        for code in self._arena.matrices:
            self._arena.use(code, max(taken.get(code) or {-1}) + 1)
        self._places = found
        placed = (Placed(k.code, part, found[k]) for k, part in zip(keys, parts, strict=True))
        self.layout = Layout(served, tuple(placed))

    def _fill(self, code: int, part: Part, places: npt.NDArray[np.int64], *, forget: bool) -> None:
        matrix = self._arena.matrices[code]
        whole = np.zeros((len(matrix), len(places)))
        whole[part.rows] = part.matrix
        with torch.inference_mode():
            if forget:
                self._arena.forget(code, places)
            matrix[:, torch.from_numpy(places)] = torch.from_numpy(whole).to(matrix.device)

    def read(self, slots: npt.NDArray[np.int64]) -> Columns:
        """The columns of some slots, after all that the device has been told so far.

        The call waits for nothing; :attr:`Columns.values` does. Before a slot is written again it
        must have been read. With several pipeline stages these are what this one contributes.

        Args:
            slots: slots in the order wanted, int64 ``[n]``.
        """
        return Columns(self.layout, self._arena.read(slots, self.here), len(slots))


def _keys(served: ServedProbes, parts: Sequence[Part]) -> Iterator[_Key]:
    """What each part is known by. Two names of one probe share their columns."""
    left = iter(parts)
    for one in served.values():
        for number, part in enumerate(islice(left, len(one.probe.sources))):
            yield _Key(part.site.code, one.probe.digest, number)
