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
ROUNDED = 0.5
"""Largest median of a site's errors, if a side is of a half-precision type."""


class Errors(NamedTuple):
    """Relative errors of one site's rows, ``|row - replayed| / |replayed|``."""

    rows: int
    median: float
    worst: float


@dataclass(frozen=True)
class Proof:
    """How far an answer's logged rows are from the replay's, by site."""

    sites: Mapping[Site, Errors]
    median: float
    worst: float
    is_exact: bool
    """Whether both sides are float32."""

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
            tolerance: largest error of a row; None for :data:`EXACT` or :data:`ROUNDED`.
        """
        if tolerance is not None or self.is_exact:
            most = EXACT if tolerance is None else tolerance
            if self.worst <= most:
                return None
            what = f"a row differs by {self.worst:.1e}, more than {most:.0e}"
            if tolerance is None:
                what += (
                    "; if the model was served in another type than float32, say how much may "
                    "differ (--tolerance 0.5)"
                )
            return what
        return None


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
    found, every = {}, []
    for site, rows in replayed.items():
        errors = relative_errors(entry.rows(site), rows[entry.positions])
        found[site] = Errors(len(errors), float(np.median(errors)), float(errors.max()))
        every.append(errors)
    together = np.concatenate(every)
    kinds = {dtype, *(entry.shape_of(site).dtype for site in replayed)}
    return Proof(
        found, float(np.median(together)), float(together.max()), is_exact=kinds == {"float32"}
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
