"""Every detector by name: what it is called, what it needs, where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from activation_logging.detectors.probes import (
    LinearProbe,
    MahalanobisDetector,
    MassMeanProbe,
    NearestNeighbours,
    Saplma,
    ScoreDetector,
)
from activation_logging.detectors.text import text_only

if TYPE_CHECKING:
    from collections.abc import Callable

Needs = Literal["state", "number", "text"]


@dataclass(frozen=True)
class Detector:
    """``make(seed)`` gives an unfitted scikit-learn classifier for this kind of input.

    ``state``: ``[n, hidden]``; ``number``: ``[n, 1]``, the signal of the same name; ``text``:
    ``[n, 2]`` of prompt and answer.
    """

    name: str
    title: str
    needs: Needs
    source: str
    make: Callable[[int], Any]


def _number(name: str, title: str, source: str) -> Detector:
    return Detector(name, title, "number", source, lambda _seed: ScoreDetector())


DETECTORS: tuple[Detector, ...] = (
    Detector(
        "linear_probe",
        "Linear probe",
        "state",
        "Alain & Bengio 2016, arXiv:1610.01644",
        lambda _seed: LinearProbe(),
    ),
    Detector(
        "mass_mean",
        "Mass-mean probe",
        "state",
        "Marks & Tegmark 2023, arXiv:2310.06824",
        lambda _seed: MassMeanProbe(),
    ),
    Detector(
        "mass_mean_whitened",
        "Mass-mean probe, whitened",
        "state",
        "Marks & Tegmark 2023, arXiv:2310.06824",
        lambda _seed: MassMeanProbe(whiten=True),
    ),
    Detector(
        "saplma",
        "SAPLMA network",
        "state",
        "Azaria & Mitchell 2023, arXiv:2304.13734",
        lambda seed: Saplma(seed=seed),
    ),
    Detector(
        "mahalanobis",
        "Mahalanobis distance, relative",
        "state",
        "Lee et al. 2018, arXiv:1807.03888; Ren et al. 2023, arXiv:2209.15558",
        lambda _seed: MahalanobisDetector(),
    ),
    Detector(
        "nearest_neighbours",
        "Nearest neighbours",
        "state",
        "Cover & Hart 1967; Sun et al. 2022, arXiv:2204.06507",
        lambda _seed: NearestNeighbours(),
    ),
    _number("mean_logprob", "Mean log-probability", "Malinin & Gales 2021, arXiv:2002.07650"),
    _number("min_logprob", "Minimum log-probability", "Manakul et al. 2023, arXiv:2303.08896"),
    _number("token_entropy", "Token entropy (top k)", "Malinin & Gales 2021, arXiv:2002.07650"),
    _number("semantic_entropy", "Semantic entropy", "Farquhar et al. 2024, Nature 630"),
    _number("self_consistency", "Self-consistency", "Wang et al. 2022, arXiv:2203.11171"),
    _number("eigenscore", "EigenScore", "Chen et al. 2024, arXiv:2402.03744"),
    _number("length", "Length of the answer", "control"),
    Detector(
        "text_only",
        "Text only (TF-IDF of prompt and answer)",
        "text",
        "control; Spärck Jones 1972",
        lambda _seed: text_only(),
    ),
    Detector(
        "prompt_only",
        "Text only (TF-IDF of the prompt)",
        "text",
        "control; Spärck Jones 1972",
        lambda _seed: text_only(answer=False),
    ),
)
"""In the order of the report's table."""

TEXT_CONTROL = "text_only"
