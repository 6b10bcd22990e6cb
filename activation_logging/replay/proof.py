"""The proof of a replay: its residual rows are those that were logged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from activation_logging.sites import RESID, Site

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from activation_logging.store import Entry

PROVING = frozenset({RESID, "resid_prenorm"})
"""The kinds of sites that are compared."""

EXACT = 2e-5
"""Largest relative error of a row, if both sides are float32."""

# The default model served in bfloat16 has medians of 0.005 to 0.011 and a worst row of 0.14.
ROUNDED_MEDIAN = 0.1
"""Largest median of a site's errors, if a side is of a half-precision type."""
ROUNDED_WORST = 0.5
"""Largest error of a row, likewise. One above :data:`ROUNDED_MEDIAN` must also be nearer to the
replayed row of its own position than to any other."""


class Errors(NamedTuple):
    """Relative errors of one site's rows, ``|row - replayed| / |replayed|``."""

    rows: int
    median: float
    worst: float


@dataclass(frozen=True)
class Proof:
    """How far an answer's logged rows are from the replay's, by site.

    ``is_exact`` says that both sides are float32. ``displaced`` counts rows that are far from the
    replayed row of their position, and nearer to that of another.
    """

    sites: Mapping[Site, Errors]
    median: float
    worst: float
    is_exact: bool
    displaced: int = 0

    @property
    def rows(self) -> int:
        """Number of rows that were compared, over all sites."""
        return sum(errors.rows for errors in self.sites.values())

    def as_json(self) -> dict[str, Any]:
        """What is kept with the arrays."""
        return {
            "rows": self.rows,
            "median": self.median,
            "worst": self.worst,
            "sites": [site.label for site in self.sites],
        }

    def refuted(self, tolerance: float | None = None) -> str | None:
        """Why the rows are not this model's of these tokens; None where they are.

        Args:
            tolerance: largest error of a row; None for what is right for the types.
        """
        rounded = tolerance is None and not self.is_exact
        most = tolerance if tolerance is not None else ROUNDED_WORST if rounded else EXACT
        if self.worst > most:
            remedy = "" if tolerance is not None or rounded else _SERVED_OTHERWISE
            return f"a row differs by {self.worst:.1e}, more than {most:g}{remedy}"
        if rounded and self.displaced:
            return f"{self.displaced} of its rows are those of other positions"
        median = max(errors.median for errors in self.sites.values())
        if rounded and median > ROUNDED_MEDIAN:
            return f"half of a layer's rows differ by {median:.1e}, more than {ROUNDED_MEDIAN:g}"
        return None


_SERVED_OTHERWISE = (
    "; if the model was served in another type than float32, say how much may differ "
    f"(--tolerance {ROUNDED_WORST})"
)


def proving_sites(entry: Entry) -> list[Site]:
    """The logged sites of an entry that a replay gives too."""
    return [site for site in entry.sites if site.name in PROVING]


def compare(entry: Entry, replayed: Mapping[Site, npt.NDArray[np.float32]], *, dtype: str) -> Proof:
    """Hold the logged rows of an entry against the replay's.

    Args:
        entry: the answer.
        replayed: rows of every token by site, ``[tokens, hidden]``; at least one site.
        dtype: what the replay computed in.
    """
    found, every, displaced = {}, [], 0
    for site, expected in replayed.items():
        rows, positions = entry.rows(site), entry.positions
        errors = relative_errors(rows, expected[positions])
        far = np.flatnonzero((errors > ROUNDED_MEDIAN) & np.isfinite(errors))
        displaced += int((_nearest(rows[far], expected) != positions[far]).sum())
        found[site] = Errors(len(errors), float(np.median(errors)), float(errors.max()))
        every.append(errors)
    together = np.concatenate(every)
    kinds = {dtype, *(entry.shape_of(site).dtype for site in replayed)}
    return Proof(
        found,
        float(np.median(together)),
        float(together.max()),
        is_exact=kinds == {"float32"},
        displaced=displaced,
    )


def relative_errors(
    rows: npt.NDArray[Any], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """``|row - expected| / |expected|`` of each row; infinite where that is no number."""
    wanted = expected.astype(np.float64)
    # The embedding of a padding token may be zero.
    sizes = np.maximum(np.linalg.norm(wanted, axis=1), np.finfo(np.float32).tiny)
    errors = np.linalg.norm(rows.astype(np.float64) - wanted, axis=1) / sizes
    return np.where(np.isfinite(errors), errors, np.inf)


def _nearest(rows: npt.NDArray[Any], expected: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """For each row the index of the expected row that it is nearest to."""
    wanted = expected.astype(np.float64)
    squared = (wanted**2).sum(axis=1) - 2 * rows.astype(np.float64) @ wanted.T
    return np.asarray(squared.argmin(axis=1), np.int64)


@dataclass
class Proofs:
    """What the proofs of many answers come to, by site."""

    answers: int = 0
    _rows: Counter[Site] = field(default_factory=Counter)
    _medians: dict[Site, list[float]] = field(default_factory=dict)
    _worst: dict[Site, float] = field(default_factory=dict)

    def add(self, proof: Proof) -> None:
        """Count one answer's."""
        self.answers += 1
        for site, errors in proof.sites.items():
            self._rows[site] += errors.rows
            self._medians.setdefault(site, []).append(errors.median)
            self._worst[site] = max(self._worst.get(site, 0.0), errors.worst)

    def table(self) -> dict[Site, Errors]:
        """By site: all rows, the median of the answers' medians, and the worst row."""
        return {
            site: Errors(self._rows[site], float(np.median(found)), self._worst[site])
            for site, found in sorted(self._medians.items(), key=lambda pair: pair[0].code)
        }
