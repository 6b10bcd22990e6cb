"""Whether a probe's scores are still spread as they were on its training data: numpy alone.

A probe keeps the quantiles of the scores that it gave answers as part of the test side, when it was
fitted. Scores that come later are compared with these in two ways:

- the *population stability index* over bins, ``sum (q - p) * ln(q / p)``: Jeffreys' divergence
  of the shares ``p`` before and ``q`` now (Siddiqi 2006, Credit Risk Scorecards). Up to 0.1 is
  taken for none, above 0.25 for a large change.
- the *distance of Kolmogorov and Smirnov*, the largest difference of the two cumulative shares.

Both are above 0 for two samples of one distribution, the more so the fewer scores there are. So
beside each stands what chance alone exceeds in one case of twenty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import DatasetError, ProbeError

if TYPE_CHECKING:
    from activation_logging.arrays import Floats
    from activation_logging.detectors.saved_probe import SavedProbe

LARGE = 0.25
"""A population stability index above this is called a large change (Siddiqi 2006)."""
LEAST = 50
"""Fewer scores than this are not compared: chance alone would look like a large change."""

_LEVELS = np.linspace(0.0, 1.0, 201)
_NAME = "scores"
_BINS = 10
_DRAWS = 2000
_SMIRNOV = 1.3581
"""Of the distance's limit distribution, the 95 % quantile (Smirnov 1948)."""


class Reference(NamedTuple):
    """How scores were spread: ``number`` of them, and their ``quantiles`` at even levels, ``[k]``.

    The first quantile is the smallest score, the last the largest.
    """

    number: int
    quantiles: Floats

    @classmethod
    def of(cls, scores: npt.ArrayLike) -> Reference:
        """The spread of scores ``[n]``, n of at least 1; those that are NaN are left out."""
        given = np.asarray(scores, np.float64)
        given = given[np.isfinite(given)]
        return cls(len(given), np.quantile(given, _LEVELS))

    def as_json(self) -> dict[str, Any]:
        """For the notes of a probe."""
        return {_NAME: {"number": self.number, "quantiles": self.quantiles.tolist()}}

    @classmethod
    def of_probe(cls, probe: SavedProbe) -> Reference:
        """What a probe knows of its scores of answers.

        Raises:
            ProbeError: it knows nothing, since an earlier release has fitted it, or what its notes
                say is no such thing.
        """
        told = probe.report.get(_NAME)
        if told is None:
            raise ProbeError(
                "the probe does not know how its scores were spread on its training data, because "
                "an earlier release fitted it: fit it again"
            )
        try:
            number, quantiles = int(told["number"]), np.array(told["quantiles"], np.float64)
            good = number > 0 and quantiles.ndim == 1 and len(quantiles) > 1
            good = good and bool((np.diff(quantiles) >= 0).all())
        except (TypeError, ValueError, KeyError, OverflowError):
            good = False
        if not good:
            raise ProbeError("what the probe says of its scores on its training data is broken")
        return cls(number, quantiles)

    def share_up_to(self, score: npt.ArrayLike) -> Floats:
        """The share of scores at or below each of these, of any shape."""
        at = np.asarray(score, np.float64)
        passed = np.searchsorted(self.quantiles, at, "right")
        low = self.quantiles[np.clip(passed - 1, 0, None)]
        high = self.quantiles[np.clip(passed, None, len(self.quantiles) - 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.where(high > low, (at - low) / (high - low), 0.0)
        steps = len(self.quantiles) - 1
        found = np.clip((passed - 1 + between) / steps, 0.0, 1.0)
        return np.where(passed == 0, 0.0, np.where(passed > steps, 1.0, found))

    def at(self, level: float | Floats) -> Floats:
        """The quantiles at these levels, 0 to 1, of any shape."""
        return np.asarray(np.quantile(self.quantiles, level), np.float64)

    def edges(self) -> Floats:
        """Inner edges of bins with a tenth of the scores each; fewer where many are equal."""
        inner = np.linspace(0, 1, _BINS + 1)[1:-1]
        return np.unique(self.at(inner))


class Drift(NamedTuple):
    """How far ``number`` scores are from a reference.

    ``psi`` and ``ks`` are the index and the distance of the module's docstring, ``psi_by_chance``
    and ``ks_by_chance`` what two samples of one distribution, of these sizes, exceed in one case
    of twenty.
    """

    number: int
    psi: float
    psi_by_chance: float
    ks: float
    ks_by_chance: float

    @property
    def verdict(self) -> str:
        """``none`` where chance explains both, ``large`` above :data:`LARGE`, else ``some``."""
        if self.psi <= self.psi_by_chance and self.ks <= self.ks_by_chance:
            return "none"
        return "large" if self.psi > max(LARGE, self.psi_by_chance) else "some"

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "verdict": self.verdict}


def compare(reference: Reference, scores: npt.ArrayLike, *, seed: int = 0) -> Drift:
    """Compare scores ``[n]`` with a reference.

    Args:
        reference: how they were spread.
        scores: those to compare; NaN are left out.
        seed: of the draws that say what chance does.

    Raises:
        DatasetError: there are fewer than :data:`LEAST`.
    """
    given = np.asarray(scores, np.float64)
    given = np.sort(given[np.isfinite(given)])
    if len(given) < LEAST:
        raise DatasetError(
            f"{len(given)} scores are too few to say whether they have moved, {LEAST} are needed; "
            "take a longer time (--since)"
        )
    edges = reference.edges()
    before = bin_shares(reference, edges)
    counts = np.bincount(np.searchsorted(edges, given, "left"), minlength=len(before))
    n, m = len(given), reference.number
    # Between two of these points neither curve is further from the other than at one of them.
    points = np.concatenate([given, reference.quantiles])
    just_below = np.nextafter(points, -np.inf)
    gaps = [
        np.abs(np.searchsorted(given, at, "right") / n - reference.share_up_to(at)).max()
        for at in (points, just_below)
    ]
    return Drift(
        number=n,
        psi=float(stability_index(before * m, counts)),
        psi_by_chance=_by_chance((before * m + counts) / (m + n), n, m, seed),
        ks=float(max(gaps)),
        ks_by_chance=_SMIRNOV * float(np.sqrt((n + m) / (n * m))),
    )


def bin_shares(reference: Reference, edges: Floats) -> Floats:
    """The shares of a reference in ``(-inf, e0], (e0, e1], ..., (ek, inf)``, ``[edges + 1]``."""
    return np.diff(reference.share_up_to(edges), prepend=0.0, append=1.0)


def stability_index(before: npt.ArrayLike, now: npt.ArrayLike) -> Floats:
    """The population stability index of counts in bins, ``[..., bins]`` each, ``[...]``.

    Half a count is added to every bin, so that an empty one does not make it infinite.
    """
    p, q = (
        (counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True)
        for counts in (np.asarray(before, np.float64), np.asarray(now, np.float64))
    )
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def _by_chance(shares: Floats, n: int, m: int, seed: int) -> float:
    """What the index of two samples of ``n`` and ``m`` with these ``shares`` seldom exceeds."""
    rng = np.random.default_rng(seed)
    shares = shares / shares.sum()
    drawn = stability_index(
        rng.multinomial(m, shares, size=_DRAWS), rng.multinomial(n, shares, size=_DRAWS)
    )
    return float(np.quantile(drawn, 0.95))
